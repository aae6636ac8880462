"""Writing a shard: whole or not at all, and the same bytes however often the writer was stopped.

A shard is written under a name of its own that ends in `.tmp`, read back, and only then renamed. So one under its
final name is always whole, and two programs that write the same shard do no more than the work twice.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from timeviper.datamodules.shards.index import (
    SampleRecord,
    ShardIndex,
    index_shard,
    read_index,
    write_index,
)
from timeviper.datamodules.shards.tar import ShardError, SliceFile
from timeviper.files import whole_file


@dataclass(frozen=True)
class TarSlice:
    """A file inside a tar; copied from there when it is written."""

    path: Path
    offset: int
    size: int


class Made:
    """A file that is put together, or taken out of another one, when it is written. Hashable, equal where it is the
    same file, and cheap to send to another process."""

    ending: str
    """Of the name that it gets."""

    def read(self) -> bytes:
        """All of it, the same bytes each time. ValueError if what it is taken from is damaged."""
        raise NotImplementedError


Payload = bytes | Path | TarSlice | Made
Sample = Mapping[str, Any]
"""`{"__key__": str, "json": dict or bytes, "mp4": Payload, ...}`"""


def write_shard(path: Path, samples: Iterable[Sample], copied: Callable[[int], None] | None = None) -> ShardIndex:
    """One shard and its index. If the tar is already there it is kept, provided it holds these samples.

    `copied` is called with the bytes of each sample once it is in the tar. Raises ShardError with every sample that
    cannot be used, OSError with what could not be read or written; nothing of the shard is kept then.
    """
    samples = list(samples)
    if path.exists():
        return _kept(path, samples)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            with partial.open("wb") as file, tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as tar:
                there: dict[Payload, str] = {}
                for sample in samples:
                    size = _add(tar, path, sample, there)
                    if copied:
                        copied(size)
            index = index_shard(partial, name=path)
        write_index(index)
    except ShardError as error:  # not of a file that is gone
        raise _from_here(error, path, samples) from error
    except OSError as error:
        raise OSError(f"cannot write shard {path}: {error}; nothing of it was kept, run again to continue") from error
    return index


def write_usable(
    path: Path, samples: Sequence[Sample], copied: Callable[[int], None] | None = None
) -> tuple[ShardIndex | None, list[ShardError]]:
    """`write_shard` without the samples that cannot be used, and what is wrong with each of these.

    None if that leaves none. A shard that is there may lack only those that still cannot be used.
    """
    if path.exists():
        there = {sample.key for sample in _index_of(path).samples}
        tried = [_tried(path, sample) for sample in samples if sample["__key__"] not in there]
        left_out = [error for error in tried if error]
    else:
        left_out = []
    while True:
        bad = {error.key for error in left_out}
        usable = [sample for sample in samples if sample["__key__"] not in bad]
        if not usable:
            return None, left_out
        try:
            return write_shard(path, usable, copied), left_out
        except ShardError as error:
            if not error.parts:
                raise
            left_out += error.parts
            copied = None  # they were counted when they were copied first


def _tried(path: Path, sample: Sample) -> ShardError | None:
    """What is wrong with one sample; None if it can be used."""
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as folder:
        try:
            write_shard(Path(folder) / path.name, [sample])
        except ShardError as error:
            return error.parts[0] if error.parts else error
    return None


def _add(tar: tarfile.TarFile, path: Path, sample: Sample, there: dict[Payload, str] | None = None) -> int:
    """Append a sample's files in order of their names; their bytes. Files that are `there`, by name, become links."""
    key, total, there = sample["__key__"], 0, {} if there is None else there
    if not key or "." in key or key.startswith("/") or ".." in key.split("/"):
        raise ShardError(path, "a key must not be empty, have a dot in it or leave the folder; rename it", key, "key")
    for field, value in sorted(_files(sample)):
        info = tarfile.TarInfo(f"{key}.{field}")
        # Nothing of the time or the person, so that the same samples make the same bytes.
        info.mode, info.mtime = 0o444, 0
        info.uname = info.gname = "bigdata"  # as webdataset's writer has it
        if not isinstance(value, bytes):
            info.linkname = there.setdefault(value, info.name)
        if info.linkname not in ("", info.name):
            info.type = tarfile.LNKTYPE
            tar.addfile(info)
            continue
        info.linkname = ""
        if isinstance(value, Made):
            value = _made(value, path, key, field)
        with _opened(value) as (file, info.size):
            tar.addfile(info, file)
        total += info.size
    return total


