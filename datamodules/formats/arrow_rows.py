"""Rows of Arrow as fields: Python's plain values, the names of classes for their numbers, files as cells."""

from __future__ import annotations

import datetime
import decimal
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from timeviper.datamodules.formats.cells import Cell, arrow, ending_of
from timeviper.datamodules.formats.fields import MEDIA, plain
from timeviper.datamodules.formats.text_files import parse_json
from timeviper.datamodules.shards.schema import IMAGE, VIDEO, SchemaError, media_type

TALKS = ("messages", "conversations", "segments")
CAPTIONS = ("caption", "text", "description", "sentence")
TALK = ("messages", "conversations", "question", "caption", "segments", "instruction", "query", "QA", "conversation")
FILES = ("file", "media", "path", "filename", "filepath")  # of either type
NAMED = {kind: (kind, *names) for kind, names in MEDIA.items()}
TEXT = ("caption", "question", "answer")


class Columns:
    """The columns of one schema: which hold files, which hold classes. SchemaError for types that cannot be meant."""

    def __init__(self, schema: Any, ignore: Collection[str] = ()) -> None:
        self.schema, self.ignore = schema, ignore
        self.first = 0
        """Row in its block with which the next batch begins."""
        self.classes = _classes(schema)
        self.kinds = {name: kind for name in schema.names if (kind := _kind(name))}
        self.embedded: dict[str, bool] = {}
        """Columns whose files are in every row, or in none, so that they need not be read to know it."""
        for field in schema:
            if field.name not in ignore:
                self._check(field)
        self.caption = self._caption()

    def _check(self, field: Any) -> None:
        """A type that no row could be used with is said once, not for every row."""
        pa, name = arrow(), plain(field.name)
        inner = field.type.value_type if _is_list(field.type) else field.type
        if field.name in self.kinds and not (_is_text(inner) or _holds_file(inner) or pa.types.is_null(inner)):
            raise SchemaError(
                f"its column {field.name} is {field.type}; files are text (a path), bytes, or struct<bytes, path>, or "
                f"lists of these; rename the column, or leave it out with --ignore {field.name}"
            )
        if name in TEXT and field.name not in self.classes and _never_text(inner):
            raise SchemaError(
                f"its column {field.name} is {field.type}; it must be text; rename it, or leave it "
                f"out with --ignore {field.name}"
            )
        if name in TALKS and not (_is_text(field.type) or _is_list(field.type) or pa.types.is_struct(field.type)):
            raise SchemaError(f"its column {field.name} is {field.type}; it must be a list of turns, or JSON")

    def _caption(self) -> str:
        """The column that is called caption here, as in a table; "" where that is none."""
        if any(name in TALK for name in self.schema.names):
            return ""
        found = [name for name in self.schema.names if plain(name) in CAPTIONS]
        return found[0] if len(found) == 1 else ""

    def projection(self, file: Any, block: int) -> tuple[list[str], bool]:
        """Leaves of a Parquet file that are read to learn what the rows say; and whether none of them holds files.

        The bytes of a file stay unread where it has a path, which tells its type, and is in every row or in none.
        """
        wanted, light, self.embedded = [], True, {}
        group, schema = file.metadata.row_group(block), file.schema
        paths = {schema.column(i).path for i in range(len(schema))}
        for i in range(len(schema)):
            path = schema.column(i).path
            top = path.split(".")[0] if path not in self.schema.names else path
            if top in self.ignore:
                continue
            binary = schema.column(i).physical_type == "BYTE_ARRAY" and schema.column(i).logical_type.type == "NONE"
            if binary and path.endswith(".bytes") and f"{path.removesuffix('bytes')}path" in paths:
                known = group.column(i).statistics
                if known is not None and known.has_null_count and known.null_count in (0, group.column(i).num_values):
                    self.embedded[top] = known.null_count == 0
                    continue
            wanted.append(path)
            light = light and not binary
        return wanted, light

    def rows(self, path: Path, block: int, batch: Any) -> Iterator[dict[str, Any] | SchemaError]:
        """The fields of each row of a batch that begins at row `first` of its block."""
        lists = {name: batch.column(name).to_pylist() for name in batch.schema.names if name not in self.ignore}
        for at in range(batch.num_rows):
            try:
                fields = {}
                for name, values in lists.items():
                    kind = self.kinds.get(name)
                    if kind or _holds_file(self.schema.field(name).type):
                        self._add_files(fields, name, values[at], (path, block, self.first + at))
                    elif name in self.classes and isinstance(values[at], int):
                        fields[name] = self.classes[name][values[at]] if values[at] >= 0 else None
                    else:
                        fields["caption" if name == self.caption else name] = _said(values[at], name)
                yield fields
            except (SchemaError, IndexError) as error:
                yield error if isinstance(error, SchemaError) else SchemaError(f"has a class without a name ({error})")

    def _add_files(self, fields: dict[str, Any], name: str, value: Any, at: tuple[Path, int, int]) -> None:
        """Files as cells or as paths, below the kind that column or ending tells."""
        several = isinstance(value, list)
        for item, one in enumerate(value if several else [value]):
            found = _file(one, self.embedded.get(name), (*at, name, item if several else None))
            if found is None:
                continue
            kind = self.kinds.get(name, "")
            if not kind:
                fields[f"{name} (files)"] = "not used; a column with files is called video or image"
            else:
                ending = found.ending if isinstance(found, Cell) else found
                kind = kind if kind in MEDIA else media_type(f".{ending}") or "video"
                fields.setdefault(kind, []).append(found)


