"""The one form that every format is brought into before it becomes a sample.

An entry has the fields of a line of our own JSONL: `video` and `image` (a path or several), or the files
themselves where they lie in a tar; the talk (see `talk.py`); `segments`; `key` or `id`; and anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from timeviper.datamodules.shards.schema import SchemaError
from timeviper.datamodules.shards.writer import Payload


class Entry(NamedTuple):
    """One sample to be, or what is wrong with it."""

    where: str  # "line 3", "clips/a.mp4": what a message calls it
    fields: dict[str, Any] | SchemaError
    files: Mapping[str, Payload] | None = None
    """By the ending in the tar (`mp4`, `1.jpg`), for those formats whose media have no path of their own."""
    notes: tuple[str, ...] = ()
    """What was done with it that a person may want to know; the same words for all to which the same was done.

    With notes and no fields, nothing is made of it.
    """
    raw: Any = None
    """All that the source has there, under its own names; None: `fields` say it."""


@dataclass(frozen=True)
class Format:
    """A form in which people have their data. A file of this folder defines one, and `recognise.FORMATS` lists it."""

    name: str
    """What `--format` calls it."""
    about: str
    """What it is, in words that follow "holds"."""
    matches: Callable[[Path], bool]
    """Whether a source is of it, by the ending of a file or by what lies in a folder."""
    read: Callable[[Path], Iterator[Entry]]
    """The entries of a source, in its order. Raises SchemaError where the source as a whole cannot be read."""
    endings: tuple[str, ...] = ()
    """Of its files; empty: a source is a folder."""
    folders: bool = False
    """Whether a source may be a folder."""


@dataclass(frozen=True)
class Dialect:
    """What the entries of a .json or .jsonl file mean; `recognise.DIALECTS` lists them."""

    name: str
    """What `--format` calls it."""
    matches: Callable[[dict[str, Any]], bool]
    """Whether an entry is in it."""
    read: Callable[[dict[str, Any]], dict[str, Any]]
    """One of its entries brought into our form. SchemaError if it cannot be."""
