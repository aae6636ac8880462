"""Frames of a video by time stamp: jump once a group of pictures, skip what nobody needs.

One frame an hour or every frame: packets are read in order, and a jump is made only where it saves
decoding. Damage costs the frames that it hits, because each packet is decoded on its own.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import chain, islice
from math import inf

from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import PictureType, VideoFrame

from timeviper.datamodules.frames.container import Container
from timeviper.datamodules.frames.ranges import expect_all, expect_packets
from timeviper.datamodules.frames.timeline import Timeline

SEEK_GAIN = 8  # frames that a jump must save; a jump costs about as much as decoding a few small frames
CAN_SKIP = {"h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4", "vp8"}  # obey a change between two packets
DEPENDENT = (PictureType.P, PictureType.B)  # pictures that do not stand alone


class _FalseKeyError(Exception):
    """Decoding cannot start at a packet that the container calls a keyframe."""


class FrameReader:
    """Fetches frames from a container that stands at its first packet; once."""

    def __init__(self, container: Container, timeline: Timeline) -> None:
        self.container, self.timeline = container, timeline
        self.unreadable = sys.maxsize  # number of the first keyframe that cannot be reached

    @property
    def slack(self) -> float:
        """Seconds by which a caller's duration, perhaps rounded, may exceed what is there."""
        return max(0.5, 0.01 * (self.timeline.end - self.timeline.start) * self.container.tick)

    def holds(self, duration: float) -> bool:
        """Whether there are that many seconds of video; not so in a file that was cut."""
        return duration <= (self.timeline.end - self.timeline.start) * self.container.tick + self.slack

    def read(self, targets: Sequence[int]) -> Iterator[tuple[VideoFrame, int, int]]:
        """The frames shown at rising `targets`: frame, time stamp, number of targets that it serves.

        The frame of a target is the last one whose time stamp is not greater. One that cannot be read
        or decoded is left out, with its targets.
        """
        if self.timeline.shown is not None:
            yield from self._by_number(self.timeline.shown, targets)
            return
        done = 0
        self._expect(targets)
        try:
            for group, run in self._runs(targets):
                yield from self._decode(self._chosen(group, run), first=group)
                done += len(run)
        except _FalseKeyError:  # nothing of that run was given yet
            self.container.rewind(self.timeline.start)
            yield from self._decode(self._chosen(0, targets[done:]))

    def foresee(self, targets: Sequence[int]) -> list[tuple[int, int]]:
        """What `read` gives if no packet is damaged, from packets alone: time stamp, number of targets that it serves.

        A reader does one of the two, once.
        """
        if (shown := self.timeline.shown) is not None:
            return [(shown[number], serves) for number, serves in sorted(_numbers(shown, targets).items())]
        found: list[tuple[int, int]] = []
        self._expect(targets)
        for group, run in self._runs(targets):
            chosen = self._chosen(group, run)
            found += sorted((packet.pts, serves) for packet, serves in chosen if serves and packet.pts is not None)
        return found

    def _expect(self, targets: Sequence[int]) -> None:
        positions = self.timeline.positions
        expect_packets(self.container, ((positions[group], run) for group, run in self._runs(targets)))

    def _chosen(self, group: int, run: Sequence[int]) -> Iterator[tuple[Packet, int]]:
        """Packets from keyframe number `group` on, each with the number of targets of a run that it serves."""
        return _choose(self._packets(group, run[0]), run, self._shown_until, self.container.shows)

    def every(self) -> Iterator[tuple[VideoFrame, int]]:
        """All frames that can be decoded, in order, each with its time stamp; instead of `read`.

        Of a file that is read strictly, none from a damaged packet to the next keyframe: they are made of its picture.
        """
        shown, ranks = self.timeline.shown, self.timeline.ranks
        packets = self.container.packets()
        last, number, sound = self.timeline.start - 1, 0, -inf
        for packet in chain(packets if ranks is None else _numbered(packets, ranks), [None]):
            if packet is not None and packet.is_keyframe and packet.pts is not None and sound == inf:
                sound = packet.pts  # from here on
            try:
                frames = self.container.decode(packet)
            except FFmpegError:
                if self.container.is_strict and number:
                    sound = inf
                continue
            for frame in frames:
                at = number if ranks is None else frame.pts
                stamp = frame.pts if shown is None or at is None else shown[min(at, len(shown) - 1)]
                number += 1
                if stamp is not None and stamp >= last and (frame.pts is None or frame.pts >= sound):
                    last = stamp
                    yield frame, stamp

    def _runs(self, targets: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """Targets that are decoded in one go, with the keyframe (by number) to start from."""
        keys, positions = self.timeline.keys, self.timeline.positions
        start, run, reached = 0, list[int](), 0
        for target in targets:
            group = max(bisect_right(keys, target) - 1, 0)
            if group > start and positions[group] - reached >= SEEK_GAIN:
                if run:
                    yield start, run
                start, run = group, []
            run.append(target)
            # From the keyframe before: the mean step in ticks of a millisecond is 1% off, in an hour 1,000 frames.
            if keys:
                reached = positions[group] + (target - keys[group]) // self.timeline.step
        if run:
            yield start, run

    def _packets(self, group: int, target: int) -> Iterator[Packet]:
        """Packets from keyframe number `group` on, or from an earlier one if that is shown after `target`."""
        back = 1
        while 0 < group < self.unreadable:
            key, packets = None, self.container.packets()
            if self.container.seek(self.timeline.keys[group]):
                key = next((p for p in packets if p.is_keyframe and p.pts is not None), None)
            if key is None:  # the file ends before, or the container cannot seek to its last frames
                self.unreadable = group
            elif key.pts is not None and key.pts <= target:
                return chain([key], packets)
            group, back = max(group - back, 0), 2 * back
            if group == 0:
                self.container.rewind(self.timeline.start)
        return self.container.packets() if group == 0 else iter(())

    def _shown_until(self, pts: int, dts: int) -> float:
        """Until when the last frame found is shown: briefly, if the file was cut behind it."""
        if dts < self.timeline.last_dts or self.timeline.promised > self.timeline.end:
            return pts + self.timeline.step
        return self.timeline.end + self.slack / self.container.tick

    def _decode(self, packets: Iterator[tuple[Packet, int]], first: int = 0) -> Iterator[tuple[VideoFrame, int, int]]:
        """Decode packets up to the last one that serves a target. _FalseKeyError, before it gives any frame, if the
        first packet should be keyframe number `first`, not 0, and shows no picture that stands alone."""
        context = self.container.context
        others = "NONREF" if context.name in CAN_SKIP else "DEFAULT"
        wanted: dict[int, int] = {}  # time stamp -> targets served
        key, sure = None, first == 0
        for packet, serves in chain(packets, [(None, 0)]):  # None drains the decoder
            if packet is not None and packet.pts is not None and serves:
                wanted[packet.pts] = serves
            if key is None and packet is not None:
                key = packet.pts
            context.skip_frame = "DEFAULT" if serves or not sure else others
            try:
                frames = self.container.decode(packet)
            except FFmpegError:
                sure = sure or (packet is not None and packet.pts == key)  # a damaged keyframe is one
                continue
            for frame in frames:
                if frame.pts is not None and not sure and key is not None and frame.pts >= key:
                    if frame.pts > key or frame.pict_type in DEPENDENT:
                        raise _FalseKeyError
                    sure = True
                if frame.pts is not None and frame.pts in wanted:
                    yield frame, frame.pts, wanted.pop(frame.pts)
        if not sure and wanted:
            raise _FalseKeyError

    def _by_number(self, shown: list[int], targets: Sequence[int]) -> Iterator[tuple[VideoFrame, int, int]]:
        """By the numbers of frames, where the time stamps of packets mislead: the whole file is read from its start.

        Where packets tell the order at least, only groups of pictures with wanted frames are decoded.
        """
        wanted, ranks = _numbers(shown, targets), self.timeline.ranks
        expect_all(self.container)
        if ranks is None:
            yield from self._count(shown, wanted)
            return
        spans = _spans(ranks, self.timeline.positions, wanted)
        packets, at, past = _numbered(self.container.packets(), ranks), 0, -1
        try:
            for first, end in spans:
                yield from self._numbers(islice(packets, first - at, end - at), shown, wanted, first)
                at, past = end, max(past, *ranks[first:end])
        except _FalseKeyError:  # nothing of that row was given yet
            self.container.rewind(None)
            left = Counter({number: serves for number, serves in wanted.items() if number > past})
            packets = _numbered(self.container.packets(), ranks)
            yield from self._numbers(islice(packets, spans[-1][1]), shown, left)

    def _numbers(
        self, packets: Iterator[Packet], shown: list[int], wanted: Counter[int], first: int = 0
    ) -> Iterator[tuple[VideoFrame, int, int]]:
        """`_decode` packets whose time stamps are numbers, and be ready for others."""
        chosen = ((packet, 0 if packet.pts is None else wanted[packet.pts]) for packet in packets)
        for frame, number, serves in self._decode(chosen, first):
            yield frame, shown[number], serves
        self.container.context.flush_buffers()

    def _count(self, shown: list[int], wanted: Counter[int]) -> Iterator[tuple[VideoFrame, int, int]]:
        """Decode everything from the start: the i-th frame out is shown at `shown[i]`."""
        number, left = 0, sum(wanted.values())
        for packet in chain(self.container.packets(), [None]):
            try:
                frames = self.container.decode(packet)
            except FFmpegError:
                continue
            for frame in frames:
                if serves := wanted[number]:
                    yield frame, shown[number], serves
                    left -= serves
                number += 1
            if not left:
                return


def _numbers(shown: list[int], targets: Sequence[int]) -> Counter[int]:
    """The numbers of the frames that are shown at `targets`, each with how many of these it serves."""
    return Counter(max(bisect_right(shown, target) - 1, 0) for target in targets)


def _numbered(packets: Iterator[Packet], ranks: list[int]) -> Iterator[Packet]:
    """Packets with the numbers of their frames for time stamps: decoders hand them on to the frames."""
    for packet, rank in zip(packets, ranks):
        packet.pts = packet.dts = rank if rank >= 0 else None
        yield packet


def _spans(ranks: list[int], keys: list[int], wanted: Counter[int]) -> list[tuple[int, int]]:
    """Rows of packets, first and past the last, to decode for the wanted frames."""
    keys, spans = sorted(keys), []
    for _, packet in sorted((rank, n) for n, rank in enumerate(ranks) if wanted[rank]):
        key = bisect_right(keys, packet) - 1
        while key > 0 and ranks[keys[key]] > ranks[packet]:  # shown before the keyframe that it follows
            key -= 1
        first, end = keys[key] if key >= 0 else 0, packet + 1
        while spans and first <= spans[-1][1]:
            before = spans.pop()
            first, end = min(first, before[0]), max(end, before[1])
        spans.append((first, end))
    return spans


def _choose(
    packets: Iterator[Packet],
    targets: Sequence[int],
    shown_until: Callable[[int, int], float],
    shows: Callable[[Packet], bool],
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
            if shows(packet):
                heappush(ahead, packet.pts)
            dts = packet.dts if packet.dts is not None else dts
        while len(ahead) > 1 and (packet is None or min(ahead[1:3]) <= dts):
            decide(until=min(ahead[1:3]))
        if packet is None and ahead:
            decide(until=shown_until(ahead[0], dts))
        while held and (held[0].pts in serves or not shows(held[0])):
            first = held.popleft()
            count = serves.pop(first.pts, 0) if shows(first) and first.pts is not None else 0
            yield first, count
            owed -= count
            if served == len(targets) and not owed:
                return