def _made(value: Made, path: Path, key: str, field: str) -> bytes:
    try:
        return value.read()
    except ValueError as error:
        raise ShardError(path, f"{field} cannot be made: {error}", key, "media") from error


def _files(sample: Sample) -> Iterator[tuple[str, Payload]]:
    for field, value in sample.items():
        if field == "json" and not isinstance(value, bytes):
            yield field, json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        elif field != "__key__":
            yield field, value


class _opened:
    """A payload as a file to read, with its size; large ones are never in memory as a whole."""

    def __init__(self, payload: bytes | Path | TarSlice) -> None:
        self.file: IO[bytes]
        if isinstance(payload, bytes):
            self.file, self.size = io.BytesIO(payload), len(payload)
        elif isinstance(payload, TarSlice):
            self.file, self.size = SliceFile(payload.path, payload.offset, payload.size), payload.size
        else:
            self.file = payload.open("rb")
            self.size = os.fstat(self.file.fileno()).st_size

    def __enter__(self) -> tuple[IO[bytes], int]:
        return self.file, self.size

    def __exit__(self, *_: object) -> None:
        self.file.close()


def _from_here(error: ShardError, path: Path, samples: list[Sample]) -> ShardError:
    """The error with the files that the samples came from: those are what a person can mend."""
    origins = {s["__key__"]: [str(v) for v in s.values() if isinstance(v, Path | Made)] for s in samples}
    parts = error.parts or ((error,) if error.key else ())
    if error.kind == "key" or not parts:
        return ShardError(path, error.detail, error.key, error.kind)
    listed = [f"{part.detail}{_listed(origins.get(part.key, []))}" for part in parts]
    remedy = "\nMend these files or leave them out, then run again (for other entries: into an empty folder)."
    if len(parts) == 1:
        detail = listed[0] + remedy if error.kind == "media" else listed[0]
        return ShardError(path, detail, error.key, error.kind, parts)
    rows = "".join(f"\n  {part.key!r}: {row}" for part, row in zip(parts, listed))
    return ShardError(path, f"{len(parts)} samples cannot be used:{rows}{remedy}", kind=error.kind, parts=parts)


def _listed(files: list[str]) -> str:
    return f" ({', '.join(files)})" if files else ""


def _index_of(path: Path) -> ShardIndex:
    try:
        return read_index(path)
    except ValueError:  # stopped between the tar and its index
        index = index_shard(path)
        write_index(index)
        return index


def _kept(path: Path, samples: list[Sample]) -> ShardIndex:
    """The index of a shard that is there; ValueError if it is of other samples."""
    index = _index_of(path)
    for there, wanted in zip_longest(index.samples, samples):
        if there is None or wanted is None or (difference := _difference(there, wanted)):
            what = difference if there and wanted else f"it holds {len(index.samples)} samples, not {len(samples)}"
            raise ValueError(
                f"shard {path} is already there with other samples ({what}); write to an empty folder, or delete it"
            )
    return index


def _difference(there: SampleRecord, wanted: Sample) -> str:
    """What differs, by keys, texts and the sizes of media; "" if nothing. No medium is read."""
    files = dict(_files(wanted))
    if there.key != wanted["__key__"]:
        return f"{there.key!r} where {wanted['__key__']!r} should be"
    if there.members.keys() != files.keys():
        return f"{there.key!r} has {', '.join(sorted(there.members))}, not {', '.join(sorted(files))}"
    for field, payload in files.items():
        _, size, crc = there.members[field]
        payload = payload.read() if isinstance(payload, Made) else payload
        if isinstance(payload, bytes):
            same = (size, crc) == (len(payload), zlib.crc32(payload))
        else:
            same = size == (payload.size if isinstance(payload, TarSlice) else payload.stat().st_size)
        if not same:
            return f"{there.key}.{field} has changed"
    return ""
