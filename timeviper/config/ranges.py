"""The range of a number, written at its field: `lr: float = above(0, 1e-5)`.

`checks/finding.py` holds a recipe against them. No range holds for nan, and none without an upper end for infinity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any


@dataclass(frozen=True)
class Range:
    """What a number may be; in a section of names, what each of them may be. Null is no number and passes."""

    holds: Callable[[float], bool]
    words: str
    """What follows "must be"."""
    when: Callable[[Any], bool]
    """Whether the field's section makes any use of the number."""


def ranged(holds: Callable[[float], bool], default: Any, words: str, when: Callable[[Any], bool] | None = None) -> Any:
    """A field with a range."""
    return field(default=default, metadata={"range": Range(holds, words, when or (lambda section: True))})


def at_least(low: int, default: Any, words: str = "", when: Callable[[Any], bool] | None = None) -> Any:
    return ranged(lambda x: low <= x < inf, default, words or f"{low} or more", when)


def above(low: int, default: Any, words: str = "") -> Any:
    return ranged(lambda x: low < x < inf, default, words or f"above {low}")


def share(default: float, words: str = "from 0 to below 1") -> Any:
    return ranged(lambda x: 0 <= x < 1, default, words)
