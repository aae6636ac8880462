"""A folder that keeps blocks of remote shards, within a bound that holds for all the processes that share it.

One file a page, which is 64 KiB of a shard: the blocks that begin there, as far as they were read. A file is put there
whole or not at all. A lock serialises those who add; the file that is locked holds the bytes of each of 256 folders,
raised before a page is written. So a process that is killed anywhere leaves a sum that is too large and never a folder
that is. When the bound is reached, one folder after the other is looked at, loses what was not used for longest, and is
counted anew. Readers take no lock: a block that disappears is a miss, and whoever asks has the checksum of what it
should be.
"""

from __future__ import annotations

import fcntl
import os
import struct
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from itertools import groupby
from pathlib import Path

from timeviper.config import DataConfig
from timeviper.datamodules.remote.patience import PATIENCE
from timeviper.datamodules.shards.address import split_query
from timeviper.datamodules.shards.block_sums import BLOCK_BYTES, FileBlock
from timeviper.files import TEMPORARY

LOOK = 512  # files that are looked at to find the oldest, when the bound is reached
KEEP = 0.9  # share of them that is left, so that not every page costs a look
FOLDERS = 256
SUMS = struct.Struct(f"<{FOLDERS}QH")  # bytes of each folder; the one that is looked at next
HEAD, ENTRY = (
    struct.Struct("<H"),
    struct.Struct("<QIII"),
)  # of a page: how many blocks; of each offset, size, crc32, place
LOCK, NEW = "lock", f"new{TEMPORARY}"
PAUSE = 60.0  # s without another try where nothing could be written


class BlockCache:
    """Blocks by shard and place, the ones that were not used for longest go first. Small, and may be pickled."""

    def __init__(self, folder: str | Path = "", max_bytes: int = 10 * 10**9, patience: float = PATIENCE) -> None:
        """`folder` "": timeviper-cache in the temporary folder. `max_bytes` 0: nothing is kept.

        `patience`: seconds for which whoever fills it waits for a store that is away.
        """
        self.folder = Path(folder or Path(tempfile.gettempdir()) / "timeviper-cache")
        self.max_bytes, self.patience = max_bytes, patience
        self._rests_until = 0.0

    @classmethod
    def of(cls, data: DataConfig) -> BlockCache:
        """The cache that a recipe asks for."""
        return cls(data.cache, int(data.cache_gb * 10**9), data.patience)

    def get(self, shard: str, blocks: Iterable[FileBlock]) -> dict[FileBlock, bytes]:
        """Those of the blocks that are there as they should be."""
        found: dict[FileBlock, bytes] = {}
        if not self.max_bytes:
            return found
        for page, wanted in groupby(blocks, _page):
            path = self._path(shard, page)
            held = _read(path)
            sound = {block: data for block in wanted if (data := held.get(block)) and block.holds(data)}
            if sound:
                with suppress(OSError):
                    os.utime(path)  # used now
            found |= sound
        return found

    def put(self, shard: str, blocks: Mapping[FileBlock, bytes | memoryview]) -> None:
        """Keep blocks. A disk that is full or may not be written costs a warning, and a while without another try."""
        if not self.max_bytes or time.monotonic() < self._rests_until:
            return
        try:
            for page, part in groupby(sorted(blocks), _page):
                self._add(self._path(shard, page), {block: blocks[block] for block in part})
        except OSError as error:
            self._rests_until = time.monotonic() + PAUSE
            warnings.warn(
                f"nothing is kept in {self.folder} for {PAUSE:.0f} s: {error}; remote shards are read again",
                stacklevel=2,
            )

    def _add(self, path: Path, new: dict[FileBlock, bytes | memoryview]) -> None:
        """Put blocks into a page, beside those that it has and that do not overlap them."""
        with self._locked() as lock:
            there = path.stat().st_size if path.exists() else 0
            old = {b: d for b, d in _read(path).items() if all(b.end <= n.offset or n.end <= b.offset for n in new)}
            content = _encoded(old | new)
            number, sums = int(path.parent.name, 16), _Sums(lock, self._count)
            if sums.total - there + len(content) > self.max_bytes:
                self._make_room(sums, len(content))
                there = path.stat().st_size if path.exists() else 0
                if sums.total - there + len(content) > self.max_bytes:
                    return
            sums.add(number, len(content))  # both are there for a moment
            partial = self.folder / NEW  # the lock is ours, so there is only one
            try:
                partial.write_bytes(content)  # not forced to the disk: a torn block is a miss, and all wait for this
                path.parent.mkdir(exist_ok=True)
                partial.replace(path)
                sums.add(number, -there)
            except OSError:
                sums.add(number, -len(content))
                raise
            finally:
                partial.unlink(missing_ok=True)

    def _path(self, shard: str, page: int) -> Path:
        place = split_query(shard)[0]  # the same file under a new signature
        name = sha256(f"{place}\n{page}".encode()).hexdigest()[:32]
        return self.folder / name[:2] / name[2:]

    @contextmanager
    def _locked(self) -> Iterator[int]:
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield lock
        finally:
            os.close(lock)

    def _count(self, number: int) -> int:
        """Bytes of a folder."""
        return sum(size for _, size, _ in self._files(number))

    def _files(self, number: int) -> list[tuple[int, int, str]]:
        """When each file of a folder was used, its size and its path; what does not belong there goes."""
        found = []
        with suppress(FileNotFoundError), os.scandir(self.folder / f"{number:02x}") as entries:
            for entry in entries:
                if entry.name.endswith(TEMPORARY):
                    os.unlink(entry)
                else:
                    status = entry.stat()
                    found.append((status.st_mtime_ns, status.st_size, entry.path))
        return found

    def _make_room(self, sums: _Sums, room: int) -> None:
        """Delete what was not used for longest in some folders, and in others after them, until `room` more bytes fit.

        Names are evenly spread, so the oldest of a few folders are as old as the oldest of all.
        """
        looked = 0
        while sums.total + room > self.max_bytes and looked < 2 * FOLDERS:
            left: dict[int, int] = {}
            files: list[tuple[int, int, str, int]] = []
            while len(files) < LOOK and len(left) < FOLDERS:
                number = sums.turn()
                files += [(*file, number) for file in self._files(number)]
                left[number] = 0
            for _, size, _, number in files:
                left[number] += size
            total = sum(left.values())
            bound = max(KEEP * total - room, 0)
            for _, size, path, number in sorted(files):
                if total <= bound:
                    break
                os.unlink(path)
                total -= size
                left[number] -= size
            for number, size in left.items():
                sums.set(number, size)
            looked += len(left)


