"""Annotation files as rows: Parquet, JSON, JSONL, CSV, TSV; what is wrong is told by file, entry and field."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from timeviper.benchmarking.item import Item
from timeviper.benchmarking.testset import Unread
from timeviper.datamodules.formats.cells import arrow
from timeviper.datamodules.formats.text_files import files_below, parse_json, read_lines, read_list
from timeviper.datamodules.shards.schema import SchemaError

HEAD = 1024  # bytes that tell what a file is
PAGE = re.compile(rb"\s*(?:<!doctype html|<html)", re.IGNORECASE)
REFUSED = re.compile(
    rb"access to (?:dataset|model|this)|restricted|invalid username|unauthori[sz]ed|gated", re.IGNORECASE
)
CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:\.\d+)?)")


class Row(dict[str, Any]):
    """The fields of an entry. What asks for one raises ValueError with its name."""

    def __init__(self, fields: Mapping[str, Any], where: str) -> None:
        super().__init__(fields)
        self.where = where

    def need(self, *names: str) -> Any:
        """The value of the first of alternative names that is there and not null."""
        for name in names:
            if self.get(name) is not None:
                return self[name]
        raise ValueError(f"has no {' or '.join(names)} (its fields: {', '.join(map(str, self)) or 'none'})")

    def text(self, *names: str) -> str:
        value = self.need(*names)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError(f"{names[0]} must be text, got {str(value)[:60]!r}")
        return str(value).strip()

    def texts(self, *names: str) -> tuple[str, ...]:
        value = self.need(*names)
        if not isinstance(value, list | tuple):
            raise ValueError(f"{names[0]} must be a list, got {str(value)[:60]!r}")
        return tuple(str(v).strip() for v in value)

    def number(self, *names: str) -> float:
        return seconds(self.need(*names), names[0])

    def maybe(self, *names: str) -> float | None:
        """A number, or None where there is none."""
        there = [n for n in names if self.get(n) not in (None, "", "null", "None")]
        return seconds(self[there[0]], there[0]) if there else None

    def clocks(self, *names: str) -> bool:
        """Whether one of these is written as MM:SS, or holds such times."""
        return any(CLOCK.fullmatch(str(v).strip()) for n in names for v in flat(self.get(n)))


def flat(value: Any) -> Iterator[Any]:
    """The values in nested lists."""
    if isinstance(value, list | tuple):
        for one in value:
            yield from flat(one)
    else:
        yield value


def seconds(value: Any, name: str = "a time") -> float:
    """A time in seconds: a number, its text, or MM:SS and HH:MM:SS, which callers note where seconds are meant."""
    if isinstance(value, str) and (clock := CLOCK.fullmatch(value.strip())):
        return 3600 * int(clock[1] or 0) + 60 * int(clock[2]) + float(clock[3])
    try:
        if isinstance(value, bool):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number, got {str(value)[:60]!r}") from None
    if number != number or abs(number) == float("inf"):
        raise ValueError(f"{name} must be a number, got {value!r}")
    return number


def window(value: Any, name: str = "its window") -> tuple[float, float]:
    """[start, end] as it is written, even if turned around."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"{name} must be [start, end] in seconds, got {str(value)[:60]!r}")
    return seconds(value[0], name), seconds(value[1], name)