def _file(value: Any, embedded: bool | None, at: tuple[Path, int, int, str, int | None]) -> Cell | str | None:
    """A cell with a file, or the path of one."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value
    head, name = (value, "") if isinstance(value, bytes) else (value.get("bytes"), value.get("path") or "")
    if head is None and not embedded:
        return name or None
    ending = name.rpartition(".")[2].lower()
    if ending not in (*VIDEO, *IMAGE):
        ending = ending_of(head[:16] if head is not None else Cell(*at, ending="").read()[:16])
    return Cell(*at, ending=ending)


def _kind(name: str) -> str:
    """video, image, or "any" of both; "" for a column that names no files."""
    low = plain(name)
    found = next((kind for kind, names in NAMED.items() if low in names), "")
    return found or media_type(f".{low}") or ("any" if low in FILES else "")


def _said(value: Any, name: str) -> Any:
    """The value of a column; of talk also as JSON, and as a struct of lists, which is a list of structs."""
    if name in TALKS and isinstance(value, str):
        return parse_json(value)
    found = _plain(value, name)
    lists = [*found.values()] if isinstance(found, dict) and name in TALKS else []
    if lists and all(isinstance(one, list) and len(one) == len(lists[0]) for one in lists):
        return [dict(zip(found, row)) for row in zip(*lists)]
    return found


def _plain(value: Any, name: str) -> Any:
    """What JSON can say. SchemaError for bytes, which it cannot."""
    if isinstance(value, dict):
        return {key: _plain(inner, name) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, name) for inner in value]
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        raise SchemaError(f"its {name} has bytes, which are no text; read as if it were not there with --ignore {name}")
    return value


def _classes(schema: Any) -> dict[str, list[str]]:
    """The names of classes that `datasets` has stored beside the schema, by column."""
    try:
        said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = said["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return {
        name: feature["names"]
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)
    }


def _is_list(kind: Any) -> bool:
    types = arrow().types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _is_text(kind: Any) -> bool:
    types = arrow().types
    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_bytes(kind: Any) -> bool:
    types = arrow().types
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _holds_file(kind: Any) -> bool:
    """Whether values are files as `datasets` keeps them, or bare bytes; also in lists."""
    if _is_list(kind):
        return _holds_file(kind.value_type)
    if arrow().types.is_struct(kind):
        names = {kind.field(i).name for i in range(kind.num_fields)}
        return "bytes" in names and names <= {"bytes", "path"} and _is_bytes(kind.field("bytes").type)
    return _is_bytes(kind)


def _never_text(kind: Any) -> bool:
    types = arrow().types
    return _is_bytes(kind) or types.is_boolean(kind) or types.is_struct(kind) or types.is_temporal(kind)
