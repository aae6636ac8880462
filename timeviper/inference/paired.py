"""Statistics of two models on the same questions: an interval of their difference, and a test of the flips.

The questions of one video are not independent: a video that a model misreads costs it all of them. So videos are
resampled, not questions (the cluster bootstrap: Davison & Hinkley, Bootstrap Methods, 1997, section 3.8).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES, LEVEL, SEED = 10_000, 0.95, 0
# Clusters below which the interval is too narrow to go without a word: what is meant to hold the truth 95 times of 100
# holds it 88 times with 10 clusters, 92 with 20, 93 with 40 and 95 with 160 (tests/inference/test_compare.py).
FEW = 40
_CHUNK = 1 << 22  # weights held at a time, 32 MB


@dataclass(frozen=True)
class Difference:
    """B against A in one score over n questions, all in the unit of the score."""

    n: int
    clusters: int
    a: float
    b: float
    low: float
    high: float
    """Ends of the interval of `difference`."""

    @property
    def difference(self) -> float:
        return self.b - self.a


@dataclass(frozen=True)
class Flips:
    """Questions that one model alone answers right."""

    only_a: int
    only_b: int

    @property
    def p(self) -> float:
        """Of so uneven a split, if neither model is better: `mcnemar_p`."""
        return mcnemar_p(self.only_a, self.only_b)


def compare_scores(a: Sequence[float], b: Sequence[float], clusters: Sequence[str], seed: int = SEED) -> Difference:
    """Means of paired scores, `[n]` each, and the interval of b - a; `clusters` names the video of each question.

    ValueError without questions, or if the lengths differ.
    """
    if not len(a) == len(b) == len(clusters) or not len(a):
        raise ValueError(f"scores must be paired, got {len(a)}, {len(b)} and {len(clusters)} clusters")
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    x, y = np.asarray(a, float), np.asarray(b, float)
    low, high = bootstrap_interval(y - x, index, seed=seed)
    return Difference(len(x), len(names), float(x.mean()), float(y.mean()), low, high)


def bootstrap_interval(
    values: np.ndarray, clusters: np.ndarray, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = SEED
) -> tuple[float, float]:
    """Percentile interval of the mean of `values` `[n]` when whole clusters are drawn with replacement.

    clusters: `[n]` integers 0..C-1, the cluster of each value, each of them used. A draw's mean is over its questions,
    so a video with more of them weighs more, as in the mean itself. The same seed gives the same interval.
    """
    sums, sizes = np.bincount(clusters, weights=values), np.bincount(clusters)
    count = len(sums)
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // count)
    means = []
    for start in range(0, resamples, rows):
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=min(rows, resamples - start))
        means.append(drawn @ sums / (drawn @ sizes))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mcnemar_p(only_a: int, only_b: int) -> float:
    """Exact two-sided p that so uneven a split of the flips is a fair coin (McNemar 1947); 1 without flips.

    only_a, only_b: questions that one model alone answers right. Takes questions as independent.
    """
    flips, fewer = only_a + only_b, min(only_a, only_b)
    term = total = 1
    for k in range(fewer):  # comb(flips, k + 1) from comb(flips, k): each afresh would take seconds at 6,000 flips
        term = term * (flips - k) // (k + 1)
        total += term
    return min(1.0, 2 * total / 2**flips)  # exact up to here: Python divides whole numbers of any size
