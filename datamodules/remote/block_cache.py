"""A folder that keeps blocks of remote shards, within a bound that holds for all the processes that share it.

One file a block, put there whole or not at all. A lock serialises those who add; the file that is locked holds the sum
of all sizes, which is raised before a block is written. So a process that is killed anywhere leaves a sum that is too
large and never a folder that is; counting the files anew mends it. Readers take no lock: a block that disappears
is a miss, and whoever asks has the checksum of what it should be.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from timeviper.config import DataConfig
from timeviper.datamodules.shards.address import split_query
from timeviper.datamodules.shards.block_sums import FileBlock
from timeviper.files import TEMPORARY

KEEP = 0.9  # share of the bound that is left when it was reached, so that not every block costs a look at all files
FOLDERS = 256


class BlockCache:
    """Blocks by shard and place, the ones that were not used for longest go first. Small, and may be pickled."""

    def __init__(self, folder: str | Path = "", max_bytes: int = 10 * 10**9) -> None:
        """`folder` "": timeviper-cache in the temporary folder. `max_bytes` 0: nothing is kept."""
        self.folder = Path(folder or Path(tempfile.gettempdir()) / "timeviper-cache")
        self.max_bytes = max_bytes
        self._counted = False  # whether this process has counted the files

    @classmethod
    def of(cls, data: DataConfig) -> BlockCache:
        """The cache that a recipe asks for."""
        return cls(data.cache, int(data.cache_gb * 10**9))

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_counted": False}

    def get(self, shard: str, block: FileBlock) -> bytes | None:
        """A block, or None if it is not there as it should be."""
        path = self._path(shard, block)
        try:
            data = path.read_bytes()
            os.utime(path)  # used now
        except OSError:
            return None
        return data if block.holds(data) else None

    def has(self, shard: str, block: FileBlock) -> bool:
        """Whether `get` would find something, sound or not."""
        return self._path(shard, block).exists()

    def put(self, shard: str, block: FileBlock, data: bytes | memoryview) -> None:
        """Keep a block. A disk that is full or may not be written costs a warning, no more."""
        size = len(data)
        if size > self.max_bytes:
            return
        path = self._path(shard, block)
        try:
            with self._locked() as lock:
                total = _read_sum(lock)
                there = path.stat().st_size if path.exists() else 0  # a damaged one
                if total is None or not self._counted or total + size > self.max_bytes:
                    total = self._shrink(size)
                    self._counted = True
                os.pwrite(lock, f"{total + size:020d}".encode(), 0)
                partial = path.with_name(path.name + TEMPORARY)
                partial.parent.mkdir(exist_ok=True)
                partial.write_bytes(data)  # not forced to the disk: a torn block is a miss, and all wait for this lock
                partial.replace(path)
                if there:
                    os.pwrite(lock, f"{total + size - there:020d}".encode(), 0)
        except OSError as error:
            warnings.warn(f"nothing is kept in {self.folder}: {error}; remote shards are read again", stacklevel=2)
            self.max_bytes = 0

    def _path(self, shard: str, block: FileBlock) -> Path:
        place = split_query(shard)[0]  # the same file under a new signature
        name = sha256(f"{place}\n{block.offset}\n{block.size}\n{block.crc32:08x}".encode()).hexdigest()[:32]
        return self.folder / name[:2] / name[2:]

    @contextmanager
    def _locked(self) -> Iterator[int]:
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield lock
        finally:
            os.close(lock)

    def _shrink(self, room: int) -> int:
        """Count all files; delete the oldest if `room` more bytes would not fit. The bytes that are left."""
        found = []
        for number in range(FOLDERS):
            with suppress(FileNotFoundError), os.scandir(self.folder / f"{number:02x}") as entries:
                for entry in entries:
                    if entry.name.endswith(TEMPORARY):  # of a process that was killed: the lock is ours
                        os.unlink(entry)
                    else:
                        status = entry.stat()
                        found.append((status.st_mtime_ns, status.st_size, entry.path))
        total = sum(size for _, size, _ in found)
        if total + room <= self.max_bytes:
            return total
        for _, size, path in sorted(found):
            if total <= KEEP * self.max_bytes - room:
                break
            os.unlink(path)
            total -= size
        return total


def _read_sum(lock: int) -> int | None:
    """Bytes of all blocks, as the locked file says; None if nobody has counted yet."""
    text = os.pread(lock, 20, 0)
    return int(text) if text.isdigit() else None
