"""Columns in a file, `index.safetensors` in the folder of the shards: what `timeviper shards index` writes.

Flat arrays behind a header, as safetensors has them: they are mapped into memory as they lie, without a copy and
without a library that the project does not have already; any tool can open them. (Arrow's own files would do as well,
with the same arrays of offsets, for 150 MB of package and 60 MB of memory in every rank; Parquet cannot be mapped.)
The header holds the crc32 of each array, so it stands for all of them: two files with the same header are the same.
"""

from __future__ import annotations

import json
import mmap
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from timeviper.datamodules.shards.column_join import joined
from timeviper.datamodules.shards.columns import NAMES, Arrays, Columns, check
from timeviper.files import whole_file

FILE = "index.safetensors"
FORMAT, VERSION = "timeviper index", "1"
TYPES = {"u1": "U8", "u2": "U16", "u4": "U32", "u8": "U64", "f4": "F32", "f8": "F64"}
HEADER = 1 << 13  # bytes, filled up with spaces: one request tells what there is
PIECE = 1 << 24  # bytes that are read or asked for at a time

Read = Callable[[int, int], bytes]
"""Bytes `[start, stop)` of the file; fewer where it ends before."""


@dataclass(frozen=True)
class Column:
    """Where one array lies in the file."""

    dtype: np.dtype
    start: int
    stop: int
    crc32: int


