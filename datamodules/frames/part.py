"""The part of a file that a video is, and what the clock shows where it begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Part(NamedTuple):
    """`[start, end)` of a file, in seconds as a player counts them."""

    start: float = 0.0
    end: float | None = None
    """None: to the end of the file."""
    offset: float = 0.0
    """Time of the first moment: 0, unless the file was cut out of a recording by whose clock one speaks of it."""

    @property
    def cuts(self) -> bool:
        """Whether it is less than the whole file."""
        return self.start > 0 or self.end is not None


def part_of(medium: Mapping[str, Any]) -> Part:
    """What the json says of a medium."""
    end = medium.get("end")
    return Part(
        float(medium.get("start") or 0), None if end is None else float(end), float(medium.get("time_offset") or 0)
    )
