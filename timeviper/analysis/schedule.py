"""The best schedule of drops under a budget, from a table of single drops: exact up to three stages.

A stage lowers the share of vision tokens from r' to r (both of the original number) before a block. With D(p, r) the
loss of a single drop at place p, of the best rule there,

    loss = sum over stages of max(0, D(p, r) - D(p, r'))         D(p, 1) = 0; additive, so a prediction
    cost = sum over blocks l of c_l(r_l)                         r_l: the share that block l sees

Every schedule is looked at: 27 mixers and 8 ratios give 0.2 million, 56 give 1.6 million, in numpy a second. So hard
budgets, several at once and tables without any order are exact, which a greedy or convex search is not.

Letters: n places, R ratios below 1, D blocks, N schedules, k stages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

MOST = 3  # stages

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Table:
    """Single drops."""

    ratios: tuple[float, ...]
    """R shares below 1, falling."""
    loss: Floats
    """`[n, R]`, inf where nothing was measured."""
    layer: Ints
    """`[n, R]`: before which block a stage runs that drops so; rising with n."""
    rule: tuple[tuple[str, ...], ...]
    """`[n][R]`: who chooses."""


@dataclass(frozen=True)
class Step:
    """One stage."""

    layer: int
    keep: float
    rule: str

    def __str__(self) -> str:
        return f"keep {self.keep:g} ({self.rule}) before block {self.layer}"


@dataclass(frozen=True)
class Schedule:
    steps: tuple[Step, ...]
    loss: float
    """Predicted."""
    costs: dict[str, float]
    """Shares of what it takes without any stage, by budget."""

    def __str__(self) -> str:
        return ", ".join(map(str, self.steps)) or "no stage"


class BudgetError(ValueError):
    """No schedule is as cheap as that, and which comes nearest."""


@dataclass
class Schedules:
    """All schedules of a table."""

    table: Table
    loss: Floats
    """`[N]`"""
    costs: dict[str, Floats]
    """`[N]` by budget."""
    places: Ints
    """`[N, k]`, -1 behind the last stage."""
    shares: Ints
    """`[N, k]`: numbers of ratios."""

    def __getitem__(self, i: int) -> Schedule:
        steps = tuple(
            Step(int(self.table.layer[p, r]), self.table.ratios[r], self.table.rule[p][r])
            for p, r in zip(self.places[i].tolist(), self.shares[i].tolist())
            if p >= 0
        )
        return Schedule(steps, float(self.loss[i]), {name: float(cost[i]) for name, cost in self.costs.items()})

    @cached_property
    def size(self) -> Ints:
        """`[N]` stages."""
        return (self.places >= 0).sum(1)

    def best(self, budgets: Mapping[str, float], count: int = 1) -> list[Schedule]:
        """The `count` of least loss within all budgets (shares); of equals the cheaper, then of fewer stages.

        BudgetError names the nearest where there is none.
        """
        fits = np.isfinite(self.loss)
        for name, budget in budgets.items():
            fits &= self.costs[name] <= budget + 1e-12
        if not fits.any():
            raise self._nearest(budgets)
        among = np.flatnonzero(fits)
        cost = np.sum([self.costs[name][among] for name in (budgets or self.costs)], axis=0)
        order = np.lexsort((self.size[among], cost, self.loss[among]))
        return [self[int(i)] for i in among[order[:count]]]

    def _nearest(self, budgets: Mapping[str, float]) -> BudgetError:
        over = np.max([self.costs[name] / budget for name, budget in budgets.items()], axis=0)
        over = np.where(np.isfinite(self.loss), over, np.inf)
        near = self[int(np.lexsort((self.loss, over))[0])]
        wanted = " and ".join(f"budget.{name}={budget:g}" for name, budget in budgets.items())
        takes = " and ".join(f"budget.{name}={_up(near.costs[name])}" for name in budgets)
        keeps = ", ".join(f"{r:g}" for r in self.table.ratios)
        most = f"{self.places.shape[1]} stage{'s' if self.places.shape[1] > 1 else ''}"
        return BudgetError(
            f"{wanted} cannot be met with at most {most} that keep {keeps}: what is left "
            f"takes more. The nearest is {takes}, with {near} (predicted KL {near.loss:.3g}). A smaller keep, such as "
            "keep=.5,.1,.02, goes lower"
        )

    def frontier(self, name: str) -> list[Schedule]:
        """Those that no other beats in both loss and this cost, the cheapest first."""
        order = np.lexsort((self.size, self.costs[name], self.loss))
        order = order[np.isfinite(self.loss[order])]
        cheapest = np.minimum.accumulate(self.costs[name][order])
        first = np.concatenate([[True], cheapest[1:] < cheapest[:-1]])
        return [self[int(i)] for i in order[first][::-1]]


def _up(share: float) -> str:
    """Three digits that are no less."""
    return f"{np.ceil(share * 1000) / 1000:g}"


def all_schedules(table: Table, costs: Mapping[str, Floats], most: int = MOST) -> Schedules:
    """Every schedule of at most `most` stages with rising places and falling ratios, and the one without any.

    costs: `[R + 1, D]` by budget, of each block at keep 1 and at every ratio.
    """
    n, R = table.loss.shape
    sums = {name: np.pad(np.cumsum(c, axis=1), ((0, 0), (1, 0))) for name, c in costs.items()}  # [R + 1, D + 1]
    most = min(most, n, R)
    width = max(most, 1)
    none = np.full((1, width), -1)
    found = [(np.zeros(1), {name: s[:1, -1] for name, s in sums.items()}, none, none)]
    for k in range(1, most + 1):
        places = np.array([*combinations(range(n), k)])[:, None]  # [., 1, k]
        shares = np.array([*combinations(range(R), k)])[None]  # [1, ., k]
        loss = _losses(table.loss, places, shares)
        layers = table.layer[places, shares]
        totals = {name: _costs(s, layers, shares) for name, s in sums.items()}
        rest = np.full((*loss.shape, width - k), -1)
        at, left = (
            np.concatenate([np.broadcast_to(v, layers.shape), rest], -1).reshape(-1, width) for v in (places, shares)
        )
        found.append((loss.ravel(), {name: total.ravel() for name, total in totals.items()}, at, left))
    loss, totals, places, shares = zip(*found)
    joined = {name: np.concatenate([t[name] for t in totals]) for name in sums}
    return Schedules(table, np.concatenate(loss), joined, np.concatenate(places), np.concatenate(shares))


def _losses(table: Floats, places: Ints, shares: Ints) -> Floats:
    """`[., .]`: the sum over stages."""
    after = table[places, shares]
    before = table[places[..., 1:], shares[..., :-1]]  # the same place with what the stage before left
    before = np.where(np.isfinite(before), before, 0.0)
    steps = np.concatenate([after[..., :1], after[..., 1:] - before], -1)
    return np.maximum(steps, 0.0).sum(-1)


def _costs(sums: Floats, layers: Ints, shares: Ints) -> Floats:
    """`[., .]`: what all blocks take, from running sums `[R + 1, D + 1]`."""
    ends = np.concatenate([layers[..., 1:], np.full_like(layers[..., :1], sums.shape[1] - 1)], -1)
    behind = sums[shares + 1, ends] - sums[shares + 1, layers]
    return sums[0, layers[..., 0]] + behind.sum(-1)
