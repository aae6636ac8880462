"""Which signatures look like an earlier one: exactly those that comparing each with each would find, among millions.

What is near in all cells of a signature is near along every axis through them, so also along the few axes in which
signatures differ most (principal ones of a sample). A grid over these brings forward the few that may be alike; they
are compared along some more axes, and cell by cell what is left then.

Others are compared only with signatures that have no lookalike themselves, so n copies cost n comparisons: the earlier
half is searched first, then the later half in what the earlier one kept, then what is left of it in itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]

SAMPLE, AXES = 512, 24  # signatures that the axes are found from, and how many axes
COARSE = 5  # axes of the grid at most, beside the first: each doubles the cells that are looked into
FEW = 64  # signatures that are compared each with each
QUERIES, PAIRS, EXACT = 1 << 13, 1 << 17, 1 << 10  # taken at once: some 10 MB each
SLACK = 0.02  # for the rounding of coordinates, in levels: these reach 10,000, with 24 bits


def lookalikes(seen: NDArray[np.uint8], rms: float, cell: float, known: int = 0) -> tuple[Rows, NDArray[np.float32]]:
    """For each of the signatures `[N, ...]` the first row that it looks like, and their RMS difference; -1 and 0: none.

    Alike are two that differ by at most `rms` levels of 255 over all cells and by `cell` in any; found is an earlier
    row without a lookalike. `known`: among the first so many nothing is searched, each counts as one without.
    `seen` may be mapped from a file: it is read once in order, and then the rows that are compared cell by cell.
    """
    if not len(seen):
        return np.empty(0, np.int64), np.empty(0, np.float32)
    search = _Search(seen.reshape(len(seen), -1), rms, cell)
    kept, rows = np.arange(known), np.arange(known, len(seen))
    if known:
        search.in_others(rows, kept)
        rows = rows[search.first[rows] < 0]
    search.among(rows)
    return search.first, search.differences()


class _Search:
    def __init__(self, seen: NDArray[np.uint8], rms: float, cell: float) -> None:
        """seen: `[N, C]`."""
        self.seen, self.cell = seen, cell
        self.squares = int(rms**2 * seen.shape[1] + 1e-9)
        """The largest sum of squared differences."""
        self.reach = self.squares**0.5 + SLACK
        """The largest distance along any axes."""
        self.first: Rows = np.full(len(seen), -1)
        self.at = _coordinates(seen)

    def among(self, rows: Rows) -> Rows:
        """Search each row in the ones before it; which have no lookalike."""
        if len(rows) <= FEW:
            self._each_with_each(rows)
            return rows[self.first[rows] < 0]
        half = len(rows) // 2
        kept, later = self.among(rows[:half]), rows[half:]
        self.in_others(later, kept)
        return np.concatenate([kept, self.among(later[self.first[later] < 0])])

    def in_others(self, rows: Rows, others: Rows) -> None:
        """Search each row in others."""
        grid = _Grid(self.at[others], self.reach)
        best = np.full(len(self.first), len(self.first))
        for begin in range(0, len(rows), QUERIES):
            some = rows[begin : begin + QUERIES]
            for query, point in grid.near(self.at[some]):
                a, b = some[query], others[point]
                sure = self._alike(a, b)
                np.minimum.at(best, a[sure], b[sure])
        found = rows[best[rows] < len(best)]
        self.first[found] = best[found]

    def _each_with_each(self, rows: Rows) -> None:
        later, earlier = _pairs(len(rows))
        a, b = rows[later], rows[earlier]
        sure = self._alike(a, b)
        for row, other in zip(a[sure].tolist(), b[sure].tolist()):  # by row, then by other
            if self.first[row] < 0 and self.first[other] < 0:
                self.first[row] = other

    def _alike(self, a: Rows, b: Rows) -> Rows:
        """Which of the pairs are."""
        near = np.flatnonzero(_distances(self.at[a], self.at[b]) <= self.reach**2)
        sure = [np.empty(0, np.int64)]
        for begin in range(0, len(near), EXACT):
            some = near[begin : begin + EXACT]
            squares, largest = self._differ(a[some], b[some])
            sure.append(some[(squares <= self.squares) & (largest <= self.cell)])
        return np.concatenate(sure)

    def _differ(self, a: Rows, b: Rows) -> tuple[NDArray[np.int32], NDArray[np.int16]]:
        """Of pairs: the sum of squared differences, and the largest difference."""
        away = np.abs(self.seen[a].astype(np.int16) - self.seen[b])
        return np.square(away, dtype=np.int32).sum(axis=1, dtype=np.int32), away.max(axis=1)

    def differences(self) -> NDArray[np.float32]:
        """RMS of each row and the one that it looks like."""
        result = np.zeros(len(self.first), np.float32)
        found = np.flatnonzero(self.first >= 0)
        for begin in range(0, len(found), EXACT):
            some = found[begin : begin + EXACT]
            squares, _ = self._differ(some, self.first[some])
            result[some] = np.sqrt(squares / self.seen.shape[1])
        return result


class _Grid:
    """Points that lie in cells: fine ones along the first axis, along some others so large that two hold any reach.

    Cells are numbered so that those along the first axis follow each other: a row of them is one search.
    """

    def __init__(self, points: NDArray[np.float32], reach: float) -> None:
        self.reach = reach
        # An axis is worth its probes while there are more points left than probes.
        share = np.minimum(1.2 * reach / np.maximum(points.std(axis=0), 1e-6), 1.0)
        coarse, left = 0, len(points) * share[0]
        while coarse < min(COARSE, len(share) - 1) and left > 2**coarse and share[coarse + 1] < 0.8:
            coarse += 1
            left *= share[coarse]
        points = points[:, : coarse + 1]
        self.low = points.min(axis=0)
        span = points.max(axis=0) - self.low
        self.side = np.maximum(2 * reach, span / 500)  # at most 9 bits of a number each
        self.side[0] = max(reach / 4, float(span[0]) / 4000)  # and 12
        self.count = (span / self.side).astype(np.int64) + 1
        places = np.cumprod([self.count[0] + 2, *(self.count[1:] + 2)])
        self.steps = np.array([1, *places[:-1]])
        cells = ((points - self.low) / self.side).astype(np.int64).clip(max=self.count - 1) + 1
        keys = cells @ self.steps
        self.order = np.argsort(keys)
        self.keys = keys[self.order]
        self.corners = np.array([*product((0, 1), repeat=coarse)], np.int64).reshape(2**coarse, coarse) @ self.steps[1:]

    def near(self, queries: NDArray[np.float32]) -> Iterator[tuple[Rows, Rows]]:
        """Pairs of a query and a point, by number; all that are within reach, and some more."""
        queries = queries[:, : len(self.steps)]
        # Number 0 and the last along each axis are empty: nothing that lies outside is near there.
        low = np.floor((queries - self.reach - self.low) / self.side).astype(np.int64) + 1
        high = np.floor((queries[:, :1] + self.reach - self.low[:1]) / self.side[:1]).astype(np.int64) + 1
        low[:, 1:] = low[:, 1:].clip(0, self.count[1:])
        start, end = (x.clip(0, self.count[0] + 1) for x in (low[:, 0], high[:, 0]))
        base = (low[:, 1:] @ self.steps[1:])[:, None] + self.corners
        begins = np.searchsorted(self.keys, (base + start[:, None]).ravel())
        counts = np.searchsorted(self.keys, (base + end[:, None]).ravel(), side="right") - begins
        some = np.flatnonzero(counts)
        begins, counts, owner = begins[some], counts[some], some // len(self.corners)
        upto = np.cumsum(counts)
        first = 0
        while first < len(some):
            before = upto[first - 1] if first else 0
            last = max(int(np.searchsorted(upto, before + PAIRS, side="right")), first + 1)
            many = counts[first:last]
            places = np.arange(many.sum()) + np.repeat(begins[first:last] - (upto[first:last] - many - before), many)
            yield np.repeat(owner[first:last], many), self.order[places]
            first = last


def _coordinates(seen: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Along orthogonal axes `[N, AXES]`, the one in which a sample differs most first: no distance is larger there."""
    sample = seen[np.unique(np.linspace(0, len(seen) - 1, min(SAMPLE, len(seen))).astype(np.int64))].astype(np.float64)
    middle = sample.mean(axis=0)
    axes = np.linalg.svd(sample - middle, full_matrices=False)[2][:AXES].T
    at = np.empty((len(seen), axes.shape[1]), np.float32)
    for begin in range(0, len(seen), QUERIES // 4):
        at[begin : begin + QUERIES // 4] = (seen[begin : begin + QUERIES // 4] - middle) @ axes
    return at


def _distances(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Squared, of rows."""
    away = a - b
    return np.einsum("ij,ij->i", away, away)


@cache
def _pairs(count: int) -> tuple[Rows, Rows]:
    """Of so many things each with each that is before it."""
    return np.tril_indices(count, -1)
