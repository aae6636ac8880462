"""Media that look the same although their bytes differ: re-encoded, resized, put into another container.

A medium's signature are its pixels, very coarsely: the means of 8 x 8 cells of eight frames, evenly over its
length (of a picture: 16 x 16 cells), in RGB. Encoders keep such means to within a few levels of 255, whatever
they do to the details, and different scenes differ by more in some cell. Copies that are cropped, mirrored or
cut are not found.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from timeviper.config import FramesConfig

FRAMES = FramesConfig(fps=1e6, max_frames=8)  # of a video that has them
SIZE = 64  # pixels square at which `signature` wants the frames

# Limits of the difference of two signatures, in levels of 255: over all cells (root mean square), and in any one.
# What they let through and what they miss: benchmarks/lookalikes_*.md.
SAME_RMS, SAME_CELL = 2.5, 16.0

Signature = NDArray[np.uint8]
# By whether it is that of a picture: its name in files, and its shape.
LOOKS = {False: ("videos", (FRAMES.max_frames, 3, 8, 8)), True: ("images", (1, 3, 16, 16))}


def signature(pixels: NDArray[np.uint8]) -> Signature:
    """`[F, 3, SIZE, SIZE]` frames to their signature, 1,536 bytes of a video, 768 of a picture (F = 1)."""
    count = 1 if len(pixels) == 1 else FRAMES.max_frames
    cells = 16 if count == 1 else 8
    chosen = pixels[(np.arange(count) * len(pixels)) // count]  # fewer frames than 8 are repeated
    blocks = chosen.reshape(count, 3, cells, SIZE // cells, cells, SIZE // cells)
    return np.rint(blocks.mean(axis=(3, 5))).astype(np.uint8)
