"""What a capsule's answers are worth: one number with its rule and interval, and all of them together."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Score:
    """One number."""

    kind: str
    """choice, windows, words, captions, dense"""
    measure: str
    """accuracy, mIoU, R1@0.5, CIDEr ..."""
    rule: str
    said: str
    value: float
    low: float
    high: float
    n: int
    """Questions, or groups."""
    official: bool = False
    scale: float = 100.0
    """The most that it can be."""


@dataclass
class Rescored:
    """What `timeviper bench rescore` prints."""

    set: str
    title: str
    questions: int
    asked: int
    """That have a reply."""
    videos: int
    scores: list[Score] = field(default_factory=list)
    baselines: list[Score] = field(default_factory=list)
    answered: list[Score] = field(default_factory=list)
    """The official ones over questions with a reply alone, where some have none."""
    by_label: dict[str, dict[str, tuple[float, int]]] = field(default_factory=dict)
    """The official choice or window score by values of labels, with how many questions."""
    letters: dict[str, tuple[int, int]] = field(default_factory=dict)
    unparsed: list[tuple[str, str]] = field(default_factory=list)
    """Keys and replies that our own reading finds nothing in."""
    finish: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def official(self) -> list[Score]:
        return [score for score in self.scores if score.official]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
