"""Media that look the same although their bytes differ: re-encoded, resized, put into another container.

A medium's signature are its pixels, very coarsely: the means of 8 x 8 cells of eight frames, evenly over its
length (of a picture: 16 x 16 cells), in RGB. Encoders keep such means to within a few levels of 255, whatever
they do to the details, and different scenes differ by more in some cell. Copies that are cropped, mirrored or
cut are not found.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from timeviper.config import FramesConfig

FRAMES = FramesConfig(fps=1e6, max_frames=8)  # of a video that has them
SIZE = 64  # pixels square at which `signature` wants the frames

# Limits of the difference of two signatures, in levels of 255: over all cells (root mean square), and in any one.
# What they let through and what they miss: benchmarks/lookalikes_*.md.
SAME_RMS, SAME_CELL = 2.5, 16.0

Signature = NDArray[np.uint8]
Name = TypeVar("Name")


def signature(pixels: NDArray[np.uint8]) -> Signature:
    """`[F, 3, SIZE, SIZE]` frames to their signature, 1,536 bytes of a video, 768 of a picture (F = 1)."""
    count = 1 if len(pixels) == 1 else FRAMES.max_frames
    cells = 16 if count == 1 else 8
    chosen = pixels[(np.arange(count) * len(pixels)) // count]  # fewer frames than 8 are repeated
    blocks = chosen.reshape(count, 3, cells, SIZE // cells, cells, SIZE // cells)
    return np.rint(blocks.mean(axis=(3, 5))).astype(np.uint8)


class Lookalikes(Generic[Name]):
    """Finds for each signature an earlier one that looks the same. Exact: within the limits none is missed.

    Only a signature without a lookalike is remembered, and looked up by the mean of its three channels, whose
    distance the limits bound: time grows with what is remembered around it, not with the whole corpus.
    """

    def __init__(self) -> None:
        self._near: dict[tuple[int, ...], list[int]] = defaultdict(list)
        self._kept: list[Signature] = []
        self._names: list[Name] = []

    def find(self, name: Name, seen: Signature) -> tuple[Name, float] | None:
        """The name of the first lookalike, with the RMS difference in levels of 255; else remember this one."""
        means = seen.mean(axis=(0, 2, 3), dtype=np.float64)
        # A channel's mean differs by at most sqrt(3) of the RMS over all channels: neighbours in the grid suffice.
        at = tuple(int(m // (3**0.5 * SAME_RMS)) for m in means)
        around = (tuple(np.add(at, step)) for step in product((-1, 0, 1), repeat=3))
        candidates = sorted(i for cell in around if cell in self._near for i in self._near[cell])
        for i, rms in self._same(seen, candidates):
            return self._names[i], rms
        self._near[at].append(len(self._kept))
        self._kept.append(seen)
        self._names.append(name)
        return None

    def _same(self, seen: Signature, candidates: list[int]) -> Iterator[tuple[int, float]]:
        for first in range(0, len(candidates), 1024):
            chunk = [i for i in candidates[first : first + 1024] if self._kept[i].shape == seen.shape]
            if not chunk:
                continue
            others = np.stack([self._kept[i] for i in chunk])
            away = np.abs(others.astype(np.int16) - seen).reshape(len(chunk), -1)
            rms = np.sqrt(np.square(away.astype(np.float32)).mean(axis=1))
            for i in np.flatnonzero((rms <= SAME_RMS) & (away.max(axis=1) <= SAME_CELL)):
                yield chunk[i], float(rms[i])
