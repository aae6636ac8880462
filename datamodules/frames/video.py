"""Which frames of a video are taken, and their pixels: one function for training, evaluation and questions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Literal

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from timeviper.config import FramesConfig
from timeviper.datamodules.frames.container import MAX_PIXELS, Container, Source, VideoError
from timeviper.datamodules.frames.decode import FrameReader
from timeviper.datamodules.frames.draw import draw
from timeviper.datamodules.frames.part import Part
from timeviper.datamodules.frames.rule import FrameRule
from timeviper.datamodules.frames.timeline import Timeline, read_timeline

__all__ = [
    "Frames",
    "VideoError",
    "VideoInfo",
    "frame_count",
    "frame_counts_of",
    "iter_video",
    "probe_video",
    "read_video",
    "sample_times",
]

# Pixels of frames that are drawn together: in turns with decoding each takes twice the time. As many as a cache holds.
HELD = 1 << 19

Empty = Callable[[Sequence[int]], NDArray[np.uint8]]
"""Makes an array of a shape, whose values do not matter."""


def empty(shape: Sequence[int]) -> NDArray[np.uint8]:
    return np.empty(shape, np.uint8)


@dataclass
class Frames:
    """Some frames of a video, in order."""

    pixels: NDArray[np.uint8]
    """`[F, 3, S, S]` RGB; the whole picture, upright, resized to a square."""
    times: NDArray[np.float64]
    """`[F]` seconds at which a player shows each frame: 0 is the start of the file, that is its first frame, or its
    sound if that begins before. The container's own clock may start anywhere."""
    duration: float
    """Seconds that the video lasts; 0 for an image."""
    count: int
    """Frames in the whole video."""
    fps: float
    """Mean frames a second of the whole video; 0 for an image."""
    kind: Literal["video", "image"] = "video"
    missing: int = 0
    """Frames that were wanted and could not be decoded."""


@dataclass(frozen=True)
class VideoInfo:
    """What the shard index notes of a video."""

    kind: Literal["video", "image"]
    duration: float
    frames: int
    fps: float
    keyframe_seconds: float
    """Longest time without a frame that decoding can start at."""
    width: int
    height: int


def frame_count(duration: float, frames: FramesConfig, available: int | None = None) -> int:
    """Frames that `read_video` takes of a video of `duration` seconds that holds `available` frames."""
    wanted = min(max(round(duration * frames.fps), frames.min_frames, 1), max(frames.max_frames, 1))
    return wanted if available is None else min(wanted, available)


def frame_counts_of(
    duration: NDArray[np.float64], frames: FramesConfig, available: NDArray[np.int64]
) -> NDArray[np.int64]:
    """`frame_count` of many videos."""
    wanted = np.rint(duration * frames.fps).clip(max(frames.min_frames, 1)).clip(max=max(frames.max_frames, 1))
    return np.minimum(wanted, available).astype(np.int64)


def sample_times(duration: float, frames: FramesConfig, available: int | None = None) -> NDArray[np.float64]:
    """Seconds from the start at which frames are taken: the centres of equal bins."""
    n = frame_count(duration, frames, available)
    return (np.arange(n) + 0.5) * duration / n


def probe_video(source: Source, part: Part | None = None) -> VideoInfo:
    """Length and frame count as `read_video` finds them, without decoding. Raises `VideoError`."""
    with Container(source) as container:
        timeline = read_timeline(container)
        duration, count = _length(container, timeline)
        if part and part.cuts:
            duration, count = _length_of_part(container, timeline, part)
        return VideoInfo(
            kind="image" if container.is_image else "video",
            duration=duration,
            frames=count,
            fps=count / duration if duration else 0.0,
            keyframe_seconds=timeline.key_gap * container.tick,
            width=container.context.width,
            height=container.context.height,
        )


def read_video(
    source: Source,
    size: int,
    frames: FramesConfig,
    duration: float | None = None,
    part: Part | None = None,
    empty: Empty = empty,
) -> Frames:
    """Decode the frames that `frames` asks for, resized to `size` pixels square.

    At each of `sample_times` it takes the frame that a player shows then: the last one whose time stamp
    is not later. `duration` (seconds) replaces the length that the video seems to have. Raises `VideoError`
    for what cannot be opened, and when fewer than half of the frames can be decoded; smaller losses are
    counted in `missing`. An image is one frame at time 0. With a `part`, all of this is about that part of the file
    as if it were a file of its own: times count from its `offset`. `empty` makes the array of the pixels.
    """
    (whole,) = iter_video(source, size, frames, duration, chunk=None, part=part, empty=empty)
    return whole


