"""Sources, their order, and how they are mixed: pure functions of the recipe and of counters.

A unit is one conversation about one sample. Every unit of a source is drawn once an epoch, in an order
that depends only on the seed, the source's name and the epoch.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from timeviper.datamodules.shards.address import split_query
from timeviper.datamodules.shards.index import Conversation, SampleRecord, ShardIndex


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
        shard = split_query(self.shard)[0] if "?" in self.shard else self.shard  # asked for many times a step
        name = shard.rpartition("/")[2]
        return f"{self.source}/{name}/{self.record.key}#{self.conversation}"

    @property
    def spec(self) -> Conversation:
        return self.record.conversations[self.conversation]


class Source:
    """All units of one source, grouped by shard."""

    def __init__(self, name: str, shards: list[ShardIndex], types: set[str] | None = None) -> None:
        """Keeps the conversations whose type is in `types` (None: all)."""
        self.name = name
        self.shards = shards
        rows = [
            (s, r, c)
            for s, shard in enumerate(shards)
            for r, record in enumerate(shard.samples)
            for c, conversation in enumerate(record.conversations)
            if types is None or conversation.type in types
        ]
        found = (
            sorted({c.type for s in shards for r in s.samples for c in r.conversations}) if types or not rows else []
        )
        if unknown := sorted((types or set()).difference(found)):
            raise ValueError(
                f"data source {name!r} holds no conversation of the types {unknown}; its shards have {found}"
            )
        if not rows:
            raise ValueError(f"data source {name!r} holds no conversation")
        self._rows = np.array(rows, dtype=np.int32)

    def __len__(self) -> int:
        return len(self._rows)

    def conversations(self) -> Iterator[Conversation]:
        """What the index knows of every unit."""
        return (self[i].spec for i in range(len(self)))

    def __getitem__(self, i: int) -> Unit:
        s, r, c = (int(v) for v in self._rows[i])
        return Unit(self.name, self.shards[s].location, self.shards[s].samples[r], c)

    @cached_property
    def _by_shard(self) -> list[np.ndarray]:
        """Row numbers of each shard that has any."""
        edges = np.flatnonzero(np.diff(self._rows[:, 0])) + 1
        return np.split(np.arange(len(self._rows)), edges)

    def epoch(self, seed: int, epoch: int, window: int) -> np.ndarray:
        """`[len]` the order of one epoch: a permutation of shards, then of each run of `window` units.

        The window bounds how many shards are open at once, as a shuffle buffer would, but needs no state.
        """
        rng = np.random.default_rng([seed, zlib.crc32(self.name.encode()), epoch])
        order = np.concatenate([self._by_shard[i] for i in rng.permutation(len(self._by_shard))])
        for start in range(0, len(order), window):
            rng.shuffle(order[start : start + window])
        return order

    def stream(self, seed: int, window: int, epochs: float | None = None) -> Iterator[Unit]:
        """All units, epoch after epoch: for ever, or as many as `epochs` (which need not be whole) allow."""
        left = float("inf") if epochs is None else round(epochs * len(self))
        epoch = 0
        while left > 0:
            for i in self.epoch(seed, epoch, window)[: int(min(left, len(self)))]:
                yield self[i]
            left -= len(self)
            epoch += 1

    def stand_in(self, unit: Unit, attempt: int) -> Unit:
        """A unit to take the place of another that cannot be read: always the same one."""
        return self[zlib.crc32(f"{unit.key}@{attempt}".encode()) % len(self)]


class UsedUp(ValueError):
    """No source with a positive weight has units left."""


class Mixture:
    """Draws from several sources so that their shares follow the weights at every moment.

    Stride scheduling: next is the source that would be least ahead of its share after its next unit. Shares are
    counted in whatever `draw` is told that a unit is worth: 1 for samples, or its tokens. No randomness.
    """

    def __init__(
        self, sources: Mapping[str, Source], seed: int, window: int, epochs: Mapping[str, float | None] | None = None
    ) -> None:
        """`epochs`: how often a source may be gone through at most (None: no bound)."""
        epochs = epochs or {}
        self._streams = {name: s.stream(seed, window, epochs.get(name)) for name, s in sources.items()}
        self._next = {name: next(stream, None) for name, stream in self._streams.items()}
        self._weights: dict[str, float] = {}
        self._passes: dict[str, float] = {}

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Change the shares; a weight of 0 pauses a source, which later goes on where it stopped."""
        active = {n: float(weights[n]) for n in self._streams if weights.get(n, 0) > 0}
        if not active:
            raise ValueError(f"every source has weight 0: {dict(weights)}; give one a positive weight")
        if active != self._weights:
            self._weights = active
            self._passes = dict.fromkeys(active, 0.0)

    def draw(self, worth: Callable[[Unit], float] = lambda _: 1.0) -> Unit:
        """The next unit. Raises `UsedUp` when the sources that are not paused have gone through their epochs."""
        after = {
            name: self._passes[name] + worth(unit) / weight
            for name, weight in self._weights.items()
            if (unit := self._next[name]) is not None
        }
        if not after:
            raise UsedUp(f"the sources {', '.join(self._weights)} have gone through all the epochs that they may")
        name = min(after, key=lambda n: (after[n], n))
        self._passes[name] = after[name]
        unit, self._next[name] = self._next[name], next(self._streams[name], None)
        assert unit is not None
        return unit
