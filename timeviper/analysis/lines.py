"""From what query rows read of buckets to a line over the seconds of a video, beside what geometry alone would give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from timeviper.analysis.hidden import BLOCK, scatter
from timeviper.analysis.watch import Seen, Sums
from timeviper.datamodules.frames.stream import FrameStream
from timeviper.datamodules.frames.video import Frames
from timeviper.pack import Kind

STRETCHES = 600  # of time at most, where nobody says how long they are: about a pixel each
PARTS = ("first token", "context", "text between frames", "question", "answer")  # what is read beside the frames


@dataclass(frozen=True)
class Line:
    """One block."""

    block: int
    kind: str
    """`mamba` or `attention`."""
    share: list[float]
    """Of each stretch; NaN: no token of it is left here, or no frame was shown. Signed with relevance."""
    null: list[float]
    parts: dict[str, float]
    """The same of what is no frame, by `PARTS`; with relevance also of the convolution's bias."""
    missing: float | None = None
    """With relevance: what the parts leave unexplained."""
    truth_auc: float | None = None
    """How often a stretch inside the truth has more than one outside: 0.5 is chance."""

    @property
    def vision(self) -> float:
        """Share of all frames together."""
        return float(np.nansum(self.share))


def stretches(medium: Frames | FrameStream, per: float | None) -> list[float]:
    """Edges in seconds, evenly spaced; the last one may lie behind the end."""
    length = max(float(medium.duration), float(medium.times[-1]) + 1e-3)
    if per is None:
        per = max(1.0, math.ceil(length / STRETCHES), math.ceil(length / len(medium.times) - 0.5))
    count = max(math.ceil(length / per - 1e-6), 1)
    return [round(per * i, 6) for i in range(count + 1)]


def behind_media(kind: Tensor) -> int:
    """Tokens of text behind the last vision token."""
    return len(kind) - 1 - int(torch.nonzero(kind == Kind.VISION).max())


def buckets_of(kind: Tensor, behind: int, times: Sequence[float], edges: Sequence[float], per_frame: int) -> Tensor:
    """Of each token of the prompt, `kind [L]`, and of the `behind` ones of the answer: its stretch of time, or behind
    those its place in PARTS."""
    stretches = len(edges) - 1
    frame = np.clip(np.searchsorted(np.array(edges), np.array(times) + 1e-9, side="right") - 1, 0, stretches - 1)
    bucket = torch.full((len(kind) + behind,), stretches + PARTS.index("answer"))
    bucket[: len(kind)] = stretches + PARTS.index("text between frames")
    bucket[: len(kind)][kind == Kind.CONTEXT] = stretches + PARTS.index("context")
    bucket[len(kind) - behind_media(kind) : len(kind)] = stretches + PARTS.index("question")
    bucket[: len(kind)][kind == Kind.VISION] = torch.from_numpy(frame).repeat_interleave(per_frame)
    if kind[0] != Kind.VISION:
        bucket[0] = stretches + PARTS.index("first token")
    return bucket


def line_of(seen: Seen, sums: Sums, stretches: int, truth: tuple[float, float] | None, edges: Sequence[float]) -> Line:
    places = sums.asked.place if seen.kind == "attention" else sums.queries.place
    null = _null(seen, sums.bucket, places, sums.buckets).double().cpu()
    counts = torch.bincount(sums.bucket, minlength=sums.buckets).cpu()
    missing, bias = None, {}
    if seen.relevance is not None:
        target = seen.relevance.target or 1.0
        share, missing = seen.relevance.parts.cpu() / target, seen.relevance.missing
        bias = {"convolution's bias": seen.relevance.bias / target} if seen.kind == "mamba" else {}
    else:
        mass = seen.mass.double()
        share = (mass / mass.sum(-1, keepdim=True).clamp(min=1e-300)).mean((0, 1)).cpu()
    here = [float(v) if n else math.nan for v, n in zip(share[:stretches], counts[:stretches])]
    return Line(
        seen.block,
        seen.kind,
        here,
        [float(v) if n else math.nan for v, n in zip(null[:stretches], counts[:stretches])],
        {name: float(v) for name, v, n in zip(PARTS, share[stretches:], counts[stretches:]) if n} | bias,
        missing,
        None if truth is None else auc(here, edges, truth),
    )


def _null(seen: Seen, bucket: Tensor, places: Tensor, buckets: int) -> Tensor:
    """Shares `[F]` by geometry alone, as seen from the rows' mean place."""
    place = int(places.double().mean().round())
    if seen.rates is None:
        return torch.bincount(bucket[: place + 1], minlength=buckets) / (place + 1)
    out = torch.zeros(len(seen.rates), buckets, dtype=torch.float64, device=bucket.device)
    size = max(BLOCK // len(seen.rates), 1)
    for start in range(0, place + 1, size):
        back = place - torch.arange(start, min(start + size, place + 1), device=bucket.device)
        scatter(out, torch.exp(-seen.rates[:, None] * back), bucket[start : start + len(back)])
    return (out / out.sum(-1, keepdim=True)).mean(0)


def auc(share: Sequence[float], edges: Sequence[float], truth: tuple[float, float]) -> float | None:
    """How often a stretch that the truth covers half or more of has a larger share than one that it does not touch."""
    inside, outside = [], []
    for value, a, b in zip(share, edges, edges[1:]):
        covered = min(b, truth[1]) - max(a, truth[0])
        if not math.isnan(value):
            if covered >= (b - a) / 2:
                inside.append(value)
            elif covered <= 0:
                outside.append(value)
    if not inside or not outside:
        return None
    pairs = [(a > b) + 0.5 * (a == b) for a in inside for b in outside]
    return sum(pairs) / len(pairs)


def rounded(values: Sequence[float]) -> list[float | None]:
    """For JSON, which has no NaN."""
    return [None if math.isnan(v) else float(f"{v:.6g}") for v in values]
