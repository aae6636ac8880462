"""What it costs an answer not to see some seconds: the window that matters is found by halving, not frame by frame.

Evidence is redundant: an object that is seen for three seconds is seen in each of them, and hiding one frame costs
nothing. So all frames are hidden first; of the window that is left, its first, middle and last half are hidden in turn,
and the dearest goes on while it costs at least half of what all frames do. Beside it stand as many random frames of the
rest, hidden together.

Hidden frames are gone from the prompt, whose text and times stay: nothing of them reaches the answer by any road, as
it would through later frames that have seen them, and a long video is hidden from piece by piece. The cost is how much
less likely the same answer becomes: the difference of -log p, in nats, of all its tokens together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from timeviper.analysis.look import Look, teach
from timeviper.inference.ask import Followed, LoadedModel
from timeviper.inference.generate import embed_frames, frames_at_once, in_pieces
from timeviper.inference.prefill import prefill, prefill_chunks
from timeviper.kernels.bounds import Bounds
from timeviper.pack import Kind

DRAWS = 5  # sets of random frames
MATTERS = 0.1  # nats: hiding everything costs less: the answer is made without the video

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
    """Nats that hiding all frames costs."""
    top: Window | None
    """None: hiding everything costs next to nothing."""
    tried: list[Window]
    truth: Window | None = None

    def as_dict(self, look: Look) -> dict[str, Any]:
        return {
            "all_frames_nats": round(self.everything, 6),
            "top": self.top and self.top.as_dict(look),
            "truth": self.truth and self.truth.as_dict(look),
            "tried": [one.as_dict(look) for one in self.tried],
        }


def check_windows(cost: Cost, count: int, truth: range | None = None, seed: int = 0) -> Checked:
    """Find the window of `count` frames that matters, and hold it, and the truth, against random frames."""
    tried, here = [], range(count)
    everything = now = cost(frozenset(here))
    top = None
    if everything >= MATTERS:
        while len(here) > 1:
            size = (len(here) + 1) // 2
            starts = {here.start, here.start + (len(here) - size) // 2, here.stop - size}
            halves = [Window(r := range(a, a + size), cost(frozenset(r))) for a in sorted(starts)]
            tried += halves
            best = max(halves, key=lambda one: one.nats)
            if best.nats < everything / 2:
                break
            here, now = best.frames, best.nats
        top = Window(here, now, against(cost, here, count, seed))
    told = None if truth is None else Window(truth, cost(frozenset(truth)), against(cost, truth, count, seed + 1))
    return Checked(everything, top, tried, told)


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
        self.held: list[tuple[Tensor, Tensor]] | None = None
        self.base = self.nats(frozenset())

    def __call__(self, hidden: frozenset[int]) -> float:
        found = self.nats(hidden) - self.base
        if self.on_cost is not None:
            self.on_cost()
        return found

    @torch.inference_mode()
    def nats(self, hidden: frozenset[int]) -> float:
        """-log p of the answer without some frames, by the calls that wrote it."""
        decoder, ids = self.model.model.decoder, self.followed.ids
        size, prompt = self.model.recipe.eval.tokens_per_piece, self.followed.prompt
        left = self._without(hidden)
        vision = (len(self.followed.answer.frame_times) - len(hidden)) * self.model.model.tokens_per_frame
        text = int((prompt.kind != Kind.VISION).sum())
        if size == 0 or len(prompt.ids) <= size:
            x, kind = (torch.cat(parts) for parts in zip(*left))
            start = prefill(decoder, x, Bounds([len(x)], x.device), kind)
        else:
            start = prefill_chunks(decoder, in_pieces(left, size), vision, text + len(ids))
        return teach(decoder, start.hidden, start.state, ids, max(len(ids) - 1, 0))

    def _without(self, hidden: frozenset[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """The embedded prompt, piece by piece."""
        per_frame, done = self.model.model.tokens_per_frame, 0
        gone = torch.tensor(sorted(hidden), dtype=torch.int64)
        for x, kind in self._embedded():
            vision = (kind == Kind.VISION).cpu()
            number = vision.cumsum(0) - 1 + done
            done += int(vision.sum())
            stay = ~(vision & torch.isin(number // per_frame, gone))
            stay = stay.to(x.device)
            yield x[stay], kind[stay]

    def _embedded(self) -> Iterable[tuple[Tensor, Tensor]]:
        """The whole prompt; that of a short one is kept."""
        if self.held is not None:
            return self.held
        model, prompt, question = self.model.model, self.followed.prompt, self.followed.asked
        size = self.model.recipe.eval.tokens_per_piece
        whole = size == 0 or len(prompt.ids) <= size
        count = max(question.num_frames, 1) if whole else frames_at_once(size, model.tokens_per_frame)
        ids, kind = (t.to(self.model.device) for t in (prompt.ids, prompt.kind))
        seconds = torch.as_tensor(np.concatenate([medium.times for medium in question.media]))
        found = embed_frames(model, ids, kind, question.parts(count), seconds)
        if whole:
            self.held = [*found]
            return self.held
        return found


def frames_within(times: list[float], span: tuple[float, float]) -> range:
    """Those shown in a span of seconds."""
    inside = [i for i, seconds in enumerate(times) if span[0] <= seconds < span[1]]
    return range(inside[0], inside[-1] + 1)


def random_mean(window: Window) -> float | None:
    """Of the random costs; None: no frame was left to draw from."""
    return fmean(window.random) if window.random else None