@dataclass(frozen=True)
class Header:
    """What the file says at its beginning."""

    raw: bytes
    columns: dict[str, Column]

    @property
    def bytes(self) -> int:
        """Of the whole file."""
        return max(column.stop for column in self.columns.values())

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that stand for all that the file holds."""
        return sha256(self.raw).hexdigest()[:16]


def write_columns(path: Path, parts: Sequence[Columns]) -> Path:
    """All shards of `parts`, by their names alone; whole or not at all. One array at a time is in memory."""
    laid = sorted(joined(parts), key=lambda column: -column[1].itemsize)  # so that all lie on multiples of their size
    with whole_file(path) as partial, partial.open("wb") as file:
        file.write(_header(laid, dict.fromkeys(NAMES, 0)))
        sums = {}
        for name, dtype, _, pieces in laid:
            crc = 0
            for piece in pieces:
                data = np.ascontiguousarray(piece, dtype).data.cast("B") if len(piece) else b""
                crc = zlib.crc32(data, crc)
                file.write(data)
            sums[name] = crc
        file.seek(0)
        file.write(_header(laid, sums))
    return path


def _header(laid: list[tuple[str, np.dtype, int, Iterator[np.ndarray]]], sums: dict[str, int]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": FORMAT, "version": VERSION}}
    entries["__metadata__"] |= {f"crc32.{name}": f"{sums[name]:08x}" for name, *_ in laid}
    at = 0
    for name, dtype, length, _ in laid:
        end = at + length * dtype.itemsize
        entries[name] = {"dtype": TYPES[dtype.str[1:]], "shape": [length], "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    return (HEADER - 8).to_bytes(8, "little") + text.ljust(HEADER - 8)


def read_header(read: Read, where: str, remedy: str) -> Header:
    """ValueError that names the file (`where`) and ends with `remedy` if it is of another version, cut or foreign."""
    raw = read(0, HEADER)
    if len(raw) < HEADER or int.from_bytes(raw[:8], "little") != HEADER - 8:
        raise ValueError(f"index {where} is cut short, or no file of this kind; {remedy}")
    try:
        entries = json.loads(raw[8:])
        said = entries.pop("__metadata__")
        if (said["format"], said["version"]) == (FORMAT, VERSION):
            columns = {name: _column(entry, said[f"crc32.{name}"]) for name, entry in entries.items()}
            return Header(raw, columns)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"index {where} cannot be read: its header is cut or damaged ({error!r}); {remedy}") from error
    raise ValueError(
        f"index {where} is {said['format']!r} of version {said['version']}, this program reads version {VERSION}; "
        f"{remedy}"
    )


def _column(entry: dict[str, Any], crc: str) -> Column:
    dtype = np.dtype(next(f"<{ours}" for ours, theirs in TYPES.items() if theirs == entry["dtype"]))
    start, stop = entry["data_offsets"]
    if not 0 <= start <= stop or entry["shape"] != [(stop - start) // dtype.itemsize]:
        raise ValueError(f"an array of shape {entry['shape']} from byte {start} to {stop}")
    return Column(dtype, HEADER + start, HEADER + stop, int(crc, 16))


def copy_columns(
    read: Read, header: Header, put: Callable[[int, bytes], object], where: str, remedy: str, reading: Any = map
) -> None:
    """Bring the whole file to `put(offset, bytes)`, verified. `reading`: a `map` that may read several pieces at once.

    ValueError that says which array is damaged, or that the file is cut.
    """

    def copied(start: int, stop: int, columns: dict[str, Column]) -> list[str]:
        """The arrays, all between `start` and `stop`, that are damaged."""
        crcs, starts = dict.fromkeys(columns, 0), range(start, stop, PIECE)
        for first, data in zip(starts, reading(lambda s: read(s, min(s + PIECE, stop)), starts)):
            if len(data) < min(first + PIECE, stop) - first:
                raise ValueError(f"index {where} is cut short, it ends at byte {first + len(data)}; {remedy}")
            put(first, data)
            for name, column in columns.items():
                if column.start < first + len(data) and first < column.stop:
                    part = memoryview(data)[max(column.start - first, 0) : column.stop - first]
                    crcs[name] = zlib.crc32(part, crcs[name])
        return [name for name, crc in crcs.items() if crc != columns[name].crc32]

    put(0, header.raw)
    for name in copied(HEADER, header.bytes, header.columns):  # what was damaged on its way is asked for once more
        column = header.columns[name]
        if copied(column.start, column.stop, {name: column}):
            raise ValueError(f"index {where} is damaged or was changed ({name}: wrong checksum); {remedy}")


def in_memory(read: Read, where: str, remedy: str, beside: str) -> Columns:
    """The columns of a small file, verified."""
    header = read_header(read, where, remedy)
    whole = bytearray(header.bytes)

    def put(offset: int, data: bytes) -> None:
        whole[offset : offset + len(data)] = data

    copy_columns(read, header, put, where, remedy)
    return Columns(_arrays(whole, header, where, remedy), beside)


def mapped(path: Path, where: str, remedy: str, beside: str) -> Columns:
    """The columns of a verified file, which nobody may write to: one copy for all processes, read when it is needed.

    On a file system that cannot map, a copy in the memory of this process.
    """
    with open_file(path) as file:
        header = read_header(file.read, where, remedy)
        if (size := os.fstat(file.fd).st_size) != header.bytes:
            raise ValueError(f"index {where} is cut short: {size} of {header.bytes} bytes; {remedy}")
        try:
            whole = mmap.mmap(file.fd, header.bytes, access=mmap.ACCESS_READ)
        except OSError:
            return in_memory(file.read, where, remedy, beside)
    return Columns(_arrays(whole, header, where, remedy), beside, is_mapped=True)


class open_file:
    """A file on a disk, for `Read`."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> open_file:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def read(self, start: int, stop: int) -> bytes:
        return os.pread(self.fd, stop - start, start)


def _arrays(whole: Any, header: Header, where: str, remedy: str) -> Arrays:
    found = {
        name: np.frombuffer(whole, column.dtype, (column.stop - column.start) // column.dtype.itemsize, column.start)
        for name, column in header.columns.items()
    }
    try:
        check(found)
        if (found["name"] == ord("/")).any():
            raise ValueError("tells of shards that do not lie beside it")
    except ValueError as error:
        raise ValueError(f"index {where} {error}; {remedy}") from error
    return found
