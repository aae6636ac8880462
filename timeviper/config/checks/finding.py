"""What a check says of a recipe, and checks of single fields."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What is wrong with one key, what is allowed and what to do."""

    key: str
    message: str


def at_least_one(prefix: str, section: object, names: str) -> Iterator[Finding]:
    """Counts and sizes: every one of the named fields is 1 or more."""
    for name in names.split():
        if getattr(section, name) < 1:
            yield Finding(f"{prefix}.{name}", "must be 1 or more.")
