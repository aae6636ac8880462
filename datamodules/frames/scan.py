"""What the packets of a file say, read once: time stamps on one clock, keyframes, and where each stream ends.

Recordings that were joined, and clocks that wrap, begin again in the middle. Their packets go on here where the ones
before ended, by the rule of FFmpeg's own tools: a decode time that falls back by more than 0.1 s is a jump, and in
formats of broadcasts also one that leaps by more than 10 s.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from av.packet import Packet

from timeviper.datamodules.frames.container import Container

BACK, LEAP = 0.1, 10.0  # seconds


@dataclass
class Scan:
    """Packets of the video stream, by number in decode order."""

    stamps: list[int | None] = field(default_factory=list)
    """When each is shown, in ticks on one clock; None where the packet does not say."""
    hidden: set[int] = field(default_factory=set)
    """Packets that show nothing."""
    keys: list[int] = field(default_factory=list)
    """Packets that decoding can start at and that say when they are shown."""
    first: int | None = None
    """Decode time of the first packet, on the container's clock."""
    last_dts: int | None = None
    jumped: bool = False
    disordered: bool = False
    """Some decode time is smaller than the one before, if only a little."""
    lasting: int = 0
    """For how long the packet says that the last frame is shown; 0 if it does not."""
    ends: float = 0.0
    """Seconds at which the last packet of any stream ends, on the container's clock; so also the next."""
    end_of_sound: float = 0.0

    @property
    def visible(self) -> list[int]:
        return [n for n in range(len(self.stamps)) if n not in self.hidden]

    @property
    def leads(self) -> bool:
        """Whether packets come, or are to be shown, before the first that decoding can start at."""
        if not self.keys:
            return False
        key = self.stamps[self.keys[0]]
        early = (s for n, s in enumerate(self.stamps) if n not in self.hidden and s is not None)
        return self.visible[0] < self.keys[0] or (key is not None and any(s < key for s in early))

    def hide_before(self, stamp: int) -> None:
        """Packets that would be shown before `stamp` show nothing."""
        self.hidden |= {n for n, s in enumerate(self.stamps) if s is not None and s < stamp}

    def ranks(self) -> list[int]:
        """Of all packets, in the order in which they are shown; -1: not at all."""
        ranks = [-1] * len(self.stamps)
        told = [(s, n) for n in self.visible if (s := self.stamps[n]) is not None]
        for rank, (_, n) in enumerate(sorted(told)):
            ranks[n] = rank
        return ranks


def scan(container: Container) -> Scan:
    """Read all packets of all streams; the container is at its end then."""
    found = Scan()
    latest, before, offset = None, None, 0
    leaps, edits, reordered = container.leaps, container.has_edits, container.is_reordered
    ends: dict[int, tuple[int, Packet]] = {}  # of each stream, in its ticks: fractions are slow
    for packet in container.packets(every_stream=True):
        duration = packet.duration or 0
        if packet.pts is not None:
            end, so_far = packet.pts + duration, ends.get(packet.stream_index)
            if so_far is None or end > so_far[0]:
                ends[packet.stream_index] = end, packet
        if packet.stream_index != container.stream.index:
            continue
        number, now = len(found.stamps), packet.dts
        if now is not None:
            if found.first is None:
                found.first = now
            if before is not None:
                ahead = (now - before) * container.tick
                if (ahead < -BACK and not edits) or (leaps and ahead > LEAP):
                    offset += before + container.usual - now
                    found.jumped = True
                found.disordered |= now < before
            before = found.last_dts = now
        stamp = packet.dts if reordered else packet.pts
        stamp = None if stamp is None else stamp + offset
        found.stamps.append(stamp)
        if not container.shows(packet):
            found.hidden.add(number)
        elif stamp is not None:
            if packet.is_keyframe:
                found.keys.append(number)
            if latest is None or stamp >= latest:
                latest, found.lasting = stamp, duration
    for ticks, packet in ends.values():
        end = float(ticks * packet.time_base)
        found.ends = max(found.ends, end)
        if packet.stream.type == "audio":
            found.end_of_sound = max(found.end_of_sound, end)
    return found
