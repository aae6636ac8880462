"""A table of captions or of questions: CSV or TSV with a line of column names, one sample a row.

As programs of offices write it: any of four separators (also named in a first line `sep=;`), a byte order mark, UTF-8
or UTF-16, line ends of any system, cells of several paragraphs.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from timeviper.datamodules.formats.clip import NOTHING
from timeviper.datamodules.formats.clip_lists import CLIP_LISTS
from timeviper.datamodules.formats.entry import Dialect, Entry, Format
from timeviper.datamodules.formats.fields import MEDIA, plain
from timeviper.datamodules.shards.schema import MAX_JSON, SchemaError, media_type

DELIMITERS = ",\t;|"
SEPARATOR = re.compile(r'"?sep=(.)"?', re.IGNORECASE)
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}

# Plain names by which a column is known; any other column is kept as a field, and may be one that is used.
COLUMNS = {
    "video": ("video", *MEDIA["video"], "clip"),
    "image": ("image", *MEDIA["image"]),
    "path": ("path", "file", "filename", "filepath", "media", "mediapath"),
    "caption": ("caption", "text", "description", "sentence"),
    "question": ("question",),
    "answer": ("answer",),
}


def read_table(path: Path) -> Iterator[Entry]:
    """Every row as an entry. SchemaError if the columns are not clear: it lists those that were found."""
    lines = _lines(path)
    head = next(((n, line) for n, line in lines if line.strip()), (1, ""))
    if stated := SEPARATOR.fullmatch(head[1].strip()):
        head = next(lines, head)
    delimiter = (
        stated[1] if stated else max(DELIMITERS, key=lambda d: (len(_roles(_split(head[1], d))), head[1].count(d)))
    )
    names = _split(head[1], delimiter)
    known = next((dialect for dialect in CLIP_LISTS if dialect.matches(dict.fromkeys(names))), None)
    roles = {} if known else _checked(names)
    for number, taken, row in _rows(lines, delimiter, len(names)):
        whole = taken if isinstance(row, SchemaError) else dict(zip(names, row))
        if isinstance(row, SchemaError):
            fields = row
        else:
            fields = _published(known, names, row) if known else _fields(names, roles, row)
        yield Entry(f"line {number}", fields, raw=whole)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line, its end "\\n" whatever it was. Bytes that are no UTF-8 become surrogates."""
    with path.open("rb") as file:
        start = file.read(4)
    encoding = next((name for mark, name in MARKS.items() if start.startswith(mark)), "utf-8")
    if encoding == "utf-8" and start[1::2] == b"\0\0":
        encoding = "utf-16-le"  # without its mark
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
    with path.open(encoding=encoding, errors=errors, newline=None) as file:
        number = 0
        try:
            while line := file.readline(MAX_JSON):
                number += 1
                yield number, line
        except UnicodeDecodeError as error:
            raise SchemaError(f"is UTF-16, but damaged after line {number} ({error.reason})") from error


def _rows(
    lines: Iterator[tuple[int, str]], delimiter: str, columns: int
) -> Iterator[tuple[int, str, list[str] | SchemaError]]:
    """Number of the first line, text and cells of each row; or what is wrong with it.

    A quote that nobody closes would take all that follows into its row: of a row of several lines that cannot be
    used, only the first line is given up, and reading goes on behind that.
    """
    waiting: deque[tuple[int, str]] = deque()
    taken: list[tuple[int, str]] = []

    def texts() -> Iterator[str]:
        while found := waiting.popleft() if waiting else next(lines, None):
            taken.append(found)
            yield found[1]

    while True:
        taken.clear()
        row: list[str] | SchemaError | None
        try:
            row = next(csv.reader(texts(), delimiter=delimiter, strict=True), None)
            if row and len(row) != columns:
                row = SchemaError(f"has {len(row)} cells, but there are {columns} columns")
        except csv.Error as error:
            row = SchemaError(str(error))
        if row is None:
            return
        if isinstance(row, SchemaError):
            waiting.extendleft(reversed(taken[1:]))
            del taken[1:]
        text = "".join(line for _, line in taken)
        if not text.isascii() and re.search("[\ud800-\udfff]", text):
            row = SchemaError("is not UTF-8; convert the file, for instance with iconv -f WINDOWS-1252 -t UTF-8")
            text = text.encode("utf-8", "surrogateescape").decode("latin-1")
        if row:  # else a blank line
            yield taken[0][0], text.rstrip("\n"), row


def _split(line: str, delimiter: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return []


def _roles(names: list[str]) -> dict[str, list[int]]:
    """The columns that could play each part."""
    found = {role: [i for i, name in enumerate(names) if plain(name) in known] for role, known in COLUMNS.items()}
    return {role: columns for role, columns in found.items() if columns}


def _checked(names: list[str]) -> dict[str, int]:
    """The one column that plays each part."""
    roles = _roles(names)
    if len(roles.get("video", [])) > 1:  # beside a path, "clip" is the part of it
        roles["video"] = [i for i in roles["video"] if plain(names[i]) != "clip"]
    media = {role: roles[role] for role in ("video", "image", "path") if role in roles}
    talk = roles.get("caption", [])
    is_questions = "question" in roles
    wanted = f"its columns are {', '.join(names) or 'none'}"
    if not media or any(len(columns) > 1 for columns in media.values()) or ("path" in media and len(media) > 1):
        state = "is more than one column" if media else "is no column"
        raise SchemaError(f"there {state} for the file (such as video, image, path); {wanted}; rename them")
    if len(set(names)) < len(names):
        raise SchemaError(f"a column name is there twice; {wanted}; rename them")
    if not is_questions and len(talk) != 1:
        state = "is more than one column" if talk else "is no column"
        raise SchemaError(
            f"there {state} for the caption (such as caption, text), and not both question and answer; {wanted}; "
            "rename them"
        )
    return {role: columns[0] for role, columns in roles.items() if not (is_questions and role == "caption")}


def _published(known: Dialect, names: list[str], row: list[str]) -> dict[str, Any] | SchemaError:
    try:
        return known.read({name: cell for name, cell in zip(names, row) if cell.strip()})
    except SchemaError as error:
        return error


def _fields(names: list[str], roles: dict[str, int], row: list[str]) -> dict[str, Any] | SchemaError:
    parts = {i: role for role, i in roles.items()}
    there = [(parts.get(i, name), cell) for i, (name, cell) in enumerate(zip(names, row)) if cell.strip()]
    # A caption may be "None", but what says nan was a number, and is none.
    empty = {role: NOTHING if role in MEDIA or role == "path" else ("nan",) for role, _ in there}
    fields: dict[str, Any] = {role: cell for role, cell in there if cell.strip().lower() not in empty[role]}
    if path := fields.pop("path", None):
        kind = media_type(path)
        if kind is None:
            return SchemaError(f"{path!r} has not the ending of a video or image")
        fields[kind] = path
    for role in ("caption",) if "question" not in roles else ("question",):
        if role not in fields:
            return SchemaError(f"its {role} is empty")
    if "answer" in roles and "answer" not in fields:
        return SchemaError("its answer is empty")
    return fields


TABLE = Format(
    "table",
    "a table of captions or questions",
    lambda source: source.suffix.lower() in (".csv", ".tsv"),
    read_table,
    endings=(".csv", ".tsv"),
)
