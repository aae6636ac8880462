"""What a check says of a recipe, and the check of single numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from timeviper.config.ranges import Range


@dataclass(frozen=True)
class Finding:
    """What is wrong with one key, what is allowed and what to do."""

    key: str
    message: str


def out_of_range(node: Any, key: str = "", range: Range | None = None) -> Iterator[Finding]:
    """Every number at or below `key` that is not in the range of its field, in the order of the file."""
    prefix = f"{key}." if key else ""
    if dataclasses.is_dataclass(node):
        for item in dataclasses.fields(node):
            own: Range | None = item.metadata.get("range")
            if own is None or own.when(node):
                yield from out_of_range(getattr(node, item.name), f"{prefix}{item.name}", own)
    elif isinstance(node, dict):
        for name, entry in node.items():
            yield from out_of_range(entry, f"{prefix}{name}", range)
    elif range is not None and node is not None and not range.holds(node):
        yield Finding(key, f"must be {range.words}.")
