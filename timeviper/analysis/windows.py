"""What it costs an answer not to see some seconds: the window that matters is found by halving, not frame by frame.

Evidence is redundant: an object that is seen for three seconds is seen in each of them, and hiding one frame costs
nothing. So of the video, and then of the window that is left, the first, middle and last half are hidden in turn, and
the dearest goes on while it costs at least half of what the dearest so far did. Beside it stand as many random frames
of the rest, hidden together, and what the answer costs without any frame.

A prompt that goes through the model whole is computed as always, but for question and answer, which are computed in
every mixer as if the hidden frames had never been there (`cut.py`); what other tokens know of them, and what TransV
hands on, stays. From one in pieces, and where no frame is left, hidden frames are gone, and only their times in the
text stay: nothing of them reaches the answer by any road, but later frames know less, too. The cost is how much less
likely the same answer becomes: the difference of -log p, in nats, of all its tokens together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from timeviper.analysis.cut import cutting
from timeviper.analysis.lines import behind_media
from timeviper.analysis.look import Look, teach
from timeviper.inference.answer import Followed
from timeviper.inference.ask import LoadedModel
from timeviper.inference.generate import embed_frames, frames_at_once, in_pieces
from timeviper.inference.prefill import prefill_chunks
from timeviper.kernels.bounds import Bounds
from timeviper.pack import Kind

DRAWS = 5  # sets of random frames
MATTERS = 0.1  # nats: where hiding costs less, the answer is made without the video

Cost = Callable[[frozenset[int]], float]


@dataclass(frozen=True)
class Window:
    """Frames beside each other that were hidden, and what that cost."""

    frames: range
    nats: float
    random: list[float] = field(default_factory=list)
    """Costs of as many random frames outside of it, once a draw."""

    def span(self, look: Look) -> tuple[float, float]:
        """Seconds: from its first frame to the next one behind it."""
        times = [*look.answer.frame_times, max(look.answer.duration, look.answer.frame_times[-1])]
        return times[self.frames.start], times[self.frames.stop]

    def as_dict(self, look: Look) -> dict[str, Any]:
        first, last = self.span(look)
        return {
            "from": round(first, 3),
            "to": round(last, 3),
            "frames": len(self.frames),
            "nats": round(self.nats, 6),
            "random_nats": [round(v, 6) for v in self.random],
        }


@dataclass(frozen=True)
class Checked:
    everything: float
    """Nats that the answer costs without any frame."""
    top: Window | None
    """None: nothing that is hidden costs anything."""
    tried: list[Window]
    truth: Window | None = None
    how: str = ""
    """What became of hidden frames."""

    def as_dict(self, look: Look) -> dict[str, Any]:
        return {
            "how": self.how,
            "all_frames_nats": round(self.everything, 6),
            "top": self.top and self.top.as_dict(look),
            "truth": self.truth and self.truth.as_dict(look),
            "tried": [one.as_dict(look) for one in self.tried],
        }


def check_windows(cost: Cost, count: int, truth: range | None = None, seed: int = 0) -> Checked:
    """Find the window of `count` frames that matters, and hold it, and the truth, against random frames."""
    everything, tried = cost(frozenset(range(count))), list[Window]()
    here = Window(range(count), everything)
    least = max(MATTERS, everything / 10)
    while len(here.frames) > 1:
        frames, size = here.frames, (len(here.frames) + 1) // 2
        starts = {frames.start, frames.start + (len(frames) - size) // 2, frames.stop - size}
        halves = [Window(r := range(a, a + size), cost(frozenset(r))) for a in sorted(starts)]
        tried += halves
        best = max(halves, key=lambda one: one.nats)
        if best.nats < least:
            break
        here, least = best, max(least, best.nats / 2)
    top = None
    if here.nats >= MATTERS:
        top = replace(here, random=against(cost, here.frames, count, seed))
    told = None if truth is None else Window(truth, cost(frozenset(truth)), against(cost, truth, count, seed + 1))
    return Checked(everything, top, tried, told, getattr(cost, "how", ""))


def against(cost: Cost, window: range, count: int, seed: int, draws: int = DRAWS) -> list[float]:
    """Costs of random sets of as many frames outside of a window, or of all that are there."""
    others = np.array([i for i in range(count) if i not in window])
    if not len(others):
        return []
    dice, size = np.random.default_rng(seed), min(len(window), len(others))
    sets = {frozenset(dice.choice(others, size, replace=False).tolist()): None for _ in range(draws)}
    return [cost(one) for one in sets]


def most_costs(count: int) -> int:
    """Prefills that `check_windows` takes at most, without a truth span."""
    return 1 + 3 * max(count - 1, 0).bit_length() + DRAWS


class Hiding:
    """What an answer costs without some frames: nats more than with all of them."""

    def __init__(self, model: LoadedModel, followed: Followed, on_cost: Callable[[], None] | None = None) -> None:
        self.model, self.followed, self.on_cost = model, followed, on_cost
        self.size = model.recipe.eval.tokens_per_piece
        self.whole = self.size == 0 or len(followed.prompt.ids) <= self.size
        self.held: tuple[Tensor, Tensor] | None = None
        self.base = self.nats(frozenset())

    @property
    def how(self) -> str:
        """In words."""
        return "hidden from question and answer" if self.whole else "gone from the prompt"

    def __call__(self, hidden: frozenset[int]) -> float:
        found = self.nats(hidden) - self.base
        if self.on_cost is not None:
            self.on_cost()
        return found

    @torch.inference_mode()
    def nats(self, hidden: frozenset[int]) -> float:
        """-log p of the answer without some frames."""
        every = len(hidden) == len(self.followed.answer.frame_times)
        return self._cut(hidden) if self.whole and not every else self._removed(hidden)

    def _cut(self, hidden: frozenset[int]) -> float:
        """Prompt and answer in one pass."""
        decoder, ids = self.model.model.decoder, self.followed.ids
        if self.held is None:
            x, kind = (torch.cat(parts) for parts in zip(*self._embedded()))
            answer = torch.full((len(ids),), Kind.ANSWER, dtype=kind.dtype, device=kind.device)
            self.held = torch.cat([x, decoder.embed(ids)]), torch.cat([kind, answer])
        x, kind = self.held
        hide, rows = self._of(hidden, kind), torch.ones_like(kind, dtype=torch.bool)
        rows[: len(kind) - len(ids) - behind_media(self.followed.prompt.kind)] = False
        with cutting(decoder, hide, rows):
            out = decoder(x, Bounds([len(x)], x.device), kind)
        predicting = out.hidden[len(out.hidden) - len(ids) - 1 : -1]
        return -float(decoder.project(predicting).double().log_softmax(-1).gather(1, ids[:, None]).sum())

    def _removed(self, hidden: frozenset[int]) -> float:
        """By the calls that wrote the answer."""
        decoder, ids, prompt = self.model.model.decoder, self.followed.ids, self.followed.prompt
        vision = (len(self.followed.answer.frame_times) - len(hidden)) * self.model.model.tokens_per_frame
        text = int((prompt.kind != Kind.VISION).sum())
        start = prefill_chunks(
            decoder, in_pieces(self._without(hidden), self.size or len(prompt.ids)), vision, text + len(ids)
        )
        return teach(decoder, start.hidden, start.state, ids, max(len(ids) - 1, 0))

    def _of(self, frames: frozenset[int], kind: Tensor, before: int = 0) -> Tensor:
        """Which tokens `[n]` are of some frames; before: vision tokens that have come already."""
        vision = kind == Kind.VISION
        number = (vision.cumsum(0) - 1 + before) // self.model.model.tokens_per_frame
        return vision & torch.isin(number, torch.tensor(sorted(frames), dtype=torch.int64, device=kind.device))

    def _without(self, hidden: frozenset[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """The embedded prompt, piece by piece."""
        done = 0
        for x, kind in self._embedded():
            stay = ~self._of(hidden, kind, done)
            done += int((kind == Kind.VISION).sum())
            yield x[stay], kind[stay]

    def _embedded(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All of it."""
        model, prompt, question = self.model.model, self.followed.prompt, self.followed.asked
        count = max(question.num_frames, 1) if self.whole else frames_at_once(self.size, model.tokens_per_frame)
        ids, kind = (t.to(self.model.device) for t in (prompt.ids, prompt.kind))
        seconds = torch.as_tensor(np.concatenate([medium.times for medium in question.media]))
        return embed_frames(model, ids, kind, question.parts(count), seconds)


def frames_within(times: list[float], span: tuple[float, float]) -> range:
    """Those shown in a span of seconds."""
    inside = [i for i, seconds in enumerate(times) if span[0] <= seconds < span[1]]
    return range(inside[0], inside[-1] + 1)


def random_mean(window: Window) -> float | None:
    """Of the random costs; None: no frame was left to draw from."""
    return fmean(window.random) if window.random else None
