"""Tar files read strictly: every byte is accounted for, or the file is refused.

`tarfile` and the iterators on top of it stop without a word at a garbage header or at a cut, and
join fields by name alone. Here a shard that is not whole raises, and a sample is only ever the
adjacent members of one key in one file.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from timeviper.datamodules.shards.schema import MAX_JSON

# What macOS, Windows and Synology put beside the files of a person.
LITTER = re.compile(
    r"(?:.*/)?(?:\._[^/]*|\.DS_Store|Thumbs\.db|desktop\.ini|Icon\r|(?:__MACOSX|@eaDir)/.*)", re.IGNORECASE
)
TAR_BLOCK = 512  # a tar is a row of such blocks and ends with two of zeros
CHUNK = 1 << 20


class ShardError(ValueError):
    """Something in a shard that must not be read; `kind` is one word for reports.

    `parts`: what is wrong with each sample, where several cannot be used.
    """

    def __init__(
        self,
        shard: Path | str,
        detail: str,
        key: str = "",
        kind: str = "tar",
        parts: Sequence[ShardError] = (),
    ) -> None:
        super().__init__(f"{shard}{f', sample {key!r}' if key else ''}: {detail}")
        self.shard, self.detail, self.key, self.kind, self.parts = Path(shard), detail, key, kind, tuple(parts)

    def __reduce__(self) -> tuple[type[ShardError], tuple[object, ...]]:
        return ShardError, (self.shard, self.detail, self.key, self.kind, self.parts)  # writers send it to their parent


class Slice(NamedTuple):
    """Where a member's bytes lie in its shard."""

    offset: int
    size: int
    crc32: int


class File(NamedTuple):
    """One file of a tar, whatever it is called."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Member:
    """One file of a tar: `<key>.<field>`."""

    key: str
    field: str
    offset: int
    size: int


class RangeFile(io.RawIOBase, BinaryIO):
    """A read-only file of known size; a subclass gives the bytes from any position on (`read_at`)."""

    def __init__(self, name: str, size: int) -> None:
        super().__init__()
        self._name, self._size, self._at = name, size, 0

    def read_at(self, at: int, view: memoryview) -> int:
        """Fill `view`, which is not empty, with bytes from `at` on, as far as they come at once; how many."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        return self._name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(f"seek to {base + offset} in {self._name}: before the start")
        self._at = base + offset
        return self._at

    def readinto(self, buffer) -> int:
        view = memoryview(buffer).cast("B")
        want = max(0, min(len(view), self._size - self._at))
        got = self.read_at(self._at, view[:want]) if want else 0
        self._at += got
        return got


class SliceFile(RangeFile):
    """Bytes `[offset, offset + size)` of a file as a file of their own: PyAV opens a member in place."""

    def __init__(self, path: str | Path, offset: int, size: int) -> None:
        super().__init__(f"{path}[{offset}:{offset + size}]", size)
        self._offset = offset
        self._fd = -1  # closing must work if opening fails
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read_at(self, at: int, view: memoryview) -> int:
        """pread: no shared position, so slices of one shard may be read side by side."""
        return os.preadv(self._fd, [view], self._offset + at)

    def close(self) -> None:
        if not self.closed and self._fd >= 0:
            os.close(self._fd)
        super().close()


def read_member(path: str | Path, offset: int, size: int, crc32: int | None = None) -> bytes:
    """A member's bytes. OSError if the file ends before them, ValueError if `crc32` is not theirs."""
    with SliceFile(path, offset, size) as file:
        # Not more than there are: a damaged index may ask for any number.
        data = file.read(max(min(size, os.path.getsize(path) - offset), 0))
    if len(data) != size:
        raise OSError(f"{path} ends {size - len(data)} bytes before the end of the member at {offset}")
    if crc32 is not None and zlib.crc32(data) != crc32:
        raise ValueError(f"{path}: the {size} bytes at {offset} are damaged (wrong checksum); copy the shard again")
    return data


def is_litter(path: Path) -> bool:
    """Whether a file is one that a system keeps for itself, such as `._shard-00000.tar` on a disk from a Mac."""
    return bool(LITTER.fullmatch(path.name))


def scan_tar(path: Path) -> list[Member]:
    """All members in order, from the headers. ShardError unless the archive is whole to its last byte."""
    return list(iter_tar(path))


