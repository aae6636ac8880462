"""A member of a shard as a file of which no byte is handed out that is not what it was when the index was written.

PyAV reads a video through it, wherever the shard is: from a disk in place, from a store in ranges of whole blocks that
a cache keeps. What is damaged raises ShardError; as FFmpeg may take that for the end of a file, leaving the `with`
raises it again.
"""

from __future__ import annotations

import io
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import IO

from av.error import err_check

from timeviper.datamodules.remote.ahead import PIECE, Ahead
from timeviper.datamodules.remote.block_cache import BlockCache
from timeviper.datamodules.remote.storage import StorageError, is_remote
from timeviper.datamodules.shards.address import shown
from timeviper.datamodules.shards.block_sums import BLOCK_BYTES, FileBlock, FileBlocks
from timeviper.datamodules.shards.index_file import SampleRecord
from timeviper.datamodules.shards.tar import RangeFile, ShardError

HELD = 16  # blocks that one open file of a disk has in memory, 1 MiB at most
AHEAD = 6  # of what was read in a row, the share that is asked for beyond: at most a sixth is for nothing


def member_name(shard: str, record: SampleRecord, field: str) -> str:
    """For messages."""
    return f"{shown(shard)}[{record.key}.{field}]"


class MemberFile(RangeFile):
    """Base of both kinds; `load` is what differs."""

    is_far = False  # whether it is worth telling what will be read (`expect`)

    def __init__(self, shard: str, record: SampleRecord, field: str) -> None:
        where = record.members[field]
        super().__init__(member_name(shard, record, field), where.size)
        self.shard, self.key, self.field = shard, record.key, field
        self.blocks = FileBlocks(where, record.blocks.get(field, b""))
        self.error: Exception | None = None

    def load(self, number: int) -> bytes:
        """Block `number`, verified."""
        raise NotImplementedError

    def is_here(self, number: int) -> bool:
        """Whether block `number` can be loaded without waiting for long."""
        return True

    def read_at(self, at: int, view: memoryview) -> int:
        if self.error is not None:  # said already; PyAV prints a second one before it has passed on the first
            return 0
        filled = 0
        try:
            while filled < len(view):
                number, start = divmod(at + filled, self.blocks.block_bytes)
                if filled and not self.is_here(number):
                    break  # FFmpeg asks for 32 KiB, whatever it needs
                part = memoryview(self.load(number))[start : start + len(view) - filled]
                view[filled : filled + len(part)] = part
                filled += len(part)
        except Exception as error:
            self.error = error
            raise
        return filled

    def damaged(self, number: int, got: int) -> ShardError:
        """What to say of a block of which `got` bytes came that are not its own."""
        block = self.blocks[number]
        first = block.offset - self.blocks.where.offset
        what = "do not match their checksum" if got == block.size else f"are cut off after {got}"
        return ShardError(
            shown(self.shard),
            f"{self.field} is damaged: its bytes {first} to {first + block.size} (at {block.offset} of the shard) "
            f"{what}; copy the shard again, or index it anew if it was changed on purpose",
            self.key,
            "checksum",
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if self.error is not None and error is not self.error:
            # PyAV keeps what a file raised until its next call returns, which would blame the next video.
            with suppress(Exception):
                err_check(0)
            if error is None or isinstance(error, Exception):
                raise self.error from None


class LocalMember(MemberFile):
    """Of a shard on a disk."""

    def __init__(self, shard: str, record: SampleRecord, field: str) -> None:
        super().__init__(shard, record, field)
        self._held: OrderedDict[int, bytes] = OrderedDict()
        self._fd = -1
        self._fd = os.open(shard, os.O_RDONLY | os.O_CLOEXEC)

    def load(self, number: int) -> bytes:
        if number not in self._held:
            block = self.blocks[number]
            data = os.pread(self._fd, block.size, block.offset)
            if not block.holds(data):
                raise self.damaged(number, len(data))
            self._held[number] = data
            if len(self._held) > HELD:
                self._held.popitem(last=False)
        return self._held[number]

    def close(self) -> None:
        if not self.closed and self._fd >= 0:
            os.close(self._fd)
        super().close()


class SmallMember(io.BytesIO):
    """One of a disk that is a single block, in memory: decoding a clip asks for some of its bytes twenty times."""

    def __init__(self, shard: str, record: SampleRecord, field: str) -> None:
        where = record.members[field]
        fd = os.open(shard, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.pread(fd, where.size, where.offset)
        finally:
            os.close(fd)
        if len(data) != where.size or zlib.crc32(data) != where.crc32:
            raise LocalMember(shard, record, field).damaged(0, len(data))
        super().__init__(data)
        self.name = member_name(shard, record, field)


class RemoteMember(MemberFile):
    """Of a shard in a store. A block is asked for once, and then found in the cache for as long as that keeps it."""

    is_far = True

    def __init__(self, shard: str, record: SampleRecord, field: str, ahead: Ahead) -> None:
        super().__init__(shard, record, field)
        self.ahead = ahead
        self._begin = self._end = 0  # blocks that were read in a row up to now

    def is_here(self, number: int) -> bool:
        return self.ahead.has(self.blocks[number])

    def expect(self, spans: Iterable[tuple[int, int]]) -> None:
        """Bytes `[start, stop)` that will be read, in this order, in place of what was expected before."""
        self.ahead.expect(self.blocks[n] for start, stop in spans for n in self.blocks.between(start, stop))

    def load(self, number: int) -> bytes:
        if number != self._end - 1:
            if number != self._end:
                self._begin = number
            self._end = number + 1
        try:
            data = self.ahead.get(self.blocks[number], () if self.is_here(number) else self._next(number))
        except StorageError as error:
            raise type(error)(f"sample {self.key!r}, {self.field}: {error}") from error
        if data is None:
            raise self.damaged(number, self.blocks[number].size)
        return data

    def _next(self, number: int) -> Sequence[FileBlock]:
        """What is asked for with a block that nobody expected: 64 KiB, and more where it was read in a row."""
        size = self.blocks.block_bytes
        ahead = min(max((number - self._begin) * size // AHEAD, BLOCK_BYTES), PIECE) // size
        return [self.blocks[n] for n in range(number + 1, min(number + ahead, len(self.blocks)))]


class SampleFiles:
    """The members of one sample; of a remote one, what will be read first is asked for at once. A context manager."""

    def __init__(self, shard: str, record: SampleRecord, cache: BlockCache | None = None) -> None:
        """`cache` keeps what is read of a remote shard; None: the default folder."""
        self.shard, self.record = shard, record
        self.ahead = Ahead(shard, cache or BlockCache()) if is_remote(shard) else None

    def expect(self, whole: Iterable[str], begun: Iterable[str] = ()) -> None:
        """These members will be read, in this order: the ones wholly, of the others the first 64 KiB."""
        if self.ahead is None:
            return
        wanted: list[FileBlock] = []
        for field, size in [*((f, None) for f in whole), *((f, BLOCK_BYTES) for f in begun)]:
            where = self.record.members[field]
            blocks = FileBlocks(where, self.record.blocks.get(field, b""))
            wanted += [blocks[n] for n in blocks.between(0, where.size if size is None else size)]
        self.ahead.expect(wanted)

    def open(self, field: str) -> IO[bytes]:
        """A member, to be read in a `with`."""
        if self.ahead is not None:
            return RemoteMember(self.shard, self.record, field, self.ahead)
        kind = SmallMember if self.record.members[field].size <= BLOCK_BYTES else LocalMember
        return kind(self.shard, self.record, field)

    def read(self, field: str) -> bytes:
        """All bytes of a member. Raises ShardError for damaged ones, OSError for what cannot be read."""
        with self.open(field) as file:
            return file.read()

    def __enter__(self) -> SampleFiles:
        return self

    def __exit__(self, *_: object) -> None:
        if self.ahead is not None:
            self.ahead.close()


def open_member(shard: str, record: SampleRecord, field: str, cache: BlockCache | None = None) -> IO[bytes]:
    """A member of the shard at a path or URL, to be read in a `with`. `cache` None: the default one."""
    return SampleFiles(shard, record, cache).open(field)
