"""Scores of written answers: exact words, and intervals of time."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

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


@dataclass(frozen=True)
class Scores:
    """How right a set of answers is."""

    accuracy: dict[str, float]
    """Share of right answers, 0 to 1: `overall`, where each question counts once, then by question type."""
    miou: float | None
    """Mean IoU of the intervals, 0 to 1; None where no answer is one."""

    @classmethod
    def of(cls, right: Mapping[str, Sequence[float]], ious: Sequence[float]) -> Scores:
        """right: by type, how right each answer is; ious: of the intervals."""
        everything = [v for values in right.values() for v in values]
        accuracy = {"overall": sum(everything) / max(len(everything), 1)}
        accuracy |= {type: sum(values) / len(values) for type, values in sorted(right.items())}
        return cls(accuracy, sum(ious) / len(ious) if ious else None)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Scores:
        """What `asdict` made; KeyError or TypeError for anything else."""
        return cls(data["accuracy"], data["miou"])


def score(answers: Sequence[Answered]) -> Scores:
    right = {type: [float(a.correct) for a in alike] for type, alike in _by_type(answers).items()}
    return Scores.of(right, [iou for a in answers if (iou := a.iou) is not None])


def chance(answers: Sequence[Answered]) -> Scores:
    """The same scores for answers that are right for another question of the same type, drawn at random.

    The exact expectation over all pairs, not a sample of them. What an answer repeats of its question counts
    as known: in "the ring is red" only "red" is guessed.
    """
    guesses = {type: _without_repeats(alike) for type, alike in _by_type(answers).items()}
    right = {type: _expected(partial(is_right, type), texts) for type, texts in guesses.items()}
    return Scores.of(right, _expected(interval_iou, guesses.get(WHEN, [])))


def _by_type(answers: Sequence[Answered]) -> dict[str, list[Answered]]:
    found: dict[str, list[Answered]] = defaultdict(list)
    for a in answers:
        found[a.type].append(a)
    return found


def _expected(measure: Callable[[str, str], float], texts: Sequence[str]) -> list[float]:
    """For each text, the mean measure of all others in its place."""
    others = max(len(texts) - 1, 1)
    return [
        sum(measure(guess, right) for j, guess in enumerate(texts) if j != i) / others for i, right in enumerate(texts)
    ]


def _without_repeats(answers: Sequence[Answered]) -> list[str]:
    """Right answers of one type without the words that all of them share or that their own question holds.

    Where its question holds all the others, too ("red" to "Is it red or blue?"), those stay.
    """
    if answers[0].type == WHEN:
        return [a.right for a in answers]
    own = [_words(a.right) for a in answers]
    shared = set.intersection(*map(set, own)) if len(own) > 1 else set()
    own = [[word for word in words if word not in shared] for words in own]
    new = [[word for word in words if word not in _words(a.question)] for words, a in zip(own, answers)]
    return [" ".join(guessed or words) for guessed, words in zip(new, own)]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
