"""Which format a source has: by its ending and by what stands in it, never by guessing."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from timeviper.datamodules.formats.annotations import entries_of
from timeviper.datamodules.formats.arrow import TABLES, read_arrow
from timeviper.datamodules.formats.charades import CHARADES
from timeviper.datamodules.formats.clip_lists import CLASSES, CLIP_LISTS
from timeviper.datamodules.formats.dataset_info import renamed
from timeviper.datamodules.formats.energon import ENERGON
from timeviper.datamodules.formats.entry import Dialect, Entry, Format
from timeviper.datamodules.formats.fields import present
from timeviper.datamodules.formats.folder import FOLDER
from timeviper.datamodules.formats.grounding import DENSE, GROUNDING, says_more
from timeviper.datamodules.formats.instructions import INSTRUCTIONS
from timeviper.datamodules.formats.table import TABLE
from timeviper.datamodules.formats.tars import TARS
from timeviper.datamodules.formats.text_files import is_lines, parse_object, read_lines, read_list
from timeviper.datamodules.shards.schema import SchemaError

LISTS, LINES = (".json",), (".jsonl", ".ndjson")
FORMATS: list[Format] = [TABLE, TABLES, CHARADES, FOLDER, CLASSES, TARS, ENERGON]
WITHIN = {CLASSES: FOLDER, ENERGON: TARS}  # what is of the first is of the second, too, and is read as the first
# Of lists and lines; of each entry the first that matches. The last takes the rest: our own entries, and LLaVA's.
DIALECTS: list[Dialect] = [
    DENSE,
    INSTRUCTIONS,
    *CLIP_LISTS,
    GROUNDING,
    Dialect("json", lambda fields: True, lambda fields: fields),
]


def read_entries(source: Path, name: str = "auto", ignore: Collection[str] = ()) -> tuple[str, Iterator[Entry]]:
    """The name of the format or dialect, and the entries, without fields that are null or in `ignore`.

    SchemaError if the format is unknown, or if it is not clear which it is.
    """
    known = [d.name for d in reversed(DIALECTS)] + [f.name for f in FORMATS]
    if name not in ("auto", *known):
        raise SchemaError(f"there is no format {name!r}; known are auto, {', '.join(known)}")
    forced = next((d for d in DIALECTS if d.name == name), None)
    if forced or (name == "auto" and not source.is_dir() and source.suffix.lower() in LISTS + LINES):
        if source.is_dir():
            raise SchemaError(f"is a folder, but --format {name} is a file")
        first, entries = _peeked(_present(renamed(source, _entries(source)), ignore))
        return (forced or first).name, (_in_our_form(entry, forced, first) for entry in entries)
    form = _recognised(source) if name == "auto" else next(f for f in FORMATS if f.name == name)
    if source.is_dir() and not form.folders:
        raise SchemaError(f"is a folder, but --format {name} is a file")
    if not source.is_dir() and not form.endings:
        raise _unknown_ending()
    entries = _present(read_arrow(source, ignore) if form is TABLES else form.read(source), ignore)
    if form is TABLES:  # whose rows mean as much as those of a list
        first, entries = _peeked(entries)
        return form.name, (_in_our_form(entry, None, first) for entry in entries)
    return form.name, entries


def _present(entries: Iterator[Entry], ignore: Collection[str]) -> Iterator[Entry]:
    for entry in entries:
        if isinstance(entry.fields, dict):
            fields = {name: value for name, value in present(entry.fields).items() if name not in ignore}
            entry = entry._replace(fields=fields, raw=entry.fields if entry.raw is None else entry.raw)
        yield entry


def _in_our_form(entry: Entry, forced: Dialect | None, first: Dialect) -> Entry:
    """Files mix: a question about a whole video may follow a moment of it. What is neither is read as the first is."""
    if not isinstance(entry.fields, dict):
        return entry
    dialect = forced or _dialect(entry.fields, first)
    try:
        return entry._replace(fields=dialect.read(entry.fields))
    except SchemaError as error:
        return entry._replace(fields=error)


def _dialect(fields: dict[str, Any], first: Dialect) -> Dialect:
    found = next(dialect for dialect in DIALECTS if dialect.matches(fields))
    return first if found is DIALECTS[-1] and not says_more(fields) else found


def _recognised(source: Path) -> Format:
    """The one format that matches."""
    matching = [form for form in reversed(FORMATS) if form.matches(source)]
    matching = [form for form in matching if form not in [WITHIN.get(other) for other in matching]]
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
    """What the file holds decides, not its name: lists are found in .jsonl, and lines in .json."""
    return _lines(source) if is_lines(source) else _list(source)


def _lines(source: Path) -> Iterator[Entry]:
    for number, line in read_lines(source):
        try:
            fields = line if isinstance(line, SchemaError) else parse_object(line)
        except SchemaError as error:
            fields = error
        yield Entry(
            f"line {number}", fields, raw=line if isinstance(line, str) and isinstance(fields, SchemaError) else None
        )


def _list(source: Path) -> Iterator[Entry]:
    """The entries of a list, or of an object of annotations."""
    found = read_list(source)
    if isinstance(found, list):
        return (Entry(f"entry {i}", _fields(fields), raw=fields) for i, fields in enumerate(found))
    if isinstance(found, dict) and (entries := entries_of(found)) is not None:
        return entries
    is_object = isinstance(found, dict)
    raise SchemaError(
        f"holds {'an object with ' + ', '.join(list(found)[:8]) if is_object else type(found).__name__}; "
        "needed is a list of entries, or an object as docs/your-data.md describes them"
    )


def _fields(found: Any) -> dict[str, Any] | SchemaError:
    return found if isinstance(found, dict) else SchemaError(f"must be an object, got {type(found).__name__}")
