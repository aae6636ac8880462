"""Videos that show nothing, or that stand still: read without any error, and not worth training on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

SIDE = 48  # pixels that are looked at along a side, evenly spread
DARK = 24  # levels; encoders make 0 of black, or 16 where a range was taken for another
# Where a decoder has no data its planes are 0, which is this green: no red, no blue, 77 to 154 of green.
GREEN_FROM, NO_COLOUR, GREEN_SHARE = 60, 12, 0.2
STILL_MEAN, STILL_MOST = 1.0, 24  # levels by which frames of a picture that stands still differ, by their encoding
MOST = 0.95  # of the frames


class Shown:
    """Collects what the frames of one video show."""

    def __init__(self) -> None:
        self.frames = self.black = self.green = self.still = 0
        self._first: NDArray[np.int16] | None = None

    def add(self, pixels: NDArray[np.uint8]) -> None:
        """Frames `[F, 3, S, S]`, which may be none."""
        if not len(pixels):
            return
        step = max(pixels.shape[-1] // SIDE, 1)
        small = pixels[:, :, ::step, ::step].reshape(len(pixels), 3, -1).astype(np.int16)
        first = small[0] if self._first is None else self._first
        self._first = first
        red, green, blue = small[:, 0], small[:, 1], small[:, 2]
        dead = (green >= GREEN_FROM) & (np.maximum(red, blue) <= NO_COLOUR)
        away = np.abs(small - first).reshape(len(small), -1)
        self.frames += len(small)
        self.black += int((small.max(axis=(1, 2)) <= DARK).sum())
        self.green += int((dead.mean(axis=1) >= GREEN_SHARE).sum())
        self.still += int(((away.mean(axis=1) <= STILL_MEAN) & (away.max(axis=1) <= STILL_MOST)).sum())

    def notes(self, count: int) -> Iterator[tuple[str, str]]:
        """Of a video that has `count` frames altogether."""
        if count == 1:
            yield "one-frame", "is a video of a single frame: an image, as far as training goes"
        if self.frames and self.black >= MOST * self.frames:
            yield "black", f"is black: {self.black} of {self.frames} frames are no lighter than {DARK} of 255"
        elif self.frames > 1 and self.still == self.frames:
            yield "frozen", f"shows the same picture throughout, as far as its {self.frames} wanted frames tell"
        if self.green:
            yield (
                "green",
                f"{self.green} of {self.frames} frames are at least a fifth of the green that decoders show where "
                "data are missing: it was encoded from a damaged file",
            )
