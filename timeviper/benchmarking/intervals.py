"""Intervals of scores that are more than a mean: macro means, groups, harmonic means, over videos drawn together.

A score is a function of sums over strata (tasks, say). Its interval redraws whole videos and computes it anew, all
scores on the same draws, so that ten policies cost little more than one (Davison & Hinkley 1997, section 3.8).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from timeviper.inference.paired import LEVEL, RESAMPLES, SEED

_ROWS = 500  # draws at a time

Combine = Callable[[np.ndarray], np.ndarray]
"""Means by stratum `[..., S]` (nan where a draw has none) to a score `[...]`."""


def macro(means: np.ndarray) -> np.ndarray:
    """The mean of the strata that are there; nan without any."""
    there = ~np.isnan(means)
    total, count = np.where(there, means, 0.0).sum(-1), there.sum(-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def f1(means: np.ndarray) -> np.ndarray:
    """Of two strata, precision and recall."""
    p, r = np.nan_to_num(means[..., 0]), np.nan_to_num(means[..., 1])
    return np.where(p + r > 0, 2 * p * r / np.maximum(p + r, 1e-300), 0.0)


@dataclass(frozen=True)
class Tally:
    """What one score is made of: each value in a stratum and a cluster, with a weight."""

    values: np.ndarray
    """`[n]`"""
    weights: np.ndarray
    """`[n]`: 0 for what does not count, 2 for what counts twice."""
    strata: np.ndarray
    """`[n]` 0..S-1"""
    clusters: np.ndarray
    """`[n]` 0..C-1, of all scores alike"""
    combine: Combine = macro

    def sums(self, clusters: int) -> tuple[np.ndarray, np.ndarray]:
        """`[C, S]` each: weighted values, weights."""
        count = int(self.strata.max(initial=0)) + 1
        at = self.clusters * count + self.strata
        shape = (clusters, count)
        total = np.bincount(at, self.weights * self.values, clusters * count).reshape(shape)
        return total, np.bincount(at, self.weights, clusters * count).reshape(shape)

    @property
    def value(self) -> float:
        total, size = (one.sum(0) for one in self.sums(int(self.clusters.max(initial=0)) + 1))
        return float(self.combine(_means(total, size))) if size.any() else 0.0


def tally(
    values: Sequence[float],
    clusters: np.ndarray,
    strata: Sequence[object] | None = None,
    weights: Sequence[float] | None = None,
    combine: Combine = macro,
) -> Tally:
    """strata: any names; None: all in one, so that the score is a plain mean."""
    n = len(values)
    names = [0] * n if strata is None else [str(s) for s in strata]
    index = np.unique(np.asarray(names), return_inverse=True)[1] if n else np.zeros(0, int)
    own = np.ones(n) if weights is None else np.asarray(weights, float)
    return Tally(np.asarray(values, float), own, index.astype(int), np.asarray(clusters, int), combine)


def intervals(
    tallies: Mapping[str, Tally], clusters: int, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = SEED
) -> dict[str, tuple[float, float]]:
    """Percentile interval of each score when `clusters` videos are drawn with replacement."""
    if clusters == 0:
        return {name: (0.0, 0.0) for name in tallies}
    parts = {name: one.sums(clusters) for name, one in tallies.items()}
    found: dict[str, list[np.ndarray]] = {name: [] for name in tallies}
    for drawn in draws(clusters, resamples, seed):
        for name, (total, size) in parts.items():
            found[name].append(tallies[name].combine(_means(drawn @ total, drawn @ size)))
    ends = [(1 - level) / 2, (1 + level) / 2]
    return {name: _between(np.concatenate(each), ends) for name, each in found.items()}


def difference(
    a: Tally, b: Tally, clusters: int, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = SEED
) -> tuple[float, float, float]:
    """b - a with its interval, both on the same draws of videos."""
    sums = [one.sums(clusters) for one in (a, b)]
    found = []
    for drawn in draws(clusters, resamples, seed):
        x, y = (one.combine(_means(drawn @ t, drawn @ s)) for one, (t, s) in zip((a, b), sums))
        found.append(y - x)
    low, high = _between(np.concatenate(found), [(1 - level) / 2, (1 + level) / 2])
    return b.value - a.value, low, high


def draws(clusters: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each cluster is drawn, `[rows, C]` float64 at a time; the same for the same seed."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, _ROWS):
        rows = min(_ROWS, resamples - start)
        picked = rng.integers(0, clusters, (rows, clusters))
        picked += np.arange(rows)[:, None] * clusters
        yield np.bincount(picked.ravel(), minlength=rows * clusters).reshape(rows, clusters).astype(float)


def clustered_se(values: Sequence[float], clusters: Sequence[object]) -> float:
    """Standard error of a mean whose values come in clusters (Miller, arXiv 2411.00640, equation 4):
    sqrt(sum over clusters of (sum of residuals)^2) / n."""
    x = np.asarray(values, float)
    index = np.unique(np.asarray([str(c) for c in clusters]), return_inverse=True)[1]
    return float(np.sqrt((np.bincount(index, x - x.mean()) ** 2).sum()) / len(x))


def plain_se(values: Sequence[float]) -> float:
    """Of independent values, as lmms-eval computes it (n - 1)."""
    x = np.asarray(values, float)
    return float(x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else 0.0


def _means(total: np.ndarray, size: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return total / size


def _between(drawn: np.ndarray, ends: Sequence[float]) -> tuple[float, float]:
    """Quantiles of the draws that have a score: one may hold no video that counts."""
    there = drawn[~np.isnan(drawn)]
    low, high = np.quantile(there, ends) if len(there) else (0.0, 0.0)
    return float(low), float(high)
