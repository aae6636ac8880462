"""A source: its units, and the order in which they come.

A unit is one conversation about one sample. Every unit of a source is drawn once an epoch, in an order
that depends only on the seed, the source's name and the epoch.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from timeviper.datamodules.shards.address import split_query
from timeviper.datamodules.shards.column_join import columns_of
from timeviper.datamodules.shards.columns import Columns, Facts
from timeviper.datamodules.shards.index_file import Conversation, SampleRecord, ShardIndex

KEPT = 2048  # units of a source that stay objects, 2 MB: those of small sources come again and again


@dataclass(frozen=True)
class Unit:
    """A reference to one conversation about one sample, with what the index knows of it."""

    source: str
    shard: str
    """Path or URL of the tar. Not its index: units travel to loader processes."""
    record: SampleRecord
    conversation: int

    @property
    def key(self) -> str:
        return unit_key(self.source, self.shard, self.record.key, self.conversation)

    @property
    def spec(self) -> Conversation:
        return self.record.conversations[self.conversation]


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
        self._unit = lru_cache(KEPT)(self._made)
        if types:
            self._talks = self._of_types(types)
        if not len(self):
            raise ValueError(f"data source {name!r} holds no conversation")

    def _of_types(self, types: set[str]) -> np.ndarray:
        every = self.shards.arrays["talk_type"]
        found = {self.shards.words[code]: code for code in np.unique(every).tolist()}
        if unknown := sorted(types.difference(found)):
            raise ValueError(
                f"data source {self.name!r} holds no conversation of the types {unknown}; "
                f"its shards have {sorted(found)}"
            )
        return _short(np.flatnonzero(np.isin(every, [found[type] for type in types])))

    def __len__(self) -> int:
        return self.shards.talks if self._talks is None else len(self._talks)

    def __getitem__(self, i: int) -> Unit:
        return self._unit(i)

    def _made(self, i: int) -> Unit:
        talk, sample, shard = self._place(i)
        first = self.shards.first_talk(sample)
        return Unit(self.name, self.shards.location(shard), self.shards.record(sample), talk - first)

    @property
    def types(self) -> set[str]:
        """Of its conversations."""
        every = self.shards.arrays["talk_type"]
        return {self.shards.words[code] for code in np.unique(every if self._talks is None else every[self._talks])}

    def facts(self, rows: np.ndarray) -> Facts:
        """What the plan reads of units, int `[n]`, in one go: each turn, each medium."""
        return self.shards.facts(rows if self._talks is None else self._talks[rows])

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

    @cached_property
    def counts(self) -> np.ndarray:
        """`[shards]` units of each shard that has any."""
        found = np.diff(self._edges)
        return found[found > 0]

    @cached_property
    def identities(self) -> list[tuple[str, int]]:
        """Name and checksum of all that its index says, of each shard that has units: where it lies does not count."""
        some = np.flatnonzero(np.diff(self._edges)).tolist()
        names, sums = self.shards.names(), self.shards.arrays["shard_crc32"]
        return [(names[i], int(sums[i])) for i in some]

    def epoch(self, seed: int, epoch: int, window: int) -> np.ndarray:
        """`[len]` the order of one epoch: a permutation of shards, then of each run of `window` units.

        The window bounds how many shards are open at once, as a shuffle buffer would, but needs no state.
        """
        rng = np.random.default_rng([seed, zlib.crc32(self.name.encode()), epoch])
        order, at = _short(np.empty(len(self), np.int64)), 0
        ends = np.cumsum(self.counts)
        for first, last in np.stack([ends - self.counts, ends], 1)[rng.permutation(len(ends))].tolist():
            order[at : at + last - first] = np.arange(first, last)
            at += last - first
        for start in range(0, len(order), window):
            rng.shuffle(order[start : start + window])
        return order

    def stream(self, seed: int, window: int, epochs: float | None = None) -> Iterator[Unit]:
        """All units, epoch after epoch: for ever, or as many as `epochs` (which need not be whole) allow."""
        left = float("inf") if epochs is None else round(epochs * len(self))
        epoch = 0
        while left > 0:
            for i in self.epoch(seed, epoch, window)[: int(min(left, len(self)))]:
                yield self[int(i)]
            left -= len(self)
            epoch += 1

    def stand_in(self, unit: Unit, attempt: int) -> Unit:
        """A unit to take the place of another that cannot be read: always the same one."""
        return self[zlib.crc32(f"{unit.key}@{attempt}".encode()) % len(self)]


def _short(rows: np.ndarray) -> np.ndarray:
    """Of half the size, where no number of a unit is larger: every rank has its own."""
    return rows.astype(np.int32) if len(rows) <= np.iinfo(np.int32).max else rows