def iter_video(
    source: Source,
    size: int,
    frames: FramesConfig,
    duration: float | None = None,
    chunk: int | None = 256,
    part: Part | None = None,
    empty: Empty = empty,
) -> Iterator[Frames]:
    """`read_video` in pieces of at most `chunk` frames, so that hours of video never lie in memory.

    The last piece carries `missing`; the error about too many losses comes in its place.
    """
    with Container(source) as container:
        sampling = Sampling(container, frames, duration, part)
        wanted = len(sampling.targets)

        def piece(taken: int) -> Frames:
            room = min(chunk or wanted, wanted - taken)
            pixels = empty((room, 3, size, size))
            return Frames(pixels, np.empty(room), sampling.duration, sampling.count, sampling.fps, sampling.kind)

        taken, filled, drawn, current, held = 0, 0, 0, piece(0), list[VideoFrame]()

        def draw_held() -> None:
            nonlocal drawn
            for number, frame in enumerate(held, drawn):
                draw(frame, current.pixels[number])
            drawn += len(held)
            held.clear()

        for frame, stamp, serves in sampling.reader.read(sampling.targets):
            seconds = sampling.seconds(stamp)
            for _ in range(serves):
                if filled == len(current.times):
                    draw_held()
                    yield current
                    filled, drawn, current = 0, 0, piece(taken)
                held.append(frame)
                current.times[filled] = seconds
                filled, taken = filled + 1, taken + 1
                if len(held) * frame.width * frame.height > HELD:
                    draw_held()
        draw_held()
        missing = sampling.missing(taken)
        yield replace(current, pixels=current.pixels[:filled], times=current.times[:filled], missing=missing)


class Sampling:
    """Which frames of a container just opened are wanted, and when a player shows them."""

    def __init__(
        self, container: Container, frames: FramesConfig, duration: float | None = None, part: Part | None = None
    ) -> None:
        self._container, self._timeline = container, read_timeline(container)
        self.reader = FrameReader(container, self._timeline)
        self._lead = lead_in(container, self._timeline.start)
        length, self.count = _length(container, self._timeline)
        self._start, self._offset = (part.start, part.offset) if part else (0.0, 0.0)
        if part and part.cuts:
            length, self.count = _length_of_part(container, self._timeline, part)
        self.fps = self.count / length if length else 0.0
        self.duration = length if duration is None or container.is_image else duration
        self.kind: Literal["video", "image"] = "image" if container.is_image else "video"
        is_there = self.reader.holds(self._start + self.duration)
        if isinstance(frames, FrameRule):
            offsets = frames.times(self.duration, self.count)
        else:
            offsets = sample_times(self.duration, frames, self.count if is_there else None)
        if part and part.cuts:  # a part counts as the player does, which may begin with sound alone
            offsets = (offsets + self._start - self._lead).clip(min=0.0)
        # One part in a million of a tick: a time that falls on a frame's own stamp means that frame.
        self.targets = [self._timeline.start + int(offset / container.tick + 1e-6) for offset in offsets]

    def seconds(self, stamp: int) -> float:
        """When a player shows the frame of a time stamp."""
        if self._container.is_image:
            return 0.0
        since = self._lead + self._container.seconds(stamp - self._timeline.start) - self._start
        return max(since, 0.0) + self._offset

    def missing(self, taken: int) -> int:
        """Wanted frames that were not found. VideoError if these are more than half."""
        missing = len(self.targets) - taken
        if 2 * missing > len(self.targets):
            raise VideoError(self._container.where, _losses(self._container, taken, len(self.targets)))
        return missing


def _length(container: Container, timeline: Timeline) -> tuple[float, int]:
    """Seconds and frames of the whole."""
    if container.is_image:
        return 0.0, 1
    return (timeline.promised - timeline.start) * container.tick, timeline.count


def _length_of_part(container: Container, timeline: Timeline, part: Part) -> tuple[float, int]:
    """Seconds and frames of a part: as many as the whole has on average. VideoError if the file does not have it."""
    length, count = _length(container, timeline)
    start, lasts = part.start, lead_in(container, timeline.start) + length
    end = lasts if part.end is None else part.end
    if container.is_image:
        raise VideoError(container.where, "is an image, which has no parts")
    if start >= lasts or end > lasts + max(0.5, 0.01 * length):  # people round
        detail = f"lasts {lasts:.2f} s, so it has no part from {start:g} to {end:g} s"
        raise VideoError(container.where, f"{detail}; if it was cut already, leave start and end out")
    seconds = min(end, lasts) - start
    return seconds, min(max(round(seconds * count / length), 1), count)


def lead_in(container: Container, first: int) -> float:
    """Seconds from the start of the file to the first frame, whose time stamp this is: sound may begin before."""
    if container.format == "avi":  # it has no later start, and stamps that say so are guesses
        return 0.0
    starts = [(stream.start_time, stream.time_base) for stream in container.file.streams.audio]
    # Below 0 there is no sound, only the delay of its decoder.
    sounds = [max(float(start * base), 0.0) for start, base in starts if start is not None and base is not None]
    return max(container.seconds(first) - min(sounds, default=inf), 0.0)


def _losses(container: Container, taken: int, wanted: int) -> str:
    if not taken and not container.context.width:
        return f"cannot be decoded: a damaged header, or more than the limit of {MAX_PIXELS:,} pixels"
    found, codec = f"only {taken}" if taken else "none", container.context.name
    return f"{found} of {wanted} frames can be decoded ({codec}): the file is cut or damaged, or beyond this decoder"
