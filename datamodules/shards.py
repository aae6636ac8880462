"""WebDataset shards: writing them, and the one door to reading, indexing and checking them.

A shard is a tar of samples, `<key>.json` next to `<key>.mp4` (mkv, webm, jpg, png, ...); the json is
described in `shard_schema.py`, the index beside the tar in `shard_index.py`. A shard under its final name
is always whole: it is written as `name.tar.tmp`, read back, and only then renamed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from webdataset.writer import TarWriter

from timeviper.datamodules.shard_check import Problem, Report, check_shards
from timeviper.datamodules.shard_index import (
    Conversation,
    SampleRecord,
    ShardIndex,
    index_path,
    index_shard,
    index_shards,
    load_index,
    read_index,
    write_index,
)
from timeviper.datamodules.shard_schema import SchemaError, parse_record
from timeviper.datamodules.shard_tar import ShardError, Slice, SliceFile, read_member

__all__ = [
    "Conversation",
    "Problem",
    "Report",
    "SampleRecord",
    "SchemaError",
    "ShardError",
    "ShardIndex",
    "Slice",
    "SliceFile",
    "check_shards",
    "index_path",
    "index_shards",
    "load_index",
    "parse_record",
    "read_member",
    "write_shard",
    "write_shards",
]

Sample = Mapping[str, Any]  # {"__key__": str, "json": dict, "mp4": bytes or the Path of a file, ...}


def write_shards(
    samples: Iterable[Sample],
    out: str | Path,
    samples_per_shard: int = 256,
    name: str = "shard",
    progress: Callable[[int], None] | None = None,
) -> list[ShardIndex]:
    """Write all samples as `out/<name>-00000.tar`, ... with their indexes; finished shards are kept.

    A run that was stopped continues when it is given the same samples again: give media as paths, so that
    those of finished shards are not even read. `progress` is called with the number of samples done so far.
    """
    folder = Path(out)
    shards, done, stream = [], 0, iter(samples)
    while part := list(islice(stream, samples_per_shard)):
        shards.append(write_shard(folder / f"{name}-{len(shards):05d}.tar", part))
        done += len(part)
        if progress:
            progress(done)
    if not shards:
        raise ValueError(f"no samples to write to {folder}")
    return shards


def write_shard(path: Path, samples: Iterable[Sample]) -> ShardIndex:
    """One shard and its index. If the tar is already there it is kept, provided it holds these samples."""
    samples = list(samples)
    if path.exists():
        return _kept(path, [s["__key__"] for s in samples])
    partial = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            # Without a time of writing, the same samples make the same bytes.
            with TarWriter(file, encoder=False, mtime=0, format="PAX_FORMAT") as tar:
                for sample in samples:
                    tar.write(dict(_encoded(path, sample)))
            file.flush()
            os.fsync(file.fileno())
        index = index_shard(partial, name=path)
        partial.replace(path)
        write_index(index)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, ShardError):  # not of a file that is gone
            remedy = "\nMend these files or leave them out, then run again." if error.kind == "media" else ""
            raise ShardError(path, error.detail + remedy, error.key, error.kind) from error
        if isinstance(error, OSError):
            raise OSError(
                f"cannot write shard {path}: {error}; nothing of it was kept, run again to continue"
            ) from error
        raise
    return index


def _kept(path: Path, keys: list[str]) -> ShardIndex:
    try:
        index = read_index(path)
    except ValueError:  # stopped between the tar and its index
        index = index_shard(path)
        write_index(index)
    if [s.key for s in index.samples] != keys:
        raise ValueError(f"shard {path} is already there with other samples; write to an empty folder")
    return index


def _encoded(path: Path, sample: Sample) -> Iterator[tuple[str, str | bytes]]:
    key = sample["__key__"]
    if not key or "." in key or key.startswith("/") or ".." in key.split("/"):
        raise ShardError(path, "a key must not be empty, have a dot in it or leave the folder; rename it", key, "key")
    yield "__key__", key
    for field, value in sample.items():
        if field == "json":
            yield field, json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        elif field != "__key__":
            yield field, value.read_bytes() if isinstance(value, Path) else value
