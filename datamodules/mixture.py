"""How sources are mixed: a pure function of the recipe and of counters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from timeviper.datamodules.order import Course, Former, Place, Rows
from timeviper.datamodules.source import Source, Unit

__all__ = ["Mixture", "Source", "Standing", "Unit", "UsedUp"]


class UsedUp(ValueError):
    """No source with a positive weight has units left."""


UNIT = np.dtype([("source", "i4"), ("row", "i8"), ("frames", "i8"), ("text", "i8"), ("epoch", "i8"), ("behind", "i8")])
"""Units in columns: number of the source by name, number of the unit, what it measures, its place in the source."""

Units = NDArray[np.void]
Measure = Callable[[int, Rows], tuple[NDArray[np.int64], NDArray[np.int64]]]
"""Frames and text tokens of units of a source (by number)."""


@dataclass(frozen=True)
class Standing:
    """Where a mixture stands."""

    places: dict[str, Place] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    passes: dict[str, float] = field(default_factory=dict)
    """What was drawn of each source since the weights hold, over its weight."""


class Mixture:
    """Draws from several sources so that their shares follow the weights at every moment.

    Stride scheduling: next is the source that would be least ahead of its share after its next unit, of equals the
    first by name. Shares are counted in samples, or in whatever `worth` makes of units. No randomness, so that what
    comes next is known ahead, for many units at once: `upcoming`.
    """

    AHEAD = 256  # units that are looked at ahead, at least

    def __init__(
        self,
        sources: Mapping[str, Source],
        seed: int,
        window: int,
        epochs: Mapping[str, float | None] | None = None,
        standing: Standing | None = None,
        formers: Mapping[str, Former] | None = None,
    ) -> None:
        """`epochs`: how often a source may be gone through at most (None: no bound).

        standing: where to begin. formers: by name of the source, what its place calls the former listing.
        """
        epochs, formers, standing = epochs or {}, formers or {}, standing or Standing()
        self.names = sorted(sources)
        self.upcoming: Units = np.zeros(0, UNIT)
        """What is drawn next, as far as it is known."""
        self._after = np.zeros(0)  # of each: its source's pass with it
        self._weights, self._passes = dict(standing.weights), dict(standing.passes)
        self._places = {name: standing.places.get(name, Place()) for name in self.names}
        self._courses = [
            Course(sources[name], seed, window, epochs.get(name), self._places[name], formers.get(name))
            for name in self.names
        ]
        self._queues: list[Units] = [np.zeros(0, UNIT) for _ in self.names]  # taken from the courses, not yet drawn
        self._ended = [False] * len(self.names)
        self._measure: Measure = lambda source, rows: (np.zeros_like(rows), np.zeros_like(rows))
        self._worth: Callable[[Units], NDArray[np.float64]] = lambda units: np.ones(len(units))
        self._drawn = 0

    @property
    def standing(self) -> Standing:
        return Standing(dict(self._places), dict(self._weights), dict(self._passes))

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Change the shares; a weight of 0 pauses a source, which later goes on where it stopped."""
        active = {n: float(weights[n]) for n in self.names if weights.get(n, 0) > 0}
        if not active:
            raise ValueError(f"every source has weight 0: {dict(weights)}; give one a positive weight")
        if active != self._weights:
            self._weights = active
            self._passes = dict.fromkeys(active, 0.0)
            self._forget()

    def set_measure(self, measure: Measure, worth: Callable[[Units], NDArray[np.float64]] | None = None) -> None:
        """What units measure from here on, and what they are worth (None: 1 each)."""
        self._measure = measure
        self._worth = worth or (lambda units: np.ones(len(units)))
        for number, queue in enumerate(self._queues):
            queue["frames"], queue["text"] = measure(number, queue["row"])
        self._forget()

    def extend(self) -> bool:
        """Look further ahead; False where nothing comes any more."""
        known = len(self.upcoming)
        more = max(self.AHEAD, self._drawn)
        shares = {i: self._weights[n] / self._mean_worth(i) for i, n in enumerate(self.names) if n in self._weights}
        taken = np.bincount(self.upcoming["source"], minlength=len(self.names))
        for i, share in shares.items():
            wanted = int(more * share / sum(shares.values())) + 1 + int(taken[i])
            if len(self._queues[i]) < wanted and not self._ended[i]:
                self._take(i, wanted - len(self._queues[i]))
        self._merge([*shares])
        return len(self.upcoming) > known

    def draw(self, count: int) -> Units:
        """Take the first `count` units of `upcoming`."""
        drawn, after = self.upcoming[:count], self._after[:count]
        for i in np.unique(drawn["source"]).tolist():
            (mine,) = np.nonzero(drawn["source"] == i)
            last, name = drawn[mine[-1]], self.names[i]
            place = self._places[name]
            former = place.former if place.epoch == last["epoch"] else ""
            self._places[name] = Place(int(last["epoch"]), int(last["behind"]), former)
            self._passes[name] = float(after[mine[-1]])
            self._queues[i] = self._queues[i][len(mine) :]
        self.upcoming, self._after = self.upcoming[count:], self._after[count:]
        self._drawn = count
        return drawn

    def next(self, count: int) -> Units:
        """The next `count` units. Raises `UsedUp` when sources that are not paused have gone through their epochs."""
        while len(self.upcoming) < count:
            if not self.extend():
                raise UsedUp(self.used_up())
        return self.draw(count)

    def used_up(self) -> str:
        return f"the sources {', '.join(self._weights)} have gone through all the epochs that they may"

    def _forget(self) -> None:
        self.upcoming, self._after = self.upcoming[:0], self._after[:0]

    def _mean_worth(self, source: int) -> float:
        queue = self._queues[source]
        return max(float(self._worth(queue).mean()), 1e-9) if len(queue) else 1.0

    def _take(self, source: int, count: int) -> None:
        rows, epoch, behind = self._courses[source].take(count)
        self._ended[source] = len(rows) < count
        new = np.zeros(len(rows), UNIT)
        new["source"], new["row"], new["epoch"], new["behind"] = source, rows, epoch, behind
        new["frames"], new["text"] = self._measure(source, rows)
        self._queues[source] = np.concatenate([self._queues[source], new])

    def _merge(self, active: list[int]) -> None:
        """The queues by their passes, up to where one that goes on beyond what is here might come in between."""
        after: list[NDArray[np.float64]] = []
        end = (np.inf, len(self.names))
        for i in active:
            name, queue = self.names[i], self._queues[i]
            steps = np.concatenate([[self._passes[name]], self._worth(queue) / self._weights[name]])
            after.append(np.add.accumulate(steps)[1:])  # one after the other, as single draws would add them
            if not self._ended[i]:
                end = min(end, (float(after[-1][-1]), i))
        units, passes = np.concatenate([self._queues[i] for i in active]), np.concatenate(after)
        order = np.lexsort((units["source"], passes))
        units, passes = units[order], passes[order]
        known = (passes < end[0]) | ((passes == end[0]) & (units["source"] <= end[1]))
        count = int(known.sum())  # a prefix, as it is sorted
        self.upcoming, self._after = units[:count], passes[:count]
