"""What somebody asks about, a file or frames in memory, as the frames that the model is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from timeviper.config import FramesConfig
from timeviper.datamodules.frames.container import Still
from timeviper.datamodules.frames.draw import resized
from timeviper.datamodules.frames.stream import FrameStream
from timeviper.datamodules.frames.video import Frames, sample_times
from timeviper.datamodules.shards.schema import media_type

Video = str | Path | Frames | NDArray[Any] | Tensor

LAYOUT = "frames are uint8 [F, H, W, 3], RGB from 0 to 255, and a picture is [H, W, 3]"


def media_of(
    video: Video,
    size: int,
    wanted: FramesConfig,
    times: ArrayLike | Tensor | None = None,
    fps: float | None = None,
    duration: float | None = None,
) -> Frames | FrameStream:
    """Frames of `size` pixels square from anything that `LoadedModel.ask` takes; its docstring says what that is.
    Those of a file are decoded when they are asked for.

    wanted: which frames are taken of a file, or of an array with `fps`. Raises VideoError for a file that cannot be
    read; TypeError or ValueError, with what is allowed, for anything else.
    """
    if isinstance(video, (str, Path)) and (times, fps, duration) == (None, None, None):
        return FrameStream(Still(video) if media_type(str(video)) == "image" else video, size, wanted)
    return frames_of(video, size, wanted, times, fps, duration)


def frames_of(
    video: Video,
    size: int,
    wanted: FramesConfig,
    times: ArrayLike | Tensor | None = None,
    fps: float | None = None,
    duration: float | None = None,
) -> Frames:
    """`media_of` for what is in memory."""
    told = [name for name, value in (("times", times), ("fps", fps), ("duration", duration)) if value is not None]
    if isinstance(video, (np.ndarray, Tensor)):
        pixels = _pixels(video)
        if pixels.ndim == 3 and told:
            raise ValueError(f"a picture has no {told[0]}; a video of one frame is [1, H, W, 3]")
        if pixels.ndim == 3:
            return Frames(_resized(pixels[None], size), np.zeros(1), 0.0, 1, 0.0, "image")
        if fps is not None and told == ["fps"]:
            return _of_clip(pixels, size, wanted, fps)
        if fps is not None or times is None:
            raise ValueError(f"give the times of the {len(pixels)} frames in seconds, or their fps alone")
        return _at_times(pixels, size, times, duration, 1 / wanted.fps)
    if told:
        raise ValueError(f"{told[0]} is for frames in memory: a file, and what read_video gave, have their own")
    if not isinstance(video, Frames):
        kinds = "a path, a numpy array, a torch tensor, or what read_video gave"
        raise TypeError(f"video must be {kinds}, got {type(video).__name__}")
    if video.pixels.shape[1:] != (3, size, size):
        raise ValueError(f"these frames were read at {video.pixels.shape[-1]} pixels, but this model sees {size}")
    return video


def _pixels(video: NDArray[Any] | Tensor) -> NDArray[np.uint8]:
    """`[F, H, W, 3]` or `[H, W, 3]`, checked."""
    dtype, shape = str(video.dtype).removeprefix("torch."), list(video.shape)
    if dtype != "uint8" or len(shape) not in (3, 4) or shape[-1] != 3 or 0 in shape:
        channels_first = len(shape) in (3, 4) and shape[-3] == 3
        hint = ": channels come last, so turn them with transpose or permute" if channels_first else ""
        raise ValueError(f"{LAYOUT}; got {dtype} {shape}{hint}")
    return video.cpu().numpy() if isinstance(video, Tensor) else video


def _of_clip(pixels: NDArray[np.uint8], size: int, wanted: FramesConfig, fps: float) -> Frames:
    """Of all frames of a clip those that would be taken of its file."""
    if not 0 < fps < np.inf:
        raise ValueError(f"fps must be frames a second, above 0, got {fps}")
    count, length = len(pixels), len(pixels) / fps
    # What is shown then. A time that falls on a frame's own start, up to rounding, means that frame.
    chosen = (sample_times(length, wanted, count) * fps + 1e-6).astype(int)
    return Frames(_resized(pixels[chosen], size), chosen / fps, length, count, fps)


def _at_times(
    pixels: NDArray[np.uint8], size: int, times: ArrayLike | Tensor, duration: float | None, alone: float
) -> Frames:
    """All of the frames; `alone`: seconds that a single one is shown."""
    shown = np.asarray(times.cpu() if isinstance(times, Tensor) else times, np.float64)
    if shown.shape != (len(pixels),):
        raise ValueError(f"times must be [{len(pixels)}], the second of each frame, got {list(shown.shape)}")
    if not np.isfinite(shown).all() or shown[0] < 0 or (np.diff(shown) < 0).any():
        raise ValueError("times must be seconds from the start of the video: 0 or more, and in order")
    if duration is None:  # of evenly spaced frames, at the starts or the centres of equal parts
        gap = (shown[-1] - shown[0]) / (len(shown) - 1) if len(shown) > 1 else alone
        duration = float(shown[-1] + max(gap - shown[0], 0.0))
    if not shown[-1] <= duration < np.inf:
        raise ValueError(f"duration is {duration:g} seconds, but a frame is shown at {shown[-1]:g}")
    return Frames(_resized(pixels, size), shown, duration, len(shown), len(shown) / duration if duration else 0.0)


def _resized(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """`[F, H, W, 3]` -> `[F, 3, size, size]`, as those of a file are resized; those of that size are not copied."""
    if pixels.shape[1:3] == (size, size):
        return pixels.transpose(0, 3, 1, 2)
    pictures = (np.ascontiguousarray(picture) for picture in pixels)
    return np.stack([resized(VideoFrame.from_ndarray(picture, "rgb24"), size) for picture in pictures])
