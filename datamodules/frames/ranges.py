"""Which bytes of a file that is far away will be read, as far as it tells itself: so they can be asked for at once.

Files of the mov family list every packet, and their first bytes tell where that list is. Of other formats the packets
are found by reading all of the file, once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:  # which opens files by way of this one
    from timeviper.datamodules.frames.container import Container

Span = tuple[int, int]  # bytes, `[start, stop)`
HEAD = 1 << 12  # bytes in which the list, or what it lists, begins
GAP = 1 << 15  # bytes between two packets that are read over, not around
MARGIN = 3  # packets beyond the last one wanted: only they tell that nothing else is shown before it


class FarFile(Protocol):
    """A file whose bytes are waited for."""

    def expect(self, spans: Iterable[Span]) -> None:
        """These bytes will be read, in this order, in place of what was expected before."""
        ...


def far(source: object) -> FarFile | None:
    """The source, if it is one that wants to know what will be read."""
    return cast(FarFile, source) if getattr(source, "is_far", False) else None


def expect_index(source: object) -> None:
    """Before a file is opened: its list of packets, if its head tells where that is."""
    if file := far(source):
        opened = cast(IO[bytes], source)
        opened.seek(0)
        if span := index_span(opened.read(HEAD), opened.seek(0, 2)):
            file.expect([span])


def expect_all(container: Container) -> None:
    """Before all packets are read."""
    if file := far(container.source):
        opened = cast(IO[bytes], container.source)
        place = opened.tell()
        file.expect([(0, opened.seek(0, 2))])
        opened.seek(place)  # where FFmpeg left it


def expect_packets(container: Container, runs: Iterable[tuple[int, Sequence[int]]]) -> None:
    """Before some frames are read: `runs` of rising time stamps, each with the number of the packet it starts from."""
    if (file := far(container.source)) and container.format.startswith("mov"):
        file.expect(span for first, targets in runs for span in packet_spans(container, first, targets[-1]))


def packet_spans(container: Container, first: int, target: int) -> Iterator[Span]:
    """Where the packets lie that are read to show the frame at the time stamp `target` from packet `first` on."""
    entries = container.stream.index_entries
    if first >= len(entries):  # of a file in fragments, the index grows as they are read
        return
    last = min(bisect_right(entries, target, key=lambda entry: entry.timestamp) + MARGIN, len(entries))
    start = stop = entries[first].pos
    for number in range(first, last):
        entry = entries[number]
        if not 0 <= entry.pos - stop <= GAP:
            yield start, stop
            start = entry.pos
        stop = entry.pos + entry.size
    yield start, stop


def index_span(head: bytes, size: int) -> Span | None:
    """Where the list of packets lies in a file of the mov family of `size` bytes, by the boxes that it begins with."""
    at = 0
    while at + 8 <= len(head):
        length, kind = int.from_bytes(head[at : at + 4], "big"), head[at + 4 : at + 8]
        if length == 1:
            length = int.from_bytes(head[at + 8 : at + 16], "big")
        if not kind.isalnum() or not 8 <= length <= size - at:
            return None
        if kind == b"moov":
            return at, at + length
        at += length
        if kind == b"mdat":
            return (at, size) if at < size else None
    return None
