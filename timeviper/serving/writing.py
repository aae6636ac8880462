"""What one row writes: tokens drawn as its request says, and their text as it may be shown.

Text is given out as soon as nothing can change it: a character when all of its bytes are there, and what could be the
beginning of a stop string when it has turned out not to be one, wherever tokens end.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from timeviper.inference.generate import sample
from timeviper.tokenizer import Tokenizer


@dataclass(frozen=True)
class Style:
    """How an answer is written."""

    max_new_tokens: int
    temperature: float = 0.0
    """0: the likeliest token."""
    top_p: float = 1.0
    seed: int = 0
    """The i-th of several answers is drawn with seed + i."""
    stop: tuple[str, ...] = ()
    """Text that ends an answer, and is not part of it."""
    choices: int = 1
    """Answers to the same prompt."""
    logprobs: int | None = None
    """How many likely tokens are named beside each one written; None: nothing is said of probabilities."""


class StopText:
    """Holds back what could be the beginning of a stop string."""

    def __init__(self, stops: Collection[str]) -> None:
        self.stops, self.held = tuple(stops), ""

    def take(self, text: str) -> tuple[str, bool]:
        """Text that is certain by now, and whether a stop string has come, before which it ends."""
        self.held += text
        places = [at for stop in self.stops if (at := self.held.find(stop)) >= 0]
        if places:
            shown, self.held = self.held[: min(places)], ""
            return shown, True
        sure = len(self.held) - max((_overlap(self.held, stop) for stop in self.stops), default=0)
        shown, self.held = self.held[:sure], self.held[sure:]
        return shown, False


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, but not all of it."""
    most = min(len(text), len(stop) - 1)
    return next((n for n in range(most, 0, -1) if text.endswith(stop[:n])), 0)


@dataclass
class Shown:
    """What a token adds to an answer."""

    text: str = ""
    end: str = ""
    """Why the answer ends here: stop or length; empty: it goes on."""
    logprobs: list[dict[str, Any]] = field(default_factory=list)


class Writer:
    """One answer as it is written."""

    def __init__(self, tokenizer: Tokenizer, style: Style, number: int, device: torch.device) -> None:
        self.tokenizer, self.style = tokenizer, style
        self._text, self._stops = tokenizer.stream(), StopText(style.stop)
        self._generator = torch.Generator(device).manual_seed(style.seed + number) if style.temperature else None
        self._said: list[dict[str, Any]] = []
        self.count = 0
        """Tokens written, the one that ended it among them."""

    def choose(self, logits: Tensor, likeliest: int) -> int:
        """The next token from logits `[1, V]`, of which the likeliest is known."""
        if self._generator is None:
            return likeliest
        return int(sample(logits, self.style.temperature, self.style.top_p, self._generator))

    def take(self, token: int, logits: Tensor, stop_ids: Sequence[int]) -> Shown:
        """What the answer shows after one more token, with logits `[1, V]` that it was chosen from."""
        self.count += 1
        if token in stop_ids:
            return self._ended("stop")
        if self.style.logprobs is not None:
            self._said.append(self._odds(token, logits, self.style.logprobs))
        text, stopped = self._stops.take(self._text.step(token))
        if stopped:
            return Shown(text, "stop", self._spoken())
        if self.count == self.style.max_new_tokens:
            last = self._ended("length")
            return Shown(text + last.text, last.end, last.logprobs)
        return Shown(text, "", self._spoken() if text else [])

    def _ended(self, why: str) -> Shown:
        text, stopped = self._stops.take(self._text.flush())
        return Shown(text if stopped else text + self._stops.held, "stop" if stopped else why, self._spoken())

    def _spoken(self) -> list[dict[str, Any]]:
        said, self._said = self._said, []
        return said

    def _odds(self, token: int, logits: Tensor, most: int) -> dict[str, Any]:
        logs = logits[0].log_softmax(-1)
        best = logs.topk(min(most, len(logs)))
        top = [self._odd(i, p) for p, i in zip(best.values.tolist(), best.indices.tolist())]
        return {**self._odd(token, float(logs[token])), "top_logprobs": top}

    def _odd(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.tokenizer.decode([token], skip_special=False)
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode())}
