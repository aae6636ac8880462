"""Which format a source has: by its ending and by what stands in it, never by guessing."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from timeviper.datamodules.formats.entry import Entry
from timeviper.datamodules.formats.folder import files_below, read_folder
from timeviper.datamodules.formats.grounding import is_grounding, read_grounding
from timeviper.datamodules.formats.table import read_table
from timeviper.datamodules.formats.tars import COMPRESSED, read_tars
from timeviper.datamodules.formats.text_files import parse_object, read_lines, read_list
from timeviper.datamodules.shards.schema import SchemaError, media_type

FORMATS = {
    "json": "JSONL or a .json list: our entries, or LLaVA's",
    "grounding": "JSON or JSONL of queries with times",
    "table": "CSV or TSV of captions",
    "folder": "media with .json, .txt, .vtt, .srt or .ttml beside",
    "tars": "WebDataset tars",
}
LISTS, LINES, TABLES = (".json",), (".jsonl", ".ndjson"), (".csv", ".tsv")


def read_entries(source: Path, form: str = "auto") -> tuple[str, Iterator[Entry]]:
    """The format and the entries of a source. SchemaError if it is none of FORMATS, or not clear which."""
    if form not in ("auto", *FORMATS):
        raise SchemaError(f"there is no format {form!r}; known are auto, {', '.join(FORMATS)}")
    if source.is_dir():
        return _read_folder(source, form)
    ending = source.suffix.lower()
    if form == "tars" or (form == "auto" and source.name.endswith((".tar", *COMPRESSED))):
        return "tars", read_tars([source], source.parent)
    if form == "table" or (form == "auto" and ending in TABLES):
        return "table", read_table(source)
    if form == "folder" or (form == "auto" and ending not in LISTS + LINES):
        known = ", ".join((*LINES, *LISTS, *TABLES, ".tar"))
        raise SchemaError(f"is a file of no known ending ({known}); give a folder, or its format with --format")
    entries = _list(source) if ending in LISTS else _lines(source)
    if form == "auto":
        form, entries = _peeked(entries)
    return form, read_grounding(entries) if form == "grounding" else entries


def _read_folder(source: Path, form: str) -> tuple[str, Iterator[Entry]]:
    files = files_below(source)
    tars = [path for path in files if path.name.endswith((".tar", *COMPRESSED))]
    if form == "auto":
        if tars and any(media_type(path.name) for path in files):
            raise SchemaError("holds both tars and media files; say with --format which to take: tars or folder")
        form = "tars" if tars else "folder"
    if form not in ("tars", "folder"):
        raise SchemaError(f"is a folder, but --format {form} is a file")
    return form, read_tars(tars, source) if form == "tars" else read_folder(source)


def _peeked(entries: Iterator[Entry]) -> tuple[str, Iterator[Entry]]:
    """The format that the first readable entry has, and all entries."""
    seen = []
    for entry in entries:
        seen.append(entry)
        if isinstance(entry.fields, dict):
            break
    first = seen[-1].fields if seen else {}
    form = "grounding" if isinstance(first, dict) and is_grounding(first) else "json"
    return form, chain(seen, entries)


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
