"""Clips that carry the number of each frame as eight vertical bars, so that a test can read it back."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.stream import VideoStream

from timeviper.datamodules.frames.video import Frames


def picture(number: int, width: int, height: int) -> np.ndarray:
    """Bars for the bits of the number; noise above and below, so that frames cost some bytes."""
    columns = np.arange(width) * 8 // width
    bars = np.broadcast_to((number >> columns & 1)[None, :, None] * 255, (height, width, 3)).astype(np.uint8)
    noise = np.random.default_rng(number).integers(256, size=bars.shape, dtype=np.uint8)
    return np.where(np.abs(np.arange(height) * 2 - height)[:, None, None] > 0.75 * height, noise, bars)


def numbers(frames: Frames) -> list[int]:
    """The frame numbers drawn in the middle rows of the pixels."""
    size = frames.pixels.shape[-1]
    middle = frames.pixels[:, :, size // 4 : -size // 4].mean(axis=(1, 2))  # [F, S]
    bars = middle.reshape(len(middle), 8, size // 8)[:, :, 1:-1].mean(axis=2) > 127
    return (bars << np.arange(8)).sum(axis=1).tolist()


def write_clip(
    path: Path,
    stamps: int | list[int] = 40,
    codec: str = "libx264",
    fps: int | Fraction = 10,
    size: tuple[int, int] = (64, 48),
    options: dict[str, object] | None = None,
    container: dict[str, str] | None = None,
    turned: int = 0,
    form: str | None = None,
    matrix: int | None = None,
) -> Path:
    """A clip with a frame at each time stamp (in units of 1 / fps). `matrix`: of colours, by its number in H.273."""
    stamps = list(range(stamps)) if isinstance(stamps, int) else stamps
    formats = {"mjpeg": "yuvj420p", "png": "rgb24", "gif": "rgb8"}
    with av.open(str(path), "w", options=container or {}) as out:
        stream = cast(VideoStream, out.add_stream(codec, rate=fps))
        stream.width, stream.height = size
        odd = size[0] % 2 or size[1] % 2
        stream.pix_fmt = form or ("yuv444p" if odd else formats.get(codec, "yuv420p"))
        if matrix is not None:
            stream.codec_context.colorspace = matrix
        stream.options = options or {}
        if turned:
            stream.set_display_rotation(turned)
        for number, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            frame.pts, frame.time_base = stamp, 1 / Fraction(fps)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def shown_at(stamps: np.ndarray, times: np.ndarray) -> list[int]:
    """Number of the frame that a player shows at each time."""
    return (np.searchsorted(stamps, times + 1e-9, side="right") - 1).tolist()


def all_frames(path: Path) -> tuple[np.ndarray, list[av.VideoFrame]]:
    """Every frame by plain sequential decoding: the reference."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return np.array([f.time for f in frames]), frames
