"""Archives that a set is downloaded as, read in place: zip, tar, tar.gz, and a tar in parts (`.tar.part.aa`, ...).

What a zip stores and what a plain tar holds is read where it lies. What is compressed is decompressed into a temporary
file when it is opened; of a tar.gz that means everything before it, too, unless members are opened in their order.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import IO, BinaryIO

from timeviper.datamodules.shards.tar import LITTER, TAR_BLOCK, RangeFile

ZIPS, TARS, GZIPPED = (".zip",), (".tar",), (".tar.gz", ".tgz")
PART = re.compile(r"(?P<stem>.+\.tar(?:\.gz)?)[._](?:part[._-]?)?(?P<part>(?!gz$|xz$|bz$)[a-z]{2}|\d{2,3})$")
LOCAL = struct.Struct("<4s22xHH")  # of a zip's member, before its bytes: signature, lengths of name and extra field
ENCRYPTED = 1
AGAIN = "download it again"


class ArchiveError(ValueError):
    """An archive that is not whole, or that cannot be read."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


@dataclass(frozen=True)
class Member:
    """A file in an archive."""

    name: str
    size: int
    offset: int
    """Of its bytes in the (decompressed) archive; in a zip, of the header before them."""


class Joined(RangeFile):
    """Bytes `[offset, offset + size)` of files that follow each other, as one file."""

    def __init__(self, paths: Sequence[Path], offset: int = 0, size: int | None = None) -> None:
        sizes = [path.stat().st_size for path in paths]
        self._begins = [sum(sizes[:i]) for i in range(len(sizes))]
        whole = sum(sizes) - offset
        super().__init__(f"{paths[0]}[{offset}:]", whole if size is None else min(size, whole))
        self._offset = offset
        self._fds: list[int] = []  # closing must work if opening fails
        for path in paths:
            self._fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def read_at(self, at: int, view: memoryview) -> int:
        """All of it, across parts: readers of tars take less for the end of the file."""
        at, got = at + self._offset, 0
        while got < len(view):
            part = bisect_right(self._begins, at + got) - 1
            count = os.preadv(self._fds[part], [view[got:]], at + got - self._begins[part])
            if not count:
                break
            got += count
        return got

    def close(self) -> None:
        if not self.closed:
            while self._fds:
                os.close(self._fds.pop())
        super().close()


class Spilled(RangeFile):
    """A member that had to be decompressed: a temporary file without a name on the disk."""

    def __init__(self, name: str, source: IO[bytes], size: int) -> None:
        super().__init__(name, size)
        self._file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115
        left = size
        while left and (chunk := source.read(min(left, 1 << 20))):
            self._file.write(chunk)
            left -= len(chunk)
        self._file.flush()
        if left:
            raise EOFError(f"{left} bytes of {size} are missing")

    def read_at(self, at: int, view: memoryview) -> int:
        return os.preadv(self._file.fileno(), [view], at)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def is_archive(name: str) -> bool:
    """By its name; of a tar in parts, its first one alone."""
    lower = name.lower()
    if lower.endswith((*ZIPS, *TARS, *GZIPPED)):
        return True
    found = PART.fullmatch(lower)
    return bool(found) and found["part"] in ("aa", "00", "000", "01", "001")


def is_compressed(path: Path) -> bool:
    """Whether opening a member decompresses all before it."""
    found = PART.fullmatch(path.name.lower())
    return (found["stem"] if found else path.name.lower()).endswith(GZIPPED)


def is_later_part(name: str) -> bool:
    return bool(PART.fullmatch(name.lower())) and not is_archive(name)


def parts_of(path: Path) -> list[Path]:
    """The archive, or all parts of it in order. ArchiveError if one between them is missing."""
    found = PART.fullmatch(path.name)
    if not found:
        return [path]
    near = path.name[: -len(found["part"])]
    parts = sorted(p for p in path.parent.iterdir() if p.name.startswith(near) and PART.fullmatch(p.name))
    ends = [p.name[len(near) :] for p in parts]
    for before, after in pairwise(ends):
        if _number(after) != _number(before) + 1:
            raise ArchiveError(path, f"the part between {near}{before} and {near}{after} is missing: {AGAIN}")
    return parts


def _number(part: str) -> int:
    return int(part) if part.isdigit() else (ord(part[0]) - 97) * 26 + ord(part[1]) - 97