def annotation_files(path: Path, patterns: Sequence[str]) -> list[Path]:
    """The file itself, or in a folder all that match the first pattern that any does. ValueError if none does."""
    if path.is_file():
        _refuse_pages(path)
        return [path]
    if not path.is_dir():
        raise ValueError(f"{path} is not there: --annotations is a file or a folder with {' or '.join(patterns)}")
    for pattern in patterns:
        if found := sorted((p for p in files_below(path) if p.match(pattern)), key=_natural):
            for one in found:
                _refuse_pages(one)
            return found
    there = ", ".join(sorted(p.name for p in files_below(path))[:6]) or "nothing"
    raise ValueError(f"{path} has no {' and no '.join(patterns)}; it has {there}")


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def _refuse_pages(path: Path) -> None:
    """What a download leaves where the terms were not accepted, or Git LFS was not there, is not the file."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a pointer of Git LFS, not the file: run git lfs pull, or download it again")
    small = len(head) < HEAD and not head.lstrip().startswith((b"[", b"{", b"PAR1"))
    if PAGE.match(head) or (small and REFUSED.search(head)):
        raise ValueError(
            f"{path} is a page that says that it may not be downloaded, not the file: accept the terms of the set on "
            "its page, log in (hf auth login), and download it again"
        )
    if not head:
        raise ValueError(f"{path} is empty: download it again")


def rows(path: Path) -> Iterator[Row | Unread]:
    """Entries of a table, of JSON lines or of a list, in order; `where` is for messages. ValueError if it is none."""
    match path.suffix.lower():
        case ".parquet":
            found: Iterable[tuple[str, Any]] = _parquet(path)
        case ".jsonl":
            found = ((f"line {n}", _line(text)) for n, text in read_lines(path))
        case ".csv" | ".tsv":
            found = _csv(path)
        case ".json":
            found = _list(path)
        case _:
            raise ValueError(f"{path.name} is neither .parquet, .json, .jsonl, .csv nor .tsv")
    for place, fields in found:
        where = f"{path.name}, {place}"
        if isinstance(fields, dict):
            yield Row(fields, where)
        else:
            yield Unread(where, str(fields) if isinstance(fields, SchemaError) else f"is no object: {str(fields)[:60]}")


def _line(text: str | SchemaError) -> Any:
    if isinstance(text, SchemaError):
        return text
    try:
        return parse_json(text)
    except SchemaError as error:
        return error


def _list(path: Path) -> Iterator[tuple[str, Any]]:
    content = json_of(path)
    if not isinstance(content, list):
        raise ValueError(f"{path.name} must hold a list of entries, got an object with {', '.join([*content][:5])}")
    for number, fields in enumerate(content, 1):
        yield f"entry {number}", fields


def json_of(path: Path) -> Any:
    """What a .json file holds: a list or an object."""
    try:
        content = read_list(path)
    except SchemaError as error:
        raise ValueError(f"{path.name}: {error}") from error
    if not isinstance(content, list | dict):
        raise ValueError(f"{path.name} must hold a list or an object, got {type(content).__name__}")
    return content


def keyed(path: Path) -> dict[str, Any]:
    """An object of a .json file. ValueError if it holds a list."""
    content = json_of(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} must hold an object by video, got a list of {len(content)}")
    return content


def _csv(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        for number, fields in enumerate(table, 2):
            whole = None not in fields and None not in fields.values()
            yield f"line {number}", fields if whole else SchemaError(f"has not {len(table.fieldnames or ())} columns")


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    """Rows without columns of bytes: videos and pictures that some copies embed are not what is asked."""
    pa = arrow()
    try:
        with pa.parquet.ParquetFile(path) as file:
            columns = [f.name for f in file.schema_arrow if not _holds_bytes(pa, f.type)]
            number = 0
            for batch in file.iter_batches(256, columns=columns):
                for fields in batch.to_pylist():
                    number += 1
                    yield f"row {number}", fields
    except (OSError, ValueError) as error:  # pyarrow's own are of these
        raise ValueError(f"{path.name} is not whole, or no Parquet file: download it again ({error})") from error


def _holds_bytes(pa: Any, kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return any(_holds_bytes(pa, kind.field(i).type) for i in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


Made = Item | Iterable[Item]


def each(found: Iterable[Row | Unread], make: Callable[[Row], Made]) -> Iterator[Item | Unread]:
    """The items of every row; of one that cannot be used, what is wrong with it."""
    for row in found:
        if isinstance(row, Unread):
            yield row
            continue
        try:
            made = make(row)
            items = [made] if isinstance(made, Item) else list(made)
        except ValueError as error:
            yield Unread(row.where, str(error))
            continue
        except (TypeError, AttributeError, KeyError) as error:
            yield Unread(row.where, f"has another form than the set's ({error})")
            continue
        yield from items


def moments(path: Path, times: str, texts: str) -> Iterator[Row | Unread]:
    """{video: {duration, <times>: [...], <texts>: [...]}} as a row for each text, with `video` and `number` from 1."""
    for video, entry in keyed(path).items():
        where = f"{path.name}, {video}"
        fields = entry if isinstance(entry, dict) else {}
        at, said = fields.get(times), fields.get(texts)
        if not isinstance(at, list) or not isinstance(said, list):
            yield Unread(where, f"has no lists {times} and {texts}")
        elif len(at) != len(said):
            yield Unread(where, f"has {len(at)} {times} for {len(said)} {texts}")
        else:
            told = {"video": video, "duration": fields.get("duration")}
            for number, (time, text) in enumerate(zip(at, said), 1):
                yield Row({**told, "number": number, times: time, texts: text}, where)
