"""How long a video is, how many frames it has and where decoding can start; nearly always without decoding.

A container's own claims are used only where they are reliable: in the mov family the index lists every
frame. Elsewhere one pass over the packets finds the real time stamps, because durations are missing or
wrong in many formats. The clock is a player's: it goes on where recordings were joined, the last frame stays
as long as the file says, or until the sound ends, and what no decoder can show is not there.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, pairwise

import av
from av.error import FFmpegError

from timeviper.datamodules.frames.container import MAX_PACKETS, Container, VideoError
from timeviper.datamodules.frames.ranges import expect_all, expect_packets
from timeviper.datamodules.frames.scan import Scan, scan

HOLD = 0.5  # seconds by which sound must outlast the picture to hold it; encoders pad it by some hundredths
MAX_REPEATED = 0.75  # share of time stamps that are there twice; with more they are a demuxer's guesses
STATED = 0.05  # by which the rate that a container states may differ from that of guessed time stamps


@dataclass(frozen=True)
class Timeline:
    """What a video stream holds, in units of its time base."""

    start: int
    """Time stamp of the first frame that can be shown."""
    last: int
    """Time stamp of the last one."""
    end: int
    """Until when the last frame is shown."""
    promised: int
    """Where the container says that it ends, if the file was cut before; else `end`."""
    last_dts: int
    """Decode time stamp of the last packet: who cannot read up to it has a damaged file."""
    count: int
    """Frames that are shown."""
    keys: list[int]
    """Time stamps of the frames that decoding can start at, rising."""
    positions: list[int]
    """Position of each of them among the packets."""
    picture_end: int
    """`end` without the sound that holds the last frame."""
    shown: list[int] | None = None
    """Time stamps of all frames, where those of the packets are not the ones to show them at."""
    ranks: list[int] | None = None
    """With `shown`: number there of each packet's frame, -1 of none. Without them frames are counted as they come."""

    @property
    def step(self) -> int:
        """Mean time from a frame to the next."""
        if self.count > 1:
            return max((self.last - self.start) // (self.count - 1), 1)
        return max(self.end - self.start, 1)

    @property
    def key_gap(self) -> int:
        """The longest time without a frame that decoding can start at; the last frame's own time costs nothing."""
        edges = [self.start, *self.keys[1:], min(self.last + self.step, self.end)]
        return max(b - a for a, b in pairwise(edges))


def read_timeline(container: Container) -> Timeline:
    """The timeline of a container just opened, which then stands at its first packet again.

    Raises `VideoError` if there are no frames.
    """
    if container.is_image:  # the first frame, whenever that is
        return Timeline(0, 0, 1, 1, 0, 1, [0], [0], 1, shown=[0])
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
    if not complete or start is None or any(entry.is_discard for entry in entries) or not entries[0].is_keyframe:
        return None  # another format, fragments, an edit list, or a start that cannot be shown
    stamps = [entry.timestamp for entry in entries]
    if any(b <= a for a, b in pairwise(stamps)):
        return None
    shift, last = start - stamps[0], stamps[-1]
    step = (last - stamps[0]) // (len(stamps) - 1) if len(stamps) > 1 else 1
    end = start + (stream.duration or 0)
    if end <= last + shift:  # not told how long the last frame is shown
        end = last + shift + step
    keys = [(entry.timestamp + shift, i) for i, entry in enumerate(entries) if entry.is_keyframe]
    shown = last + shift
    if container.context.has_b_frames and any(b - a > 2 * step for a, b in pairwise(stamps)):
        # Frames of varying length, out of order: only the last group of pictures tells when it ends.
        expect_packets(container, [(keys[-1][1] if keys else 0, [last])])
        container.seek(keys[-1][0] if keys else start)
        packets = [p for p in container.packets() if p.pts is not None]
        end = max((p.pts + (p.duration or 0) for p in packets if p.pts is not None), default=end)
        shown = max((p.pts for p in packets if p.pts is not None), default=shown)
        container.rewind(start)
    sound = max((_end_of_sound(s, start * container.tick) for s in container.file.streams.audio), default=0.0)
    held = _held(container, end, sound)
    positions = [i for _, i in keys]
    return Timeline(start, shown, held, held, last, len(stamps), [pts for pts, _ in keys], positions, end)


def _end_of_sound(stream: av.AudioStream, start: float) -> float:
    """Seconds at which a stream of sound ends, as the container says."""
    if stream.duration is None or stream.time_base is None:
        return 0.0
    return float(((stream.start_time or 0) + stream.duration) * stream.time_base)


def _held(container: Container, end: int, sound: float) -> int:
    """Until when the last frame is shown: a player leaves it there until the sound ends, at that second."""
    return max(round(sound / container.tick), end) if sound - end * container.tick > HOLD else end


def _from_packets(container: Container) -> Timeline:
    """From all packets, read once."""
    expect_all(container)
    found = scan(container)
    if found.leads:
        container.rewind(None)
        if (first := _first_shown(container)) is not None:
            found.hide_before(first)
    shown, told = _times(container, found)
    if not shown:
        raise VideoError(container.where, "holds no frames")
    # What a program stream does not stamp, its reader guesses, differently after each seek.
    odd = found.jumped or found.disordered or len(set(shown)) < len(shown) or container.format == "mpeg"
    direct = told and not odd
    container.rewind(found.first if direct else None)
    start, last, count = shown[0], shown[-1], len(shown)
    step = (last - start) // (count - 1) if count > 1 else container.usual
    own = last + (found.lasting if told and found.lasting else max(step, 1))
    end = own if found.jumped else _held(container, own, found.end_of_sound)
    declared = (container.file.duration or 0) / av.time_base
    cut = declared > 1.1 * found.ends + 1 and not found.jumped  # the header speaks of more than any stream holds
    if cut and container.is_whole:  # so the last frame stays
        own = end = max(start + round(declared / container.tick), end)
        cut = False
    keys = sorted((s, n) for n in found.keys if (s := found.stamps[n]) is not None and s >= start)
    return Timeline(
        start=start,
        last=last,
        end=end,
        promised=max(start + round(declared / container.tick), end) if cut else end,
        last_dts=last if found.last_dts is None else found.last_dts,
        count=count,
        keys=[stamp for stamp, _ in keys],
        positions=[number for _, number in keys],
        picture_end=own,
        shown=None if direct else shown,
        ranks=found.ranks() if told and not direct else None,
    )


def _first_shown(container: Container) -> int | None:
    """Time stamp of the first frame that comes out of the decoder: of a recording that was cut, it is no packet's."""
    for packet in chain(container.packets(), [None]):
        try:
            frames = container.decode(packet)
        except FFmpegError:
            continue
        for frame in frames:
            return frame.pts
    return None


def _times(container: Container, found: Scan) -> tuple[list[int], bool]:
    """Time stamps of all frames in order, and whether packets tell them rightly."""
    visible = found.visible
    known = sorted(s for n in visible if (s := found.stamps[n]) is not None)
    allowed = 0 if container.leaps else MAX_REPEATED  # packets of broadcasts need not all be stamped
    told = len(known) == len(visible) and not container.is_bare
    if told and len(known) - len(set(known)) <= allowed * len(known):
        return known, not container.is_reordered
    first, step = known[0] if known else 0, container.usual
    # Even spacing is nearer to the truth than a demuxer's guesses, and a rate that they nearly have nearer still.
    if len(known) > 1 and known[-1] > first and not container.is_bare:
        mean = max((known[-1] - first) // (len(visible) - 1), 1)
        step = step if abs(mean - step) < STATED * step else mean
    return [first + i * step for i in range(len(visible))], False