@lru_cache(maxsize=256)
def members_of(path: Path) -> dict[str, Member]:
    """All files of an archive by name, without those that systems keep for themselves.

    ArchiveError, with what to do, for one that is cut, encrypted, damaged, or a pointer of Git LFS.
    """
    if path.stat().st_size < 200 and path.read_bytes().startswith(b"version https://git-lfs"):
        raise ArchiveError(path, "is a pointer of Git LFS, not the archive: run git lfs pull")
    found = _of_zip(path) if path.name.lower().endswith(ZIPS) else _of_tar(path)
    return {m.name: m for m in found if not LITTER.fullmatch(m.name)}


def _of_zip(path: Path) -> list[Member]:
    if path.with_suffix(".z01").exists():
        raise ArchiveError(path, f"is the last of several pieces: join them with zip -s 0 {path.name} --out whole.zip")
    try:
        with zipfile.ZipFile(path) as archive:
            return [Member(i.filename, i.file_size, i.header_offset) for i in archive.infolist() if not i.is_dir()]
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
        size = path.stat().st_size
        raise ArchiveError(
            path, f"is no whole zip ({size:,} bytes; its list of files, which stands at the end, is missing): {AGAIN}"
        ) from error


def _of_tar(path: Path) -> list[Member]:
    found, end = [], 0
    try:
        with _tar_bytes(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                end = info.offset_data + -(-max(info.size, 0) // TAR_BLOCK) * TAR_BLOCK
                if info.isfile() and info.size >= 0:
                    found.append(Member(info.name.removeprefix("./"), info.size, info.offset_data))
            file.seek(end)
            if len(file.read(TAR_BLOCK)) < TAR_BLOCK:
                raise ArchiveError(path, f"is cut off after {found[-1].name if found else 'its start'}: {AGAIN}")
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, OSError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise ArchiveError(path, f"is no whole tar ({error}): {AGAIN}") from error
    return found


def _tar_bytes(path: Path) -> IO[bytes]:
    """A tar without its compression."""
    raw = Joined(parts_of(path))
    if is_compressed(path):
        return gzip.GzipFile(fileobj=raw, mode="rb")  # pyright: ignore[reportReturnType]
    return raw


_GZIPPED: dict[tuple[Path, int], IO[bytes]] = {}  # by process: one that is read on, so members in order cost one pass


def open_member(path: Path, name: str) -> IO[bytes]:
    """A member as a file that can be sought in. ArchiveError if it is not there or damaged."""
    member = members_of(path).get(name)
    if member is None:
        raise ArchiveError(path, f"has no {name}")
    where = f"{path}:{name}"
    try:
        if path.name.lower().endswith(ZIPS):
            return _from_zip(path, member, where)
        if not is_compressed(path):
            return Joined(parts_of(path), member.offset, member.size)
        key = (path, os.getpid())
        if key not in _GZIPPED:
            _GZIPPED.clear()
            _GZIPPED[key] = _tar_bytes(path)
        _GZIPPED[key].seek(member.offset)
        return Spilled(where, _GZIPPED[key], member.size)
    except (zipfile.BadZipFile, EOFError, gzip.BadGzipFile, zlib.error, RuntimeError, NotImplementedError) as error:
        raise ArchiveError(path, f"{name} cannot be read ({error}): {AGAIN}") from error


def _from_zip(path: Path, member: Member, where: str) -> IO[bytes]:
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member.name)
        if info.flag_bits & ENCRYPTED:
            raise ArchiveError(path, f"{member.name} is encrypted: unpack it with its password")
        if info.compress_type != zipfile.ZIP_STORED:
            with archive.open(info) as packed:
                return Spilled(where, packed, info.file_size)
    with path.open("rb") as file:
        file.seek(info.header_offset)
        head = file.read(LOCAL.size)
    signature, name, extra = LOCAL.unpack(head) if len(head) == LOCAL.size else (b"", 0, 0)
    if signature != b"PK\x03\x04":
        raise ArchiveError(path, f"{member.name} does not lie where the zip says: {AGAIN}")
    return Joined([path], info.header_offset + LOCAL.size + name + extra, info.file_size)


def extract(path: Path, folder: str, to: Path) -> None:
    """All files of an archive that lie directly in a folder of it."""
    for name in members_of(path):
        if name.startswith(folder) and "/" not in (base := name[len(folder) :]):
            with open_member(path, name) as source, (to / base).open("wb") as file:
                shutil.copyfileobj(source, file)
