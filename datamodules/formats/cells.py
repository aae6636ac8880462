"""Files that lie in the cells of Parquet and Arrow files, read when they are written into a shard, and not before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from timeviper.datamodules.shards.schema import SchemaError
from timeviper.datamodules.shards.writer import Made

ROWS = 16  # decoded at once of a column with files
BUFFER = 1 << 20  # bytes read ahead of a column
CURSORS = 4  # columns with files that are read side by side, each ROWS at a time
PARQUET, ARROW = (".parquet",), (".arrow", ".feather")
MAGIC = (  # how files begin: offset, bytes, ending
    (0, b"\xff\xd8\xff", "jpg"),
    (0, b"\x89PNG\r\n\x1a\n", "png"),
    (8, b"WEBP", "webp"),
    (8, b"AVI ", "avi"),
    (0, b"GIF8", "gif"),
    (0, b"BM", "bmp"),
    (4, b"ftyp", "mp4"),
    (0, b"\x1a\x45\xdf\xa3", "mkv"),
    (0, b"FLV", "flv"),
)


def arrow() -> Any:
    """pyarrow. SchemaError with what to do if it is not installed."""
    try:
        import pyarrow as pa
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise SchemaError(f"needs pyarrow ({error}): pip install 'timeviper[parquet]'") from error
    return pa


@dataclass(frozen=True)
class Cell(Made):
    """One file: in `column`, or in its list at `item`, of a row of a block (row group, or record batch)."""

    path: Path
    block: int
    row: int
    column: str
    item: int | None
    ending: str
    """Of its name, or by its first bytes; "" if neither is known."""

    def __str__(self) -> str:
        at = "" if self.item is None else f"[{self.item}]"
        return f"{self.path}, block {self.block}, row {self.row}, {self.column}{at}"

    def read(self) -> bytes:
        value = _value(self.path, self.block, self.row, self.column)
        if self.item is not None:
            value = value[self.item]
        value = value["bytes"] if isinstance(value, dict) else value
        if not isinstance(value, bytes):
            raise SchemaError(f"{self} holds no bytes any more; the file has changed")
        return value


def ending_of(head: bytes) -> str:
    """By the first 16 bytes of a file; "" if they are none of a known one."""
    return next((ending for at, mark, ending in MAGIC if head[at : at + len(mark)] == mark), "")


class _Cursor:
    """A column of a block, read forwards: rows are asked for in their order nearly always."""

    def __init__(self, path: Path, block: int, column: str) -> None:
        self.first, self.held, self.rest = 0, [], _columns(path, block, column)

    def value(self, row: int) -> Any:
        while row >= self.first + len(self.held):
            self.first, self.held = self.first + len(self.held), next(self.rest).to_pylist()
        return self.held[row - self.first]


_cursors: dict[tuple[Path, int, str], _Cursor] = {}  # of this process, the last used at the end


def _value(path: Path, block: int, row: int, column: str) -> Any:
    key = (path, block, column)
    cursor = _cursors.pop(key, None)
    if cursor is None or row < cursor.first:
        cursor = _Cursor(path, block, column)
    while len(_cursors) >= CURSORS:
        del _cursors[next(iter(_cursors))]
    try:
        found = cursor.value(row)
    except (StopIteration, OSError, ValueError) as error:  # of which pyarrow's own are
        detail = str(error).strip().replace("\n", " ")
        raise SchemaError(f"{path}: row {row} of block {block} cannot be read: {detail}"[:400], "media") from error
    _cursors[key] = cursor
    return found


def _columns(path: Path, block: int, column: str) -> Iterator[Any]:
    """Arrays of one column of a block, a few rows each."""
    pa = arrow()
    if path.suffix.lower() in PARQUET:
        with pa.parquet.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False) as file:
            for batch in file.iter_batches(ROWS, row_groups=[block], columns=[column]):
                yield batch.column(0)
        return
    array = batches(path)[block].column(column)
    yield from (array.slice(at, ROWS) for at in range(0, len(array), ROWS))


def batches(path: Path) -> list[Any]:
    """The record batches of an Arrow file (a stream, as `datasets` writes it, or a file); mapped, not read."""
    return _batches(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _batches(path: Path, changed: int) -> list[Any]:
    pa = arrow()
    with path.open("rb") as file:
        is_file = file.read(6) == b"ARROW1"
    opened = pa.ipc.open_file if is_file else pa.ipc.open_stream
    return opened(pa.memory_map(str(path))).read_all().to_batches()
