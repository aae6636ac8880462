"""The part of a file that a video is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Part = tuple[float, float | None]
"""[start, end) in seconds as a player counts them; None: to the end of the file."""


def part_of(medium: Mapping[str, Any]) -> Part | None:
    """What the json says of a medium; None: all of its file."""
    start, end = medium.get("start"), medium.get("end")
    return None if start is None and end is None else (float(start or 0.0), None if end is None else float(end))
