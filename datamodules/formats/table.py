"""A table of captions or of questions: CSV or TSV with a line of column names, one sample a row."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from timeviper.datamodules.formats.entry import Entry, Format
from timeviper.datamodules.formats.text_files import read_lines
from timeviper.datamodules.shards.schema import SchemaError, media_type

DELIMITERS = ",\t;|"

# Names by which a column is known, without case, spaces, "-" and "_"; any other column is kept as a field.
COLUMNS = {
    "video": ("video", "videopath", "videofile", "videofilename", "clip", "clippath"),
    "image": ("image", "imagepath", "imagefile", "imagefilename", "img", "imgpath"),
    "path": ("path", "file", "filename", "filepath", "media", "mediapath"),
    "caption": ("caption", "text", "description", "sentence"),
    "question": ("question",),
    "answer": ("answer",),
}
MEDIA = ("video", "image", "path")


def read_table(path: Path) -> Iterator[Entry]:
    """Every row as an entry. SchemaError if the columns are not clear: it lists those that were found."""
    lines = read_lines(path)
    _, header = next(lines, (1, ""))
    if isinstance(header, SchemaError):
        raise header
    delimiter = max(DELIMITERS, key=lambda d: (len(_roles(_split(header, d))), header.count(d)))
    names = _split(header, delimiter)
    roles = _checked(names)
    numbers = [1]

    def texts() -> Iterator[str]:
        for number, line in lines:
            if isinstance(line, SchemaError):  # a quoted cell may go on in the next line: there is no going on
                raise SchemaError(f"line {number} {line}")
            numbers[0] = number
            yield line + "\n"

    rows = csv.reader(texts(), delimiter=delimiter, strict=True)
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise SchemaError(f"line {numbers[0]}: {error}") from error
        if row is None:
            return
        yield Entry(f"line {numbers[0]}", _fields(names, roles, row))


def _split(line: str, delimiter: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return []


def _roles(names: list[str]) -> dict[str, list[int]]:
    """The columns that could play each part."""
    plain = ["".join(c for c in name.lower() if c not in " -_") for name in names]
    found = {role: [i for i, name in enumerate(plain) if name in known] for role, known in COLUMNS.items()}
    return {role: columns for role, columns in found.items() if columns}


def _checked(names: list[str]) -> dict[str, int]:
    """The one column that plays each part."""
    roles = _roles(names)
    media = [i for role in MEDIA for i in roles.get(role, [])]
    talk = roles.get("caption", [])
    is_questions = "question" in roles and "answer" in roles
    wanted = f"its columns are {', '.join(names) or 'none'}"
    if len(media) != 1:
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


def _fields(names: list[str], roles: dict[str, int], row: list[str]) -> dict[str, str] | SchemaError:
    if len(row) != len(names):
        return SchemaError(f"has {len(row)} cells, but there are {len(names)} columns")
    parts = {i: role for role, i in roles.items()}
    fields = {parts.get(i, name): cell for i, (name, cell) in enumerate(zip(names, row))}
    if "path" in roles:
        name = fields.pop("path")
        kind = media_type(name)
        if kind is None:
            return SchemaError(f"{name!r} has not the ending of a video or image")
        fields[kind] = name
    empty = [role for role in ("caption", "question", "answer") if role in roles and not fields[role].strip()]
    return SchemaError(f"its {empty[0]} is empty") if empty else fields


TABLE = Format(
    "table",
    "a table of captions or questions",
    lambda source: source.suffix.lower() in (".csv", ".tsv"),
    read_table,
    endings=(".csv", ".tsv"),
)
