"""What a video in a shard really is: its packets are counted, no claim of the container is believed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
from av.container import InputContainer
from av.error import FFmpegError

from timeviper.datamodules.shard_tar import SliceFile


@dataclass(frozen=True)
class Probe:
    """Length of a video, from its packets."""

    duration: float  # seconds, from the first frame's time to the end of the last frame
    fps: float  # frames / duration
    frames: int
    keyframe_spacing: float  # seconds, the longest stretch without a keyframe


def probe_media(path: Path, offset: int, size: int) -> Probe:
    """Demux one member to the end, without decoding. ValueError if there is no video in it."""
    with SliceFile(path, offset, size) as file:
        try:
            with av.open(file, "r") as container:
                return _probe(container)
        except FFmpegError as error:
            raise ValueError(f"cannot be opened as a video ({error})") from error


def _probe(container: InputContainer) -> Probe:
    if not container.streams.video:
        raise ValueError("has no video stream")
    stream = container.streams.video[0]
    base = float(stream.time_base or 0)
    packets = [p for p in container.demux(stream) if p.pts is not None and p.size]
    if not packets:
        raise ValueError("has no frames")
    times = sorted(float(p.pts or 0) * base for p in packets)
    # The last frame lasts as long as it says, else as long as the mean of those before it.
    last = max(packets, key=lambda p: p.pts or 0)
    mean = (times[-1] - times[0]) / max(1, len(times) - 1)
    duration = times[-1] - times[0] + (float(last.duration or 0) * base or mean or 1.0)
    keys = sorted(float(p.pts or 0) * base for p in packets if p.is_keyframe)
    gaps = [b - a for a, b in zip(keys, [*keys[1:], times[0] + duration])]
    return Probe(duration, len(packets) / duration, len(packets), max(gaps, default=duration))
