"""Checksums of pieces of a member, so that a part of a long video can be verified without reading all of it.

A member is a row of blocks of 64 KiB, counted from its own start; the last one may be shorter. The index holds the
crc32 of each. A member of one block needs no more than its own crc32.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from timeviper.datamodules.shards.tar import Slice, SliceFile

BLOCK_BYTES = 1 << 16  # bytes: 6 bytes of index for each, and the least that is read of a remote shard
WIDTH = 4  # bytes of a checksum, little-endian


class FileBlock(NamedTuple):
    """Where a block's bytes lie in the shard, and their checksum."""

    offset: int
    size: int
    crc32: int

    def holds(self, data: bytes | memoryview) -> bool:
        return len(data) == self.size and zlib.crc32(data) == self.crc32


@dataclass(frozen=True)
class FileBlocks:
    """The blocks of one member."""

    where: Slice
    sums: bytes = b""
    """As in `SampleRecord.blocks`; empty for a member of one block."""

    def __post_init__(self) -> None:
        if len(self.sums) != sums_size(self.where.size):
            raise ValueError(f"{len(self.sums)} bytes of checksums for a member of {self.where.size} bytes")

    def __len__(self) -> int:
        return -(-self.where.size // BLOCK_BYTES)

    def __getitem__(self, number: int) -> FileBlock:
        if not 0 <= number < len(self):
            raise IndexError(number)
        start = number * BLOCK_BYTES
        crc = int.from_bytes(self.sums[number * WIDTH : (number + 1) * WIDTH], "little") if self.sums else None
        size = min(BLOCK_BYTES, self.where.size - start)
        return FileBlock(self.where.offset + start, size, self.where.crc32 if crc is None else crc)

    def __iter__(self) -> Iterator[FileBlock]:
        return (self[number] for number in range(len(self)))


def sums_size(size: int) -> int:
    """Bytes of checksums that a member of `size` bytes has beside its own crc32."""
    return -(-size // BLOCK_BYTES) * WIDTH if size > BLOCK_BYTES else 0


def summed(path: Path, offset: int, size: int) -> tuple[Slice, bytes]:
    """A slice with its crc32, and those of its blocks if it has several; every byte is read once.

    Raises OSError if the file ends before.
    """
    crc, sums = 0, bytearray()
    with SliceFile(path, offset, size) as file:
        while block := file.read(BLOCK_BYTES):
            crc = zlib.crc32(block, crc)
            sums += zlib.crc32(block).to_bytes(WIDTH, "little")
        if file.tell() != size:
            raise OSError(f"{path} ends {size - file.tell()} bytes before the end of the member at {offset}")
    return Slice(offset, size, crc), bytes(sums) if size > BLOCK_BYTES else b""
