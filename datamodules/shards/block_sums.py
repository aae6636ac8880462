"""Checksums of pieces of a member, so that a part of a long video can be verified without reading all of it.

A member is a row of blocks of equal size, counted from its own start; the last one may be shorter. The index holds the
crc32 of each, whose number tells the size of a block. A member of at most 64 KiB needs no more than its own crc32.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from timeviper.datamodules.shards.tar import Slice, SliceFile

BLOCK_BYTES = 1 << 16  # bytes; 6 bytes of index for each
LEAST_BYTES = 1 << 12
SIZES = tuple(1 << power for power in range(16, 11, -1))  # that a block may have: 64 KiB down to 4 KiB
# A frame of a long video costs its group of pictures, of a second or so, and on average one block more than that: of
# a quarter of a second, it is a quarter too much. Of short videos nearly all is read anyhow, and most videos are short.
LONG, BLOCK_SECONDS = 300.0, 0.25
WIDTH = 4  # bytes of a checksum, little-endian


class FileBlock(NamedTuple):
    """Where a block's bytes lie in the shard, and their checksum."""

    offset: int
    size: int
    crc32: int

    @property
    def end(self) -> int:
        return self.offset + self.size

    def holds(self, data: bytes | memoryview) -> bool:
        return len(data) == self.size and zlib.crc32(data) == self.crc32


@dataclass(frozen=True)
class FileBlocks:
    """The blocks of one member."""

    where: Slice
    sums: bytes = b""
    """As in `SampleRecord.blocks`; empty for a member of one block."""
    block_bytes: int = field(init=False)
    """Size of all blocks but the last."""

    def __post_init__(self) -> None:
        if not fits(self.where.size, self.sums):
            raise ValueError(f"{len(self.sums)} bytes of checksums for a member of {self.where.size} bytes")
        object.__setattr__(self, "block_bytes", _bytes_of(self.where.size, len(self.sums) // WIDTH))

    def __len__(self) -> int:
        return -(-self.where.size // self.block_bytes)

    def __getitem__(self, number: int) -> FileBlock:
        if not 0 <= number < len(self):
            raise IndexError(number)
        start = number * self.block_bytes
        crc = int.from_bytes(self.sums[number * WIDTH : (number + 1) * WIDTH], "little") if self.sums else None
        size = min(self.block_bytes, self.where.size - start)
        return FileBlock(self.where.offset + start, size, self.where.crc32 if crc is None else crc)

    def __iter__(self) -> Iterator[FileBlock]:
        return (self[number] for number in range(len(self)))

    def between(self, start: int, stop: int) -> range:
        """Numbers of the blocks that bytes `[start, stop)` of the member touch."""
        stop = min(stop, self.where.size)
        return range(start // self.block_bytes, -(-stop // self.block_bytes)) if start < stop else range(0)


def block_bytes(size: int, seconds: float = 0.0) -> int:
    """Size of the blocks of a new member; `seconds` that it lasts, if it is a video."""
    if size <= BLOCK_BYTES or seconds < LONG:
        return BLOCK_BYTES
    return next((b for b in SIZES if b <= size / seconds * BLOCK_SECONDS), LEAST_BYTES)


def fits(size: int, sums: bytes) -> bool:
    """Whether these are the checksums of the blocks of a member of `size` bytes, as far as their number tells."""
    return len(sums) % WIDTH == 0 and _bytes_of(size, len(sums) // WIDTH) > 0


def _bytes_of(size: int, count: int) -> int:
    """Size of the blocks of which a member has `count`, 0 if there is none. No two sizes give the same number."""
    if size <= BLOCK_BYTES:
        return BLOCK_BYTES if not count else 0
    return next((b for b in SIZES if -(-size // b) == count), 0)


def summed(path: Path, offset: int, size: int, seconds: float = 0.0) -> tuple[Slice, bytes]:
    """A slice with its crc32, and those of its blocks if it has several; every byte is read once.

    `seconds`: as for `block_bytes`. Raises OSError if the file ends before.
    """
    crc, sums, step = 0, bytearray(), block_bytes(size, seconds)
    with SliceFile(path, offset, size) as file:
        while chunk := file.read(BLOCK_BYTES):
            crc = zlib.crc32(chunk, crc)
            for at in range(0, len(chunk), step):
                sums += zlib.crc32(memoryview(chunk)[at : at + step]).to_bytes(WIDTH, "little")
        if file.tell() != size:
            raise OSError(f"{path} ends {size - file.tell()} bytes before the end of the member at {offset}")
    return Slice(offset, size, crc), bytes(sums) if size > BLOCK_BYTES else b""
