"""Pixels of a decoded frame: upright, RGB, resized to a square."""

from __future__ import annotations

import threading

import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

# Bit-exact rounding costs 10 us a frame and makes pixels the same on every processor.
RESIZE = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT


class _Scalers(threading.local):
    """One scaler a format and size: its tables cost more than a small frame. A thread has its own."""

    LIMIT = 16  # a corpus of pictures may have any number of sizes

    def __init__(self) -> None:
        self.made: dict[tuple[str, int, int, int], VideoReformatter] = {}

    def get(self, frame: VideoFrame, size: int) -> VideoReformatter:
        key = (frame.format.name, frame.width, frame.height, size)
        if key not in self.made:
            if len(self.made) == self.LIMIT:
                del self.made[next(iter(self.made))]
            self.made[key] = VideoReformatter()
        return self.made[key]


_SCALERS = _Scalers()


def resized(frame: VideoFrame, size: int) -> NDArray[np.uint8]:
    """`[3, size, size]` RGB, upright."""
    picture = np.empty((3, size, size), np.uint8)
    draw(frame, picture)
    return picture


def draw(frame: VideoFrame, picture: NDArray[np.uint8]) -> None:
    """Fill `picture` `[3, S, S]` with a frame, RGB and upright.

    Planar output saves the transposition and keeps chroma at full resolution.
    """
    size = picture.shape[-1]
    scaler = _SCALERS.get(frame, size)
    planar = scaler.reformat(frame, size, size, "gbrp", interpolation=RESIZE, threads=1)
    for channel, plane in zip((1, 2, 0), planar.planes):
        picture[channel] = np.frombuffer(memoryview(plane), np.uint8).reshape(size, -1)[:, :size]
    if (turned := upright(picture, frame)) is not picture:
        picture[...] = turned.copy()


def upright(picture: NDArray[np.uint8], frame: VideoFrame) -> NDArray[np.uint8]:
    """Turn and mirror a picture `[3, H, W]` as the file says that it is to be shown."""
    try:
        # Not frame.side_data, which the frame keeps and which keeps the frame: it would stay until the next collection.
        matrix = SideDataContainer(frame).get("DISPLAYMATRIX")  # pyright: ignore[reportCallIssue]
    except ValueError:  # PyAV trips over kinds of side data that it does not know, such as EXIF
        return np.rot90(picture, round(frame.rotation / 90), axes=(1, 2))
    if matrix is None:
        return picture
    # Row vectors: (x, y) is shown at (a x + c y, b x + d y), here always quarter turns and mirrors.
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5]
    if abs(b) > abs(a):
        picture, a, d = picture.transpose(0, 2, 1), c, b
    return picture[:, :: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def is_turned(frame: VideoFrame) -> bool:
    """Whether `upright` has anything to do."""
    corners = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    return not np.array_equal(upright(corners, frame), corners)
