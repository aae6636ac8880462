"""How long a video is, how many frames it has and where decoding can start, without decoding anything.

A container's own claims are used only where they are reliable: in the mov family the index lists every
frame. Elsewhere one pass over the packets finds the real time stamps, because durations are missing or
wrong in many formats.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import av

from timeviper.datamodules.frames.container import MAX_PACKETS, Container, VideoError


@dataclass(frozen=True)
class Timeline:
    """What a video stream holds, in units of its time base."""

    start: int
    """Time stamp of the first frame."""
    end: int
    """Where the last frame ends."""
    promised: int
    """Where the container says that it ends, if the file was cut before; else `end`."""
    last_dts: int
    """Decode time stamp of the last packet: who cannot read up to it has a damaged file."""
    count: int
    """Frames."""
    keys: list[int]
    """Time stamps of the frames that decoding can start at, rising."""
    positions: list[int]
    """Position of each of them among the packets."""
    counted: list[int] | None = None
    """Time stamps of all frames, where packets do not tell theirs and frames have to be counted."""

    @property
    def step(self) -> int:
        """Mean time that a frame is shown."""
        return max((self.end - self.start) // self.count, 1)

    @property
    def key_gap(self) -> int:
        """The longest time without a frame that decoding can start at."""
        edges = [self.start, *self.keys[1:], self.end]
        return max(b - a for a, b in pairwise(edges))


def read_timeline(container: Container) -> Timeline:
    """The timeline of a container just opened, which then stands at its first packet again.

    Raises `VideoError` if there are no frames.
    """
    return _from_index(container) or _from_packets(container)


def _from_index(container: Container) -> Timeline | None:
    """From an index that lists every frame; None if there is no such index.

    Its entries carry decode times. Keyframes are shown a constant later, mostly: decoding checks it.
    """
    stream = container.stream
    entries, start = stream.index_entries, stream.start_time
    if len(entries) > MAX_PACKETS:
        raise VideoError(container.where, f"its index lists {len(entries):,} frames, more than {MAX_PACKETS:,}")
    complete = container.format.startswith("mov") and 0 < len(entries) == stream.frames
    if not complete or start is None or any(entry.is_discard for entry in entries):
        return None  # another format, fragments, or an edit list
    stamps = [entry.timestamp for entry in entries]
    shift, last = start - stamps[0], stamps[-1]
    step = (last - stamps[0]) // (len(stamps) - 1) if len(stamps) > 1 else 1
    end = start + (stream.duration or 0)
    if end <= last + shift:  # not told how long the last frame is shown
        end = last + shift + step
    keys = [(entry.timestamp + shift, i) for i, entry in enumerate(entries) if entry.is_keyframe]
    if container.context.has_b_frames and any(b - a > 2 * step for a, b in pairwise(stamps)):
        # Frames of varying length, out of order: only the last group of pictures tells when it ends.
        container.seek(keys[-1][0] if keys else start)
        end = max((p.pts + (p.duration or 0) for p in container.packets() if p.pts is not None), default=end)
        container.rewind(start)
    positions = [i for _, i in keys]
    return Timeline(start, end, end, last, len(stamps), [pts for pts, _ in keys], positions)


def _from_packets(container: Container) -> Timeline:
    """From all packets, read once."""
    shown: list[int | None] = []
    decoded: list[int] = []
    keys: list[tuple[int, int]] = []
    ends = 0.0  # seconds at which the last packet of any stream ends
    for packet in container.packets(every_stream=True):
        if packet.pts is not None:
            ends = max(ends, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index != container.stream.index or packet.is_discard:
            continue
        if packet.is_keyframe and packet.pts is not None:
            keys.append((packet.pts, len(shown)))
        shown.append(packet.pts)
        if packet.dts is not None:
            decoded.append(packet.dts)
    if not shown:
        raise VideoError(container.where, "holds no frames")
    stamps, step, told = _stamps(container, shown, decoded)
    container.rewind(decoded[0] if decoded else stamps[0])
    start, end = stamps[0], stamps[-1] + step
    declared = (container.file.duration or 0) / av.time_base
    cut = declared > 1.1 * ends + 1  # the header speaks of more than any stream holds
    return Timeline(
        start=start,
        end=end,
        promised=max(start + round(declared / container.tick), end) if cut else end,
        last_dts=decoded[-1] if decoded else stamps[-1],
        count=len(stamps),
        keys=[pts for pts, _ in sorted(keys)],
        positions=[position for _, position in sorted(keys)],
        counted=None if told else stamps,
    )


def _stamps(container: Container, shown: list[int | None], decoded: list[int]) -> tuple[list[int], int, bool]:
    """Time stamps of all frames in order, their mean distance, and whether packets tell them rightly."""
    step = max(round(1 / float(container.stream.average_rate or 25) / container.tick), 1)
    stamps = sorted(pts for pts in shown if pts is not None) or [i * step for i in range(len(shown))]
    if len(stamps) > 1:
        step = max((stamps[-1] - stamps[0]) // (len(stamps) - 1), 1)
    if repeated := len(set(stamps)) < len(stamps):  # guesses of the demuxer: even spacing is nearer to the truth
        stamps = [stamps[0] + i * step for i in range(len(stamps))]
    disordered = any(b < a for a, b in pairwise(decoded))
    reordered = container.format == "avi" and container.context.has_b_frames  # avi knows decode times only
    return stamps, step, not (repeated or disordered or reordered or None in shown)
