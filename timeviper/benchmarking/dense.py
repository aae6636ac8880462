"""Dense captions: sentences with windows against sentences with windows (Krishna et al., ICCV 2017; SODA: Fujita et
al., ECCV 2020).

Precision and recall count windows that meet any of the other side above a threshold; caption scores are of the pairs
that meet (just reaching it counts there), a sentence without a partner meeting a text that nobody wrote.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from timeviper.benchmarking.cider import cider, words
from timeviper.benchmarking.windows import Window, iou, seconds_of

TIOUS = (0.3, 0.5, 0.7, 0.9)
NOBODY = "zqxj wvkp"  # what a sentence without a partner is held against; the field draws letters without a seed

_TIMED = re.compile(
    r"(?:from\s+)?(\d+(?:\.\d+)?)\s*(?:seconds?|s)?\s*(?:-|–|\bto\b|\band\b)\s*(\d+(?:\.\d+)?)\s*(?:seconds?|s)?\s*[,:.\])]?\s*",
    re.IGNORECASE,
)

Pair = Callable[[Sequence[str], Sequence[Sequence[str]]], float]
"""A score of candidates against references, such as `cider`."""


@dataclass(frozen=True)
class Caption:
    """A sentence about a window."""

    window: Window
    text: str


@dataclass(frozen=True)
class DenseScores:
    """Of one video, 0 to 1 apart from CIDEr (0 to 10)."""

    precision: tuple[float, ...]
    """By tIoU."""
    recall: tuple[float, ...]
    cider: float
    """Mean over tIoU, with the documents of this video alone."""
    meteor: float | None = None

    @property
    def f1(self) -> float:
        """Of mean precision and mean recall, as TimeViper has it."""
        return harmonic(float(np.mean(self.precision)), float(np.mean(self.recall)))

    @property
    def mean_f1(self) -> float:
        """Mean of the F1 of each tIoU."""
        return float(np.mean([harmonic(p, r) for p, r in zip(self.precision, self.recall)]))


def harmonic(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def overlaps(said: Sequence[Window], true: Sequence[Window]) -> np.ndarray:
    """IoU `[said, true]`."""
    return np.array([[iou(a, b) for b in true] for a in said]).reshape(len(said), len(true))


def precision_recall(said: Sequence[Window], true: Sequence[Window], tiou: float) -> tuple[float, float]:
    """Shares of the windows on each side that meet one of the other above `tiou`; 0 where a side is empty."""
    if not said or not true:
        return 0.0, 0.0
    met = overlaps(said, true) > tiou
    return float(met.any(1).mean()), float(met.any(0).mean())


def score_dense(said: Sequence[Caption], true: Sequence[Caption], meteor: Pair | None = None) -> DenseScores:
    """One video. meteor: of a corpus, if it is there."""
    ours, theirs = [c.window for c in said], [c.window for c in true]
    rates = [precision_recall(ours, theirs, tiou) for tiou in TIOUS]
    pairs = [caption_pairs(said, true, tiou) for tiou in TIOUS]
    return DenseScores(
        precision=tuple(p for p, _ in rates),
        recall=tuple(r for _, r in rates),
        cider=float(np.mean([_mean(cider, *one) for one in pairs])),
        meteor=None if meteor is None else float(np.mean([_mean(meteor, *one) for one in pairs])),
    )


def caption_pairs(said: Sequence[Caption], true: Sequence[Caption], tiou: float) -> tuple[list[str], list[list[str]]]:
    """Candidates and references: every pair that reaches `tiou`, each sentence without one against nobody's."""
    candidates: list[str] = []
    references: list[list[str]] = []
    for one in said:
        partners = [other.text for other in true if iou(one.window, other.window) >= tiou]
        for text in partners or [NOBODY]:
            candidates.append(" ".join(words(one.text)))
            references.append([" ".join(words(text))])
    return candidates, references


def _mean(score: Pair, candidates: list[str], references: list[list[str]]) -> float:
    return score(candidates, references) if candidates else 0.0


# ---- SODA ------------------------------------------------------------------------------------------------


def soda(said: Sequence[Window], true: Sequence[Window], meteor: np.ndarray) -> tuple[float, float, float]:
    """SODA_c of one video as (precision, recall, F1): the best matching in order of time, where a pair is worth IoU
    times METEOR. meteor: `[said, true]`, 0 to 1. All 0 without predictions."""
    if not len(said) or not len(true):
        return 0.0, 0.0, 0.0
    total = best_in_order(overlaps(said, true) * np.asarray(meteor, float))
    precision, recall = total / len(said), total / len(true)
    return precision, recall, harmonic(precision, recall)


def best_in_order(values: np.ndarray) -> float:
    """The greatest sum of pairs `[i, j]` that go forward on both sides: of crossing pairs one counts."""
    best = np.zeros((values.shape[0] + 1, values.shape[1] + 1))
    for i, row in enumerate(values, 1):
        for j, value in enumerate(row, 1):
            best[i, j] = max(best[i - 1, j], best[i, j - 1], best[i - 1, j - 1] + value)
    return float(best[-1, -1])


# ---- reading ---------------------------------------------------------------------------------------------


_BETWEEN = re.compile(r"\n+|(?<=[.!?;])\s+(?=(?:from\s+)?\d)|,\s+(?:and\s+)?then\s+(?=from\s+\d)", re.IGNORECASE)


def read_captions(reply: str) -> list[Caption]:
    """The sentences of a reply with their windows: "x - y seconds, text" and the like at the beginning of a line or
    sentence, or after ", then from", so that "2 to 3 eggs" inside a caption is none. MM:SS counts as seconds."""
    found: list[Caption] = []
    for line in _BETWEEN.split(seconds_of(reply)):
        line = re.sub(r"^\W*(?:\d+[.)]\s+(?=\d))?\W*", "", line)
        match = _TIMED.match(line)
        if match and float(match[1]) <= float(match[2]) and (text := line[match.end() :].strip(" ,:;-")):
            found.append(Caption((float(match[1]), float(match[2])), text))
    return sorted(found, key=lambda c: c.window)
