"""Which format a source has: by its ending and by what stands in it, never by guessing."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from timeviper.datamodules.formats.entry import Dialect, Entry, Format
from timeviper.datamodules.formats.folder import FOLDER
from timeviper.datamodules.formats.grounding import GROUNDING, is_grounding
from timeviper.datamodules.formats.table import TABLE
from timeviper.datamodules.formats.tars import TARS
from timeviper.datamodules.formats.text_files import parse_object, read_lines, read_list
from timeviper.datamodules.shards.schema import SchemaError

LISTS, LINES = (".json",), (".jsonl", ".ndjson")
FORMATS: list[Format] = [TABLE, FOLDER, TARS]
# Of lists and lines; the first that matches the first entry. The last takes the rest: our own entries, and LLaVA's.
DIALECTS: list[Dialect] = [GROUNDING, Dialect("json", lambda fields: True, lambda entries: entries)]


def read_entries(source: Path, name: str = "auto") -> tuple[str, Iterator[Entry]]:
    """The name of the format or dialect, and the entries. SchemaError if it is unknown, or not clear which it is."""
    known = [d.name for d in reversed(DIALECTS)] + [f.name for f in FORMATS]
    if name not in ("auto", *known):
        raise SchemaError(f"there is no format {name!r}; known are auto, {', '.join(known)}")
    if dialect := next((d for d in DIALECTS if d.name == name), None):
        if source.is_dir():
            raise SchemaError(f"is a folder, but --format {name} is a file")
        return name, dialect.read(_entries(source))
    if name == "auto" and not source.is_dir() and source.suffix.lower() in LISTS + LINES:
        dialect, entries = _peeked(_entries(source))
        return dialect.name, dialect.read(entries)
    form = _recognised(source) if name == "auto" else next(f for f in FORMATS if f.name == name)
    if source.is_dir() and not form.folders:
        raise SchemaError(f"is a folder, but --format {name} is a file")
    if not source.is_dir() and not form.endings:
        raise _unknown_ending()
    return form.name, form.read(source)


def _recognised(source: Path) -> Format:
    """The one format that matches."""
    matching = [form for form in reversed(FORMATS) if form.matches(source)]
    if len(matching) > 1:
        named = " or ".join(form.name for form in matching)
        holds = " and ".join(form.about for form in matching)
        raise SchemaError(f"holds both {holds}; say with --format which to take: {named}")
    if not matching and not source.is_dir():
        raise _unknown_ending()
    return matching[0] if matching else FOLDER


def _unknown_ending() -> SchemaError:
    known = ", ".join((*LINES, *LISTS, *(ending for form in FORMATS for ending in form.endings)))
    return SchemaError(f"is a file of no known ending ({known}); give a folder, or its format with --format")


def _peeked(entries: Iterator[Entry]) -> tuple[Dialect, Iterator[Entry]]:
    """The dialect that the first readable entry is in, and all entries."""
    seen = []
    for entry in entries:
        seen.append(entry)
        if isinstance(entry.fields, dict):
            break
    first = seen[-1].fields if seen else {}
    fields = first if isinstance(first, dict) else {}
    return next(dialect for dialect in DIALECTS if dialect.matches(fields)), chain(seen, entries)


def _entries(source: Path) -> Iterator[Entry]:
    return _list(source) if source.suffix.lower() in LISTS else _lines(source)


def _lines(source: Path) -> Iterator[Entry]:
    for number, line in read_lines(source):
        try:
            fields = line if isinstance(line, SchemaError) else parse_object(line)
        except SchemaError as error:
            fields = error
        yield Entry(f"line {number}", fields)


def _list(source: Path) -> Iterator[Entry]:
    """The entries of a list, or of an object that is keyed by video."""
    found = read_list(source)
    if isinstance(found, list):
        return (Entry(f"entry {i}", _fields(fields)) for i, fields in enumerate(found))
    if isinstance(found, dict) and found and all(isinstance(v, dict) and _is_keyed(v) for v in found.values()):
        return (Entry(f"entry {video!r}", {"video": video, **fields}) for video, fields in found.items())
    is_object = isinstance(found, dict)
    raise SchemaError(
        f"holds {'an object with ' + ', '.join(list(found)[:8]) if is_object else type(found).__name__}; "
        "needed is a list of entries, or an object of grounding entries keyed by video"
    )


def _is_keyed(fields: dict[str, Any]) -> bool:
    """Whether this can be the value of a video in a grounding file."""
    return is_grounding({"video": "", **fields})


def _fields(found: Any) -> dict[str, Any] | SchemaError:
    return found if isinstance(found, dict) else SchemaError(f"must be an object, got {type(found).__name__}")
