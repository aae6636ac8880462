"""Scores of written answers: exact words, and intervals of time."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from timeviper.datamodules.when import WHEN, parse_interval


def interval_iou(a: str, b: str) -> float:
    """Intersection over union of two written intervals; 0 if either cannot be read."""
    x, y = parse_interval(a), parse_interval(b)
    if x is None or y is None:
        return 0.0
    shared = max(0.0, min(x[1], y[1]) - max(x[0], y[0]))
    return shared / (x[1] - x[0] + y[1] - y[0] - shared)


def same_words(a: str, b: str) -> bool:
    """Equal up to case, spaces and a final full stop."""
    clean = [" ".join(t.lower().split()).rstrip(" .") for t in (a, b)]
    return clean[0] == clean[1]


@dataclass(frozen=True)
class Answered:
    """One question with what the model wrote and what is right."""

    key: str
    type: str
    written: str
    right: str
    question: str = ""
    """The prompt without its vision tokens."""
    sample: str = ""
    """`lineage.question_digest`: what was asked about which bytes, wherever they lie."""

    @property
    def correct(self) -> bool:
        return is_right(self.type, self.written, self.right)

    @property
    def iou(self) -> float | None:
        """Of the intervals; None where the answer is none."""
        return interval_iou(self.written, self.right) if self.type == WHEN else None

    @property
    def video(self) -> str:
        """The key without the conversation: what several questions share."""
        return self.key.rpartition("#")[0] or self.key


def is_right(type: str, written: str, right: str) -> bool:
    """Exact words; for "when" an overlap (IoU) of at least one half, the field's R1@0.5."""
    return interval_iou(written, right) >= 0.5 if type == WHEN else same_words(written, right)


def _table(scores: dict[str, list[float]], ious: list[float]) -> dict:
    """Accuracy overall (each question counts once) and by type; mean IoU where there are intervals."""
    everything = [v for values in scores.values() for v in values]
    accuracy = {"overall": sum(everything) / max(len(everything), 1)}
    accuracy |= {t: sum(v) / len(v) for t, v in sorted(scores.items())}
    return {"accuracy": accuracy, "miou": sum(ious) / len(ious) if ious else None}


def score(answers: list[Answered]) -> dict:
    """`{"accuracy": {"overall", type...}, "miou"}` of a set of answers."""
    scores: dict[str, list[float]] = defaultdict(list)
    for a in answers:
        scores[a.type].append(float(a.correct))
    return _table(scores, [iou for a in answers if (iou := a.iou) is not None])


def _without_repeats(answers: list[Answered]) -> list[str]:
    """Right answers of one type without the words that all of them share or that their own question holds.

    Where its question holds all the others, too ("red" to "Is it red or blue?"), those stay.
    """
    if answers[0].type == WHEN:
        return [a.right for a in answers]
    shared = set.intersection(*(set(_words(a.right)) for a in answers)) if len(answers) > 1 else set()
    own = [[w for w in _words(a.right) if w not in shared] for a in answers]
    new = [[w for w in words if w not in _words(a.question)] for words, a in zip(own, answers)]
    return [" ".join(guessed or words) for guessed, words in zip(new, own)]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def chance(answers: list[Answered]) -> dict:
    """The same scores for answers that are right for another question of the same type, drawn at random.

    The exact expectation over all pairs, not a sample of them. What an answer repeats of its question counts
    as known: in "the ring is red" only "red" is guessed.
    """
    by_type: dict[str, list[Answered]] = defaultdict(list)
    for a in answers:
        by_type[a.type].append(a)
    scores: dict[str, list[float]] = {}
    ious: list[float] = []
    for type, alike in by_type.items():
        rights = _without_repeats(alike)
        others = max(len(rights) - 1, 1)
        scores[type] = [
            sum(is_right(type, guess, right) for j, guess in enumerate(rights) if j != i) / others
            for i, right in enumerate(rights)
        ]
        if type == WHEN:
            ious = [
                sum(interval_iou(guess, right) for j, guess in enumerate(rights) if j != i) / others
                for i, right in enumerate(rights)
            ]
    return _table(scores, ious)
