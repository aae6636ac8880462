"""Frames by a rule that others evaluate by: the first so many, evenly spaced indices of several kinds, given times.

A `FrameRule` stands where `FramesConfig` does and goes the same way through decoding. What it takes is told in seconds,
because that is what the model is told; indices count the frames of the file, so that of N = 100 and n = 4

    linspace        0 33 66 99      lmms-eval and others
    vlmeval        20 40 60 80      VLMEvalKit
    longvideobench  0 25 50 75      LongVideoBench, at most one a second
    mvbench        12 37 62 86      middles of segments
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from timeviper.config import FramesConfig

INDEXED = ("linspace", "vlmeval", "longvideobench", "mvbench")
FIRST = "first"


@dataclass
class FrameRule(FramesConfig):
    """At most `max_frames` frames; `fps` is that of `first`."""

    rule: str = FIRST
    """first: the first `max_frames` at `fps`; else one of `INDEXED`."""

    def times(self, duration: float, count: int) -> NDArray[np.float64]:
        """Seconds at which frames are taken of a video of `count` frames: within the shown time of each."""
        if self.rule == FIRST:
            n = min(max(round(duration * self.fps), 1), max(self.max_frames, 1), count)
            return np.minimum((np.arange(n) + 0.5) / self.fps, duration * (1 - 0.5 / max(count, 1)))
        places = frame_indices(self.rule, count, self.max_frames, duration)
        return (places + 0.5) * duration / count


def frame_indices(rule: str, count: int, wanted: int, duration: float = 0.0) -> NDArray[np.int64]:
    """Which of `count` frames are taken, in order; with fewer than wanted some are taken more than once, as there."""
    n = max(wanted, 1)
    if rule == "linspace":
        return np.linspace(0, count - 1, n).astype(np.int64)
    if rule == "vlmeval":
        return (count / (n + 1) * np.arange(1, n + 1)).astype(np.int64)
    if rule == "longvideobench":
        n = min(n, max(int(duration), 1)) if duration else n
        return np.minimum(int(count / n) * np.arange(n), count - 1)
    if rule == "mvbench":
        size = (count - 1) / n
        return np.minimum((size / 2 + np.round(size * np.arange(n))).astype(np.int64), count - 1)
    raise ValueError(f"frame rule {rule!r}: it is {FIRST}, {', '.join(INDEXED)}")
