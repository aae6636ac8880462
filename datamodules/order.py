"""The order of one source, epoch after epoch: a function of seed, name and number, that can begin anywhere.

An epoch is a permutation of the shards, then a shuffle of each run of `window` units, which bounds how many shards are
open at once, as a shuffle buffer would, but needs no state. Nothing here grows with the number of units.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


class ShardEntry(NamedTuple):
    """A shard as the plan knows it. Where it lies is left out: a moved shard is the same."""

    name: str
    units: int
    digest: str
    """Of all that the plan reads of it: keys, lengths and sizes, in their order."""


Listing = tuple[ShardEntry, ...]
"""The shards of a source that have units, in order; units are numbered through them."""


class Sharded(Protocol):
    """What the order of a source depends on."""

    name: str
    counts: NDArray[np.int64]
    """`[shards]` units of each shard that has any."""

    @property
    def listing(self) -> Listing: ...


@dataclass(frozen=True)
class Place:
    """How far a source has been gone through."""

    epoch: int = 0
    position: int = 0
    """Units of the epoch that lie behind."""
    former: str = ""
    """The name of the listing that the epoch began with, where shards have come or gone since."""


def epoch_windows(
    name: str, counts: NDArray[np.int64], seed: int, epoch: int, window: int, start: int = 0
) -> Iterator[Rows]:
    """The units of one epoch from position `start` on, a window at a time; `counts [shards]`, all above 0.

    Windows before it cost 50 ns a unit: they are shuffled for the generator's sake.
    """
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), epoch])
    shards = rng.permutation(len(counts))
    ends = np.cumsum(counts[shards])  # position behind each shard, as they come
    shift = (np.cumsum(counts) - counts)[shards] - (ends - counts[shards])  # from a position to a row
    total, idle = int(ends[-1]), np.arange(min(window, int(ends[-1])))
    for first in range(0, total, window):
        last = min(first + window, total)
        if last <= start:
            rng.shuffle(idle[: last - first])
            continue
        rows = np.arange(first, last)
        rows += shift[np.searchsorted(ends, rows, side="right")]
        rng.shuffle(rows)
        yield rows[max(start - first, 0) :]


class Former:
    """A source as it was when its shards were those of an earlier listing."""

    def __init__(self, source: Sharded, listing: Listing) -> None:
        self.counts = np.array([shard.units for shard in listing], dtype=np.int64)
        self._first = np.cumsum(self.counts) - self.counts
        starts = accumulate((shard.units for shard in source.listing), initial=0)
        now = dict(zip(numbered(source.listing), starts))
        self._now = np.array([now.get(shard, -1) for shard in numbered(listing)], dtype=np.int64)

    @property
    def complete(self) -> bool:
        """Whether every shard is still there."""
        return bool((self._now >= 0).all())

    def rows(self, rows: Rows) -> Rows:
        """Numbers of the same units in the source as it is; -1 for those of shards that are gone or replaced."""
        shard = np.searchsorted(self._first, rows, side="right") - 1
        now = self._now[shard]
        return np.where(now < 0, -1, now + rows - self._first[shard])


class Course:
    """The way through one source from a place on, for ever or as far as its epochs allow."""

    def __init__(
        self,
        source: Sharded,
        seed: int,
        window: int,
        epochs: float | None = None,
        place: Place | None = None,
        former: Former | None = None,
    ) -> None:
        """epochs: how often the source may be gone through; it need not be whole. former: what `place.former` names."""
        self.source, self.seed, self.window, self.epochs = source, seed, window, epochs
        self._blocks = self._ahead(place or Place(), former)
        self._rest: tuple[Rows, Rows, Rows] | None = None

    def take(self, count: int) -> tuple[Rows, Rows, Rows]:
        """The next `count` units, fewer at the end: rows, and for each its epoch and the position behind it."""
        found: list[tuple[Rows, Rows, Rows]] = []
        while count > 0 and (block := self._rest or next(self._blocks, None)):
            self._rest = None
            if len(block[0]) > count:
                self._rest = block[0][count:], block[1][count:], block[2][count:]
                block = block[0][:count], block[1][:count], block[2][:count]
            count -= len(block[0])
            found.append(block)
        if not found:
            none = np.zeros(0, dtype=np.int64)
            return none, none, none
        return tuple(map(np.concatenate, zip(*found)))  # type: ignore[return-value]

    def _ahead(self, place: Place, former: Former | None) -> Iterator[tuple[Rows, Rows, Rows]]:
        epoch, start = place.epoch, place.position
        while True:
            counts = former.counts if former else self.source.counts
            size = int(counts.sum())
            allowed = size if self.epochs is None else min(size, round(self.epochs * size) - epoch * size)
            if allowed <= 0:
                return
            for rows in epoch_windows(self.source.name, counts, self.seed, epoch, self.window, start):
                rows = rows[: max(allowed - start, 0)]
                behind = np.arange(start + 1, start + 1 + len(rows))
                start += len(rows)
                if former:
                    rows = former.rows(rows)
                    rows, behind = rows[rows >= 0], behind[rows >= 0]
                if len(rows):
                    yield rows, np.full(len(rows), epoch), behind
                if start >= allowed:
                    break
            epoch, start, former = epoch + 1, 0, None


T = TypeVar("T", bound=Hashable)


def numbered(things: Iterable[T]) -> Iterator[tuple[T, int]]:
    """Each with how many equal ones came before: shards of several folders may look the same."""
    seen: Counter[Hashable] = Counter()
    for thing in things:
        yield thing, seen[thing]
        seen[thing] += 1


def listing_name(listing: Sequence[ShardEntry]) -> str:
    """What a `Place` calls a listing: 16 hexadecimal digits of all of it."""
    return digest("\n".join(map(repr, map(tuple, listing))).encode())


def digest(content: bytes) -> str:
    """16 hexadecimal digits."""
    return blake2b(content, digest_size=8).hexdigest()
