"""The one form that every format is brought into before it becomes a sample.

An entry has the fields of a line of our own JSONL: `video` and `image` (a path or several), or the files
themselves where they lie in a tar; the talk (see `talk.py`); `segments`; `key` or `id`; and anything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from timeviper.datamodules.shards.schema import SchemaError
from timeviper.datamodules.shards.writer import Payload


class Entry(NamedTuple):
    """One sample to be, or what is wrong with it."""

    where: str  # "line 3", "clips/a.mp4": what a message calls it
    fields: dict[str, Any] | SchemaError
    files: Mapping[str, Payload] | None = None
    """By the ending in the tar (`mp4`, `1.jpg`), for those formats whose media have no path of their own."""
