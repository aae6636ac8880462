"""Averages that papers print, from counts and marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt


def m_avg(right: Sequence[int], of: Sequence[int]) -> float:
    """MLVU's M-Avg, 0 to 100: the mean over tasks of their accuracies, whatever their sizes."""
    return 100 * sum(r / n for r, n in zip(right, of)) / len(of)


def pooled(right: Sequence[int], of: Sequence[int]) -> float:
    """0 to 100: every question alike, as VLMEvalKit and TimeViper print for MLVU."""
    return 100 * sum(right) / sum(of)


def g_avg(marks: Mapping[str, Sequence[tuple[float, float]]], truncate: bool = False) -> float:
    """MLVU's G-Avg, 2 to 10: the mean over its two open tasks of the mean sum of a judge's two marks (1 to 5 each).

    truncate: as VLMEvalKit, which cuts marks to whole numbers and pools the tasks.
    """
    sums = {task: [sum(map(int, one)) if truncate else sum(one) for one in each] for task, each in marks.items()}
    if truncate:
        every = [value for each in sums.values() for value in each]
        return sum(every) / len(every)
    return sum(sum(each) / len(each) for each in sums.values()) / len(sums)


def half_width(share: float, n: int) -> float:
    """Half of a 95 % interval in points, of a share of n independent questions: how much a score of a set of this size
    moves by chance, at least (questions of one video are not independent)."""
    return 100 * 1.96 * sqrt(share * (1 - share) / n)
