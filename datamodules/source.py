"""A source and its units. A unit is one conversation about one sample; `order.py` says when it comes."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from timeviper.datamodules.order import Listing, ShardEntry
from timeviper.datamodules.shards.address import split_query
from timeviper.datamodules.shards.column_join import columns_of
from timeviper.datamodules.shards.columns import Columns, Facts
from timeviper.datamodules.shards.index_file import Conversation, SampleRecord, ShardIndex


@dataclass(frozen=True)
class Unit:
    """A reference to one conversation about one sample, with what the index knows of it."""

    source: str
    shard: str
    """Path or URL of the tar. Not its index: units travel to loader processes."""
    record: SampleRecord
    """Of its conversations that of the unit at least."""
    conversation: int
    """Its number in the json."""

    @property
    def key(self) -> str:
        return unit_key(self.source, self.shard, self.record.key, self.conversation)

    @property
    def spec(self) -> Conversation:
        talks = self.record.conversations
        return talks[self.conversation if len(talks) > 1 else 0]


def unit_key(source: str, shard: str, key: str, conversation: int) -> str:
    """What messages, ledgers and tables call a unit."""
    shard = split_query(shard)[0] if "?" in shard else shard  # asked for many times a step
    return f"{source}/{shard.rpartition('/')[2]}/{key}#{conversation}"


class Sizes(NamedTuple):
    """What the plan reads of units without a loop over them, int64 `[units]` but for the seconds."""

    text: np.ndarray
    """UTF-8 bytes of all turns."""
    turns: np.ndarray
    media: np.ndarray
    """How many it is about; the next two are of the only one, and 0 where there is none or several."""
    duration: np.ndarray
    """Seconds; 0 for an image."""
    frames: np.ndarray


class Source:
    """All units of one source, grouped by shard. It holds arrays, shared by the ranks of a node where they come from a
    file, and makes a `Unit` when that is asked for."""

    def __init__(self, name: str, shards: Columns | Iterable[ShardIndex], types: set[str] | None = None) -> None:
        """Keeps the conversations whose type is in `types` (None: all)."""
        self.name = name
        self.shards = shards if isinstance(shards, Columns) else columns_of(shards)
        self._talks: np.ndarray | None = None  # the conversation of each unit; None: they are the same
        if types:
            self._talks = self._of_types(types)
        if not len(self):
            raise ValueError(f"data source {name!r} holds no conversation")
        units = np.diff(self._edges)
        self.counts: NDArray[np.int64] = units[units > 0]
        """`[shards]` units of each shard that has any."""

    def _of_types(self, types: set[str]) -> np.ndarray:
        every = self.shards.arrays["talk_type"]
        found = {self.shards.words[code]: code for code in np.unique(every).tolist()}
        if unknown := sorted(types.difference(found)):
            raise ValueError(
                f"data source {self.name!r} holds no conversation of the types {unknown}; "
                f"its shards have {sorted(found)}"
            )
        return _short(np.flatnonzero(np.isin(every, [found[type] for type in types])))

    @property
    def types(self) -> set[str]:
        """Of its conversations."""
        every = self.shards.arrays["talk_type"]
        codes = np.unique(every if self._talks is None else every[self._talks])
        return {self.shards.words[code] for code in codes.tolist()}

    def __len__(self) -> int:
        return self.shards.talks if self._talks is None else len(self._talks)

    def __getitem__(self, i: int) -> Unit:
        talk, sample, shard = self._place(i)
        first = self.shards.first_talk(sample)
        return Unit(self.name, self.shards.location(shard), self.shards.record(sample), talk - first)

    def planned(self, rows: np.ndarray) -> list[Unit]:
        """Units, int `[n]`, as they travel to loader processes, for a fifth of the time: each record has the
        conversation of its unit alone, but for a Python class, whose lengths are checked there."""
        talks = self._talks_of(rows)
        units = zip(self.shards.places_of(talks), self.shards.records_of(talks), rows.tolist())
        return [Unit(self.name, shard, r, n) if r.members else self[row] for (shard, n), r, row in units]

    def facts(self, rows: np.ndarray) -> Facts:
        """What the plan reads of units, int `[n]`, in one go: each turn, each medium."""
        return self.shards.facts(self._talks_of(rows))

    def _talks_of(self, rows: np.ndarray) -> np.ndarray:
        """Conversations of units."""
        return rows if self._talks is None else self._talks[rows].astype(np.int64)

    def sizes(self, rows: np.ndarray) -> Sizes:
        """Sums of `facts`, one for each unit."""
        facts = self.facts(rows)
        media = np.diff(facts.media_start)
        alone = media == 1
        at = facts.media_start[:-1][alone]
        duration, frames = np.zeros(len(media)), np.zeros(len(media), np.int64)
        duration[alone], frames[alone] = facts.seconds[at], facts.frames[at]
        text = np.add.reduceat(facts.text, facts.turns_start[:-1]) if len(media) else facts.text
        return Sizes(text, np.diff(facts.turns_start), media, duration, frames)

    def key(self, i: int) -> str:
        """`self[i].key`, for a tenth of the time."""
        talk, sample, shard = self._place(i)
        number = talk - self.shards.first_talk(sample)
        return unit_key(self.name, self.shards.location(shard), self.shards.key(sample), number)

    def _place(self, i: int) -> tuple[int, int, int]:
        """Conversation, sample and shard of a unit."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        talk = i if self._talks is None else int(self._talks[i])
        sample = self.shards.sample_of(talk)
        return talk, sample, self.shards.shard_of(sample)

    @cached_property
    def _edges(self) -> np.ndarray:
        """`[shards + 1]` the first unit of each."""
        edges = self.shards.talks_of_shards()
        return edges if self._talks is None else np.searchsorted(self._talks, edges)

    @property
    def own_bytes(self) -> int:
        """Of its index in the memory of this process alone."""
        return (0 if self.shards.is_mapped else self.shards.nbytes) + (0 if self._talks is None else self._talks.nbytes)

    @property
    def listing(self) -> Listing:
        """The shards that have units. The digest is the checksum of all that a shard's index says."""
        return self._listing

    @cached_property
    def _listing(self) -> Listing:
        some = np.flatnonzero(np.diff(self._edges)).tolist()
        names, sums, counts = self.shards.names(), self.shards.arrays["shard_crc32"].tolist(), self.counts.tolist()
        return tuple(ShardEntry(names[i], count, f"{sums[i]:08x}") for i, count in zip(some, counts))

    def stand_ins(self, key: str, attempts: int) -> list[int]:
        """Numbers of the units that may take the place of one that cannot be read: always the same ones."""
        count = len(self)
        return [zlib.crc32(f"{key}@{attempt}".encode()) % count for attempt in range(attempts)]


def _short(rows: np.ndarray) -> np.ndarray:
    """Of half the size, where no number of a unit is larger: every rank has its own."""
    return rows.astype(np.int32) if len(rows) <= np.iinfo(np.int32).max else rows
