"""Frames of a video by time stamp: read its timeline, jump once a group of pictures, skip what nobody needs.

Time is counted in ticks of the stream's time base. A container's own claims are used only where they
are reliable: in the mov family the index lists every frame; elsewhere one pass over the packets, without
decoding, finds the real time stamps, because durations are missing or wrong in many formats.
"""

from __future__ import annotations

import os
import sys
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from heapq import heappop, heappush
from itertools import chain, pairwise
from pathlib import Path
from types import TracebackType
from typing import IO

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

MAX_PIXELS = 2**27  # a larger frame (about 16,000 x 8,000) is refused: one alone takes 400 MB as RGB
SEEK_GAIN = 8  # frames that a jump must save; a jump costs about as much as decoding a few small frames

LIMITS = {"max_pixels": str(MAX_PIXELS)}  # also obeyed while a picture is opened to learn its size
CAN_SKIP = {"h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4", "vp8"}  # obey a change between two packets


class VideoError(ValueError):
    """A video that cannot be used: where it is, and why."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where, self.reason = where, reason

    def __reduce__(self) -> tuple[type[VideoError], tuple[str, str]]:
        return VideoError, (self.where, self.reason)  # loader processes send it to the trainer


@dataclass(frozen=True)
class Timeline:
    """What a video stream holds, in ticks of its time base."""

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


class Video:
    """An open video or image whose frames are fetched by time stamp; a context manager.

    Raises `VideoError` for what cannot be opened or has nothing to show.
    """

    def __init__(self, source: str | Path | IO[bytes]) -> None:
        self.source = source
        self.where = str(source if isinstance(source, str | Path) else getattr(source, "name", "video"))
        self._unreadable = sys.maxsize  # number of the first keyframe that cannot be reached
        self._open()
        try:
            self.timeline = self._read_index() or self._scan()
        except BaseException:
            self.container.close()
            raise

    def __enter__(self) -> Video:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.container.close()

    @property
    def is_image(self) -> bool:
        name = self.container.format.name
        return name == "image2" or name.endswith("_pipe")

    @property
    def slack(self) -> float:
        """Seconds by which a caller's duration, perhaps rounded, may exceed what is there."""
        return max(0.5, 0.01 * (self.timeline.end - self.timeline.start) * self.tick)

    def holds(self, duration: float) -> bool:
        """Whether there are that many seconds of video; not so in a file that was cut."""
        return duration <= (self.timeline.end - self.timeline.start) * self.tick + self.slack

    def _open(self) -> None:
        """(Re)open at the first packet, with one decoder thread: the loader's processes are the parallelism."""
        self.container = _open_container(self.source, self.where)
        try:
            self.stream = _video_stream(self.container, self.where)
        except BaseException:
            self.container.close()
            raise
        self.tick = float(self.stream.time_base or 1)  # seconds
        context = self.stream.codec_context
        context.thread_type, context.thread_count = "NONE", 1
        context.options = LIMITS

    def _read_index(self) -> Timeline | None:
        """The timeline from an index that lists every frame; None if there is no such index.

        Entries carry decode times. Keyframes are shown a constant later; `_packets_for` checks it.
        """
        entries, start = self.stream.index_entries, self.stream.start_time
        complete = self.container.format.name.startswith("mov") and 0 < len(entries) == self.stream.frames
        if not complete or start is None or any(entry.is_discard for entry in entries):
            return None  # another container, fragments, or an edit list
        stamps = [entry.timestamp for entry in entries]
        first, last, shift = stamps[0], stamps[-1], start - stamps[0]
        step = (last - first) // (len(stamps) - 1) if len(stamps) > 1 else 1
        end = max(last + shift + step, start + (self.stream.duration or 0))
        keys = [(entry.timestamp + shift, i) for i, entry in enumerate(entries) if entry.is_keyframe]
        if self.stream.codec_context.has_b_frames and any(b - a > 2 * step for a, b in pairwise(stamps)):
            # Frames of varying length out of order: only the last group of pictures tells when it ends.
            self.container.seek(keys[-1][0] if keys else start, stream=self.stream)
            end = max((p.pts + (p.duration or 0) for p in self._packets() if p.pts is not None), default=end)
            self._rewind(start)
        return Timeline(
            start, end, end, last, len(stamps), keys=[pts for pts, _ in keys], positions=[i for _, i in keys]
        )

    def _scan(self) -> Timeline:
        """The timeline from all packets, read once without decoding."""
        packets: list[tuple[int | None, int | None]] = []  # presentation and decode times
        keys: list[tuple[int, int]] = []
        ends = 0.0  # seconds at which the last packet of any stream ends
        for packet in self._packets(every_stream=True):
            if packet.pts is not None:
                ends = max(ends, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index != self.stream.index or packet.is_discard:
                continue
            if packet.is_keyframe and packet.pts is not None:
                keys.append((packet.pts, len(packets)))
            packets.append((packet.pts, packet.dts))
        if not packets:
            raise VideoError(self.where, "holds no frames")
        step = max(round(1 / float(self.stream.average_rate or 25) / self.tick), 1)
        shown = sorted(pts for pts, _ in packets if pts is not None)
        shown = shown or [i * step for i in range(len(packets))]
        if len(shown) > 1:
            step = max((shown[-1] - shown[0]) // (len(shown) - 1), 1)
        if len(set(shown)) < len(shown):  # guesses of the demuxer: evenly spaced is nearer to the truth
            shown = [shown[0] + i * step for i in range(len(shown))]
        end = shown[-1] + step
        declared = (self.container.duration or 0) / av.time_base
        cut = declared > 1.1 * ends + 1  # the header speaks of more than any stream holds
        decoded = [dts for _, dts in packets if dts is not None]
        self._rewind(decoded[0] if decoded else shown[0])
        return Timeline(
            start=shown[0],
            end=end,
            promised=max(shown[0] + round(declared / self.tick), end) if cut else end,
            last_dts=decoded[-1] if decoded else shown[-1],
            count=len(shown),
            keys=[pts for pts, _ in sorted(keys)],
            positions=[position for _, position in sorted(keys)],
            counted=shown
            if (self.container.format.name == "avi" and self.stream.codec_context.has_b_frames) or _unreliable(packets)
            else None,
        )

    def _rewind(self, timestamp: int) -> None:
        try:
            self.container.seek(timestamp, stream=self.stream)
        except FFmpegError:  # some containers cannot seek at all
            self.container.close()
            self._open()

    def _packets(self, every_stream: bool = False) -> Iterator[Packet]:
        """Packets from here on. Damage to the container ends them, as the end of the file does."""
        packets = self.container.demux() if every_stream else self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets)
            except (FFmpegError, StopIteration):
                return
            if packet.size:
                yield packet

    def seconds(self, stamp: int) -> float:
        base = self.stream.time_base or Fraction(1)
        return stamp * base.numerator / base.denominator

    def frames_at(self, targets: Sequence[int]) -> Iterator[tuple[VideoFrame, int, int]]:
        """The frames shown at rising `targets`: frame, time stamp, number of targets that it serves.

        The frame of a target is the last one whose time stamp is not greater. One that cannot be read
        or decoded is left out, with its targets.
        """
        if self.timeline.counted is not None:
            yield from self._count_frames(self.timeline.counted, targets)
            return
        for group, run in self._runs(targets):
            chosen = _choose(self._packets_for(group, run[0]), run, self._shown_until)
            yield from self._decode(chosen)

    def _runs(self, targets: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """Targets that are decoded in one go, with the keyframe (by number) to start from."""
        keys, positions = self.timeline.keys, self.timeline.positions
        start, run = 0, []
        for target in targets:
            group = max(bisect_right(keys, target) - 1, 0)
            reached = (run[-1] - self.timeline.start) // self.timeline.step if run else 0
            if group > start and positions[group] - reached >= SEEK_GAIN:
                if run:
                    yield start, run
                start, run = group, []
            run.append(target)
        if run:
            yield start, run

    def _packets_for(self, group: int, target: int) -> Iterator[Packet]:
        """Packets from keyframe number `group` on, or from an earlier one if that is shown after `target`."""
        back = 1
        while 0 < group < self._unreadable:
            self.container.seek(self.timeline.keys[group], stream=self.stream)
            packets = self._packets()
            key = next((p for p in packets if p.is_keyframe and p.pts is not None), None)
            if key is None:  # the file ends before, or the container cannot seek to its last frames
                self._unreadable = group
            elif key.pts is not None and key.pts <= target:
                return chain([key], packets)
            group, back = max(group - back, 0), 2 * back
            if group == 0:
                self._rewind(self.timeline.start)
        return self._packets() if group == 0 else iter(())

    def _shown_until(self, pts: int, dts: int) -> float:
        """Until when the last frame found is shown: briefly, if the file was cut behind it."""
        if dts < self.timeline.last_dts or self.timeline.promised > self.timeline.end:
            return pts + self.timeline.step
        return self.timeline.end + self.slack / self.tick

    def _decode(self, packets: Iterator[tuple[Packet, int]]) -> Iterator[tuple[VideoFrame, int, int]]:
        """Decode packets up to the last one that serves a target."""
        context = self.stream.codec_context
        others = "NONREF" if context.name in CAN_SKIP else "DEFAULT"
        wanted: dict[int, int] = {}  # time stamp -> targets served
        for packet, serves in chain(packets, [(None, 0)]):  # None drains the decoder
            if packet is not None and packet.pts is not None and serves:
                wanted[packet.pts] = serves
            context.skip_frame = "DEFAULT" if serves else others
            try:
                frames = context.decode(packet)
            except FFmpegError:
                continue
            for frame in frames:
                if frame.pts is not None and frame.pts in wanted:
                    yield frame, frame.pts, wanted.pop(frame.pts)

    def _count_frames(self, shown: list[int], targets: Sequence[int]) -> Iterator[tuple[VideoFrame, int, int]]:
        """Decode everything from the start: the i-th frame out is shown at `shown[i]`."""
        wanted = Counter(max(bisect_right(shown, target) - 1, 0) for target in targets)
        context, number, left = self.stream.codec_context, 0, len(targets)
        for packet in chain(self._packets(), [None]):
            try:
                frames = context.decode(packet)
            except FFmpegError:
                continue
            for frame in frames:
                if serves := wanted[number]:
                    yield frame, shown[number], serves
                    left -= serves
                number += 1
            if not left:
                return


def _choose(
    packets: Iterator[Packet], targets: Sequence[int], shown_until: Callable[[int, int], float]
) -> Iterator[tuple[Packet, int]]:
    """Packets in decode order, each with the number of `targets` that its frame serves; ends with the last.

    A frame is shown until the next time stamp. That one is known as soon as decode times have reached
    it, because no frame is shown before it is decoded: a few packets of look-ahead are enough.
    """
    held: deque[Packet] = deque()  # in decode order
    ahead: list[int] = []  # heap of their time stamps
    serves: dict[int, int] = {}  # decided ones
    served, owed, dts = 0, 0, 0

    def decide(until: float) -> None:
        nonlocal served, owed
        first, pts = served, heappop(ahead)
        while served < len(targets) and targets[served] < until:
            served += 1
        serves[pts] = served - first
        owed += served - first

    for packet in chain(packets, [None]):
        if packet is not None and packet.pts is not None:
            held.append(packet)
            heappush(ahead, packet.pts)
            dts = packet.dts if packet.dts is not None else dts
        while len(ahead) > 1 and (packet is None or min(ahead[1:3]) <= dts):
            decide(until=min(ahead[1:3]))
        if packet is None and ahead:
            decide(until=shown_until(ahead[0], dts))
        while held and held[0].pts in serves:
            count = serves.pop(held[0].pts)
            yield held.popleft(), count
            owed -= count
            if served == len(targets) and not owed:
                return


def _unreliable(packets: Sequence[tuple[int | None, int | None]]) -> bool:
    """Whether packets do not tell when their frames are shown: stamps are missing, repeat or go back."""
    shown = [pts for pts, _ in packets]
    decoded = [dts for _, dts in packets if dts is not None]
    return None in shown or len(set(shown)) < len(shown) or any(b < a for a, b in pairwise(decoded))


def _open_container(source: str | Path | IO[bytes], where: str) -> InputContainer:
    """Open with PyAV; whatever is wrong becomes one `VideoError`."""
    target: str | IO[bytes]
    if isinstance(source, str | Path):
        local = os.path.exists(source)
        if local and os.path.isfile(source) and not os.path.getsize(source):
            raise VideoError(where, "is empty (0 bytes)")
        target = f"file:{source}" if local else str(source)  # a colon in a name is no protocol
    else:
        if not source.seek(0, os.SEEK_END):
            raise VideoError(where, "is empty (0 bytes)")
        source.seek(0)
        target = source
    try:
        return av.open(target, "r", options=LIMITS, metadata_errors="replace")
    except FileNotFoundError as error:
        raise VideoError(where, "no such file") from error
    except PermissionError as error:
        raise VideoError(where, "no permission to read it") from error
    except (FFmpegError, ValueError, OSError) as error:
        detail = getattr(error, "strerror", None) or error
        raise VideoError(where, f"cannot be read as a video or image ({detail})") from error


def _video_stream(container: InputContainer, where: str) -> VideoStream:
    """The first video stream that is not the cover picture of a sound file."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        kinds = sorted({stream.type for stream in container.streams})
        raise VideoError(where, f"has no video stream (only: {', '.join(kinds) or 'nothing'})")
    context = streams[0].codec_context
    if context is None:
        raise VideoError(where, "its codec is unknown to this build of FFmpeg")
    if context.width * context.height > MAX_PIXELS:
        size = f"{context.width} x {context.height}"
        raise VideoError(where, f"frames of {size} pixels are larger than the limit of {MAX_PIXELS:,} pixels")
    return streams[0]