class _Sums:
    """Bytes of each folder, as the locked file has them; counted where that says nothing."""

    def __init__(self, lock: int, count: Callable[[int], int]) -> None:
        self.lock = lock
        raw = os.pread(lock, SUMS.size, 0)
        if len(raw) == SUMS.size and os.fstat(lock).st_size == SUMS.size:
            *self.sums, self.next = SUMS.unpack(raw)
        else:  # new, or not ours
            self.sums, self.next = [count(number) for number in range(FOLDERS)], 0
            self._write()
        self.total = sum(self.sums)

    def turn(self) -> int:
        number, self.next = self.next % FOLDERS, (self.next + 1) % FOLDERS
        return number

    def add(self, number: int, size: int) -> None:
        self.set(number, max(self.sums[number] + size, 0))

    def set(self, number: int, size: int) -> None:
        self.total += size - self.sums[number]
        self.sums[number] = size
        self._write()

    def _write(self) -> None:
        raw = SUMS.pack(*self.sums, self.next)
        os.pwrite(self.lock, raw, 0)
        os.ftruncate(self.lock, len(raw))


def _page(block: FileBlock) -> int:
    return block.offset // BLOCK_BYTES


def _encoded(blocks: Mapping[FileBlock, bytes | memoryview]) -> bytes:
    place, entries = HEAD.size + ENTRY.size * len(blocks), []
    for block in blocks:
        entries.append(ENTRY.pack(*block, place))
        place += block.size
    return b"".join([HEAD.pack(len(blocks)), *entries, *blocks.values()])


def _read(path: Path) -> dict[FileBlock, bytes]:
    """The blocks of a page, as they were put there or not: whoever uses them checks them. Nothing if it is damaged."""
    try:
        raw = path.read_bytes()
        (count,) = HEAD.unpack_from(raw)
        found = (ENTRY.unpack_from(raw, HEAD.size + i * ENTRY.size) for i in range(count))
        return {FileBlock(*block): raw[place : place + block[1]] for *block, place in found}
    except (OSError, struct.error):
        return {}