def iter_tar(path: Path) -> Iterator[Member]:
    """Members in order, until the end or the ShardError where the archive is damaged: what lies before may be whole."""
    for file in iter_files(path):
        if not LITTER.fullmatch(file.name):
            yield _member(path, file)


def iter_files(path: Path) -> Iterator[File]:
    """As `iter_tar`, but every file, also those that are no member of a sample."""
    end, files = 0, {}
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                if info.size < 0:  # tarfile would read the same header for ever
                    raise ShardError(path, f"damaged: member {info.name!a} has {info.size} bytes")
                if info.islnk():  # a second name for a file of this archive
                    if info.linkname not in files:
                        raise ShardError(
                            path, f"member {info.name!r} is no plain file: a link, but to none before it in the archive"
                        )
                    end = info.offset_data
                    info.offset_data, info.size = files[info.linkname]
                    yield _named(path, info)
                    continue
                if not (info.isfile() or info.isdir()) or info.issparse():
                    raise ShardError(path, f"member {info.name!r} is no plain file; a shard may not have links")
                if info.isfile():  # `tar cf x.tar folder` has an entry for the folder, which says nothing
                    files[info.name] = (info.offset_data, info.size)
                    yield _named(path, info)
                end = info.offset_data + -(-info.size // TAR_BLOCK) * TAR_BLOCK
    except (tarfile.TarError, RecursionError, OverflowError) as error:
        raise ShardError(path, f"not an uncompressed tar, or damaged at its start ({error})") from error
    _check_end(path, end)


def _named(path: Path, info: tarfile.TarInfo) -> File:
    if not info.name.isprintable() and not LITTER.fullmatch(info.name):  # nor could it be written to a report
        raise ShardError(path, f"member {info.name!a} has characters that cannot be shown; rename it")
    if info.name.startswith("/") or ".." in info.name.split("/"):
        raise ShardError(path, f"member {info.name!r} points out of the archive; rename it")
    return File(info.name, info.offset_data, info.size)


def _member(path: Path, file: File) -> Member:
    folder, _, name = file.name.rpartition("/")
    key, dot, field = name.partition(".")
    if not (key and dot and field):
        raise ShardError(path, f"member {file.name!r} is not named <key>.<field>, for instance clip1.mp4")
    return Member(f"{folder}/{key}" if folder else key, field, file.offset, file.size)


def _check_end(path: Path, end: int) -> None:
    """After the last member there must be two blocks of zeros, and nothing but zeros."""
    size = path.stat().st_size
    if size < end:
        raise ShardError(path, f"cut off: {size} bytes, but the last member reaches to {end}; copy the shard again")
    with SliceFile(path, end, size - end) as tail:
        left = 0
        while chunk := tail.read(CHUNK):
            if chunk.count(0) != len(chunk):
                raise ShardError(
                    path,
                    f"damaged: no member starts at byte {end}, where one should; copy the shard again",
                )
            left += len(chunk)
    if left < 2 * TAR_BLOCK:
        raise ShardError(path, f"cut off after byte {end}: the end-of-archive mark is missing; copy the shard again")


def group(
    path: Path, members: list[Member], texts: Collection[str] = ("json",)
) -> Iterator[tuple[str, dict[str, Member]] | ShardError]:
    """Samples: runs of members with one key, one of `texts` among them. What is wrong comes out in its place."""
    seen: set[str] = set()
    start = 0
    while start < len(members):
        key = members[start].key
        stop = start
        while stop < len(members) and members[stop].key == key:
            stop += 1
        run, start = members[start:stop], stop
        fields = {m.field: m for m in run}
        if key in seen:
            detail = "its files do not follow each other, or the key is used twice"
            yield ShardError(path, detail, key, "key")
        elif len(fields) < len(run):
            yield ShardError(path, "a file is there twice; the key is used twice or has a dot in it", key, "key")
        elif not fields.keys() & set(texts):
            yield ShardError(path, f"has {', '.join(sorted(fields))} but no {' or '.join(texts)}", key, "incomplete")
        elif "json" in fields and fields["json"].size > MAX_JSON:
            detail = f"its json has {fields['json'].size:,} bytes, more than {MAX_JSON:,}; split the sample"
            yield ShardError(path, detail, key, "json")
        else:
            yield key, fields
        seen.add(key)
