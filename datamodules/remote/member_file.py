"""A member of a shard as a file of which no byte is handed out that is not what it was when the index was written.

PyAV reads a video through it, wherever the shard is: from a disk in place, from a store in ranges of whole blocks that
a cache keeps. What is damaged raises ShardError; as FFmpeg may take that for the end of a file, leaving the `with`
raises it again.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from contextlib import suppress
from types import TracebackType

from av.error import err_check

from timeviper.datamodules.remote.block_cache import BlockCache
from timeviper.datamodules.remote.storage import StorageError, is_remote, read_range
from timeviper.datamodules.shards.address import shown
from timeviper.datamodules.shards.block_sums import BLOCK_BYTES, FileBlocks
from timeviper.datamodules.shards.index_file import SampleRecord
from timeviper.datamodules.shards.tar import RangeFile, ShardError

HELD = 16  # blocks that one open file has in memory, 1 MiB; also the most that one request asks for
AHEAD = 6  # blocks read in a row for each that is asked for beyond: at most a sixth is for nothing


class MemberFile(RangeFile):
    """Base of both kinds; `load` is what differs."""

    def __init__(self, shard: str, record: SampleRecord, field: str) -> None:
        where = record.members[field]
        super().__init__(f"{shown(shard)}[{record.key}.{field}]", where.size)
        self.shard, self.key, self.field = shard, record.key, field
        self.blocks = FileBlocks(where, record.blocks.get(field, b""))
        self.error: Exception | None = None
        self._held: OrderedDict[int, bytes] = OrderedDict()

    def load(self, number: int) -> dict[int, bytes]:
        """Block `number`, and perhaps some after it; all of them verified."""
        raise NotImplementedError

    def read_at(self, at: int, view: memoryview) -> int:
        if self.error is not None:  # said already; PyAV prints a second one before it has passed on the first
            return 0
        number, start = divmod(at, BLOCK_BYTES)
        try:
            if number not in self._held:
                self._held |= self.load(number)
                while len(self._held) > HELD:
                    self._held.popitem(last=False)
        except Exception as error:
            self.error = error
            raise
        part = memoryview(self._held[number])[start : start + len(view)]
        view[: len(part)] = part
        return len(part)

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
        self._fd = -1
        self._fd = os.open(shard, os.O_RDONLY | os.O_CLOEXEC)

    def load(self, number: int) -> dict[int, bytes]:
        block = self.blocks[number]
        data = os.pread(self._fd, block.size, block.offset)
        if not block.holds(data):
            raise self.damaged(number, len(data))
        return {number: data}

    def close(self) -> None:
        if not self.closed and self._fd >= 0:
            os.close(self._fd)
        super().close()


class RemoteMember(MemberFile):
    """Of a shard in a store. A block is asked for once, and then found in the cache for as long as that keeps it."""

    def __init__(self, shard: str, record: SampleRecord, field: str, cache: BlockCache, whole: bool) -> None:
        """`whole`: all of it will be read, so that it may be asked for in large pieces from the start."""
        super().__init__(shard, record, field)
        self.cache, self.whole = cache, whole
        self._begin = self._end = 0  # blocks that were read in a row up to now

    def load(self, number: int) -> dict[int, bytes]:
        if number != self._end:
            self._begin = number
        self._end = number + 1
        if (data := self.cache.get(self.shard, self.blocks[number])) is not None:
            return {number: data}
        wanted = HELD if self.whole else min(1 + (number - self._begin) // AHEAD, HELD)
        while self._end < min(number + wanted, len(self.blocks)) and self._is_missing(self._end):
            self._end += 1
        return self._fetched(range(number, self._end))

    def _is_missing(self, number: int) -> bool:
        return number not in self._held and not self.cache.has(self.shard, self.blocks[number])

    def _fetched(self, numbers: range) -> dict[int, bytes]:
        """FileBlocks that follow each other, in one request; what arrives damaged is asked for once more."""
        found: dict[int, bytes] = {}
        for attempt in range(2):
            wrong = self._request([n for n in numbers if n not in found], found)
            if not wrong:
                break
            if attempt:
                raise self.damaged(wrong[0], self.blocks[wrong[0]].size)
        return found

    def _request(self, numbers: list[int], found: dict[int, bytes]) -> list[int]:
        """Put what is sound into `found` and the cache; the numbers of what is not."""
        if not numbers:
            return []
        first, last = self.blocks[numbers[0]], self.blocks[numbers[-1]]
        try:
            data = memoryview(read_range(self.shard, first.offset, last.offset + last.size))
        except StorageError as error:
            raise StorageError(f"sample {self.key!r}, {self.field}: {error}") from error
        wrong = []
        for n in numbers:
            block = self.blocks[n]
            start = block.offset - first.offset
            piece = data[start : start + block.size]
            if block.holds(piece):
                found[n] = bytes(piece)
                self.cache.put(self.shard, block, piece)
            else:
                wrong.append(n)
        return wrong


def open_member(
    shard: str, record: SampleRecord, field: str, cache: BlockCache | None = None, whole: bool = False
) -> MemberFile:
    """A member of the shard at a path or URL, to be read in a `with`. `cache` None: the default one."""
    if is_remote(shard):
        return RemoteMember(shard, record, field, cache or BlockCache(), whole)
    return LocalMember(shard, record, field)


def read_whole(shard: str, record: SampleRecord, field: str, cache: BlockCache | None = None) -> bytes:
    """All bytes of a member. Raises ShardError for damaged ones, OSError for what cannot be read."""
    with open_member(shard, record, field, cache, whole=True) as file:
        return file.readall()
