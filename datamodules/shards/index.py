"""The index of a shard: what the plan reads instead of the tar.

It holds, for every sample, where its members are, their checksums, the length of the media and of the texts
(`index_file.py` has its form). Only whole samples get into it, and a reader believes nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from timeviper.datamodules.frames.container import Source
from timeviper.datamodules.frames.fingerprint import Fingerprint, read_metadata
from timeviper.datamodules.frames.part import part_of
from timeviper.datamodules.frames.video import probe_video
from timeviper.datamodules.ordered_pool import ordered
from timeviper.datamodules.shards.block_sums import summed
from timeviper.datamodules.shards.column_file import FILE, in_memory, open_file
from timeviper.datamodules.shards.column_join import columns_of
from timeviper.datamodules.shards.columns import Columns
from timeviper.datamodules.shards.folder import load_folder as load_columns
from timeviper.datamodules.shards.folder import merge, remedy, scan, still_true
from timeviper.datamodules.shards.index_file import (
    MERGED,
    SUFFIX,
    Conversation,
    SampleRecord,
    ShardIndex,
    Turn,
    decode,
    encode,
)
from timeviper.datamodules.shards.node_files import NodeFiles
from timeviper.datamodules.shards.schema import FEATURES, PLACEHOLDER, SchemaError, parse_record
from timeviper.datamodules.shards.tar import (
    Member,
    ShardError,
    Slice,
    SliceFile,
    group,
    is_litter,
    read_member,
    scan_tar,
)
from timeviper.files import write_whole


def index_path(shard: Path) -> Path:
    return shard.with_suffix(SUFFIX)


def index_shard(path: Path, name: Path | None = None) -> ShardIndex:
    """Read a whole tar and describe it. ShardError if it is not as it must be, with all samples that are not."""
    samples, unusable = [], []
    for found in group(path, scan_tar(path)):
        if isinstance(found, ShardError):
            raise found
        try:
            samples.append(index_sample(path, *found))
        except ShardError as error:
            unusable.append(error)
    if len(unusable) == 1:
        raise unusable[0]
    if unusable:
        listed = "".join(f"\n  {error.key!r}: {error.detail}" for error in unusable)
        raise ShardError(
            path, f"{len(unusable)} samples cannot be used:{listed}", kind=unusable[0].kind, parts=unusable
        )
    if not samples:
        raise ShardError(path, "has no samples")
    return ShardIndex(str(name or path), path.stat().st_size, tuple(samples))


def index_sample(path: Path, key: str, members: dict[str, Member]) -> SampleRecord:
    """One sample's entry; media without stated length are opened. ShardError with kind json or media."""
    at = members["json"]
    try:
        record = parse_record(read_member(path, at.offset, at.size), members)
    except SchemaError as error:
        raise ShardError(path, str(error), key, "json") from error
    media = [_medium(path, key, m, members[m["member"]]) for m in record["media"]]
    slices: dict[str, Slice] = {}
    blocks: dict[str, bytes] = {}
    seconds = {m["member"]: float(m["duration"]) for m in media if m["type"] == "video"}
    for name, m in members.items():
        slices[name], sums = summed(path, m.offset, m.size, seconds.get(name, 0.0))
        if sums:
            blocks[name] = sums
    sizes = tuple(conversation_sizes(c, len(media)) for c in record["conversations"])
    return SampleRecord.of(key, slices, media, sizes, _fingerprint(path, key, members), blocks)


def _fingerprint(path: Path, key: str, members: dict[str, Member]) -> str | None:
    if (member := members.get(FEATURES)) is None:
        return None
    try:
        with SliceFile(path, member.offset, member.size) as file:
            return Fingerprint.from_dict(read_metadata(file)["fingerprint"]).digest
    except ValueError as error:
        raise ShardError(path, f"{key}.{FEATURES} {error}", key, "media") from error


def _medium(path: Path, key: str, medium: dict[str, Any], member: Member) -> dict[str, Any]:
    file = None
    try:
        with SliceFile(path, member.offset, member.size) as file:
            return measured(medium, lambda: file)
    except ValueError as error:
        reason = str(error).removeprefix(f"{file.name}: ") if file else str(error)
        raise ShardError(path, f"{member.key}.{member.field} {reason}", key, "media") from error


def measured(medium: dict[str, Any], source: Callable[[], Source]) -> dict[str, Any]:
    """A medium of the json with duration, fps and frames: as stated, else measured. VideoError if it cannot be."""
    if medium["type"] == "image" or all(medium.get(name) for name in ("duration", "fps", "frames")):
        return medium
    info = probe_video(source(), part_of(medium))
    found = {
        "duration": info.duration,
        "fps": info.fps,
        "frames": info.frames,
        "keyframe_spacing": info.keyframe_seconds,
    }
    return found | {name: value for name, value in medium.items() if value is not None}


def conversation_sizes(conversation: dict[str, Any], num_media: int) -> Conversation:
    """What the index notes of a conversation about so many media."""
    turns, text, marks = [], 0, 0
    for message in conversation["messages"]:
        size = len(message["content"].encode())
        text += size
        if message["role"] == "user":
            marks += len(PLACEHOLDER.findall(message["content"]))
        if message["role"] == "assistant":
            turns.append(Turn(text, size, marks))
            text = marks = 0
    if not any(turn.media for turn in turns):  # without marks all media stand in the first question
        turns[0] = turns[0]._replace(media=num_media)
    sums = [sum(turn[i] for turn in turns) for i in (0, 1)]
    return Conversation(conversation["type"], sums[0] + text, sums[1], tuple(turns) if len(turns) > 1 else ())


def write_index(index: ShardIndex) -> Path:
    """Put the index next to its tar, whole or not at all."""
    return write_whole(index_path(index.path), encode([index]))


def index_shards(folder: str | Path, progress: Callable[[str], None] | None = None, workers: int = 0) -> list[Path]:
    """Write the index of every tar below `folder` that has none or an old one, and the columns of each folder.

    By `workers` processes, 0: this one alone. What was done stays done when it is stopped, and only tars that are not
    in the columns are looked at again. A bad tar does not keep others from being indexed: one ShardError at the end
    names them all. Returns what was written.
    """
    tars = sorted(tar for tar in Path(folder).rglob("*.tar") if not is_litter(tar))
    if not tars:
        raise ValueError(f"{folder} has no .tar shards to index")
    places = {place: _Known.of(place) for place in sorted({tar.parent for tar in tars})}
    todo = [tar for tar in tars if tar.name not in places[tar.parent].fresh]
    found: dict[Path, dict[str, Columns]] = {}
    written: list[Path] = []
    bad: list[ShardError] = []
    for number, (tar, done) in enumerate(ordered(_indexed, todo, workers if len(todo) > 1 else 0, _crashed), 1):
        if isinstance(done, ShardError):
            bad.append(done)
            continue
        columns, new = done
        found.setdefault(tar.parent, {})[tar.name] = columns
        written += [index_path(tar)] if new else []
        if progress:
            progress(f"{number:,}/{len(todo):,} shards, {len(written):,} indexed, {len(bad):,} bad: {tar}")
    for place, known in places.items():
        if file := merge(place, known.columns, known.fresh, found.get(place, {})):
            written.append(file)
            (place / MERGED).unlink(missing_ok=True)  # its older form
    if len(bad) == 1:
        raise bad[0]
    if bad:
        listed = "".join(f"\n{error}" for error in bad)
        raise ShardError(
            Path(folder),
            f"{len(bad)} of {len(tars)} shards cannot be indexed, the others are:{listed}",
            kind=bad[0].kind,
        )
    return written


@dataclass(frozen=True)
class _Known:
    """What is known of a folder already."""

    columns: Columns | None
    fresh: dict[str, int]

    @classmethod
    def of(cls, folder: Path) -> _Known:
        try:
            with open_file(folder / FILE) as file:
                columns = in_memory(file.read, str(folder / FILE), remedy(folder), f"{folder}/")
                return cls(columns, still_true(folder, scan(folder), columns, os.fstat(file.fd).st_mtime_ns))
        except (OSError, ValueError):  # none, or one that is not to be used: it is made anew
            return cls(None, {})


def _indexed(tar: Path) -> tuple[Columns, bool] | ShardError:
    """A shard in columns, and whether its index was written for that; what is wrong with it is an outcome, too."""
    try:
        index, new = own_index(tar), False
    except ValueError:
        try:
            index, new = index_shard(tar), True
            write_index(index)
        except ShardError as error:
            return error
        except OSError as error:
            return ShardError(tar, f"cannot be read or indexed: {error}")
    return columns_of([index], f"{tar.parent}/"), new


def _crashed(tar: Path) -> ShardError:
    return ShardError(tar, "reading its media ended the process: not videos to train on, and maybe an attack")


def load_folder(path: Path, wanted: Collection[str] | None = None, cache: str | Path = "") -> Columns:
    """All shards of a folder, or those of these names, in order. ValueError that says what to do where one has none.

    cache: as `data.cache`.
    """
    return load_columns(path, wanted, own_index, NodeFiles(cache))


def read_index(tar: Path) -> ShardIndex:
    """The index of one tar: its own or, where that is missing, its part of the folder's.

    ValueError says what to do if there is none, or one of another tar.
    """
    file = tar.with_name(FILE)
    if tar.exists() and not index_path(tar).exists() and file.exists():
        columns, numbers = _columns(file, file.stat().st_mtime_ns)
        if (number := numbers.get(tar.name)) is not None:
            return _of_this_tar(columns[number], file, tar)
    return own_index(tar)


@lru_cache(maxsize=2)
def _columns(file: Path, changed: int) -> tuple[Columns, dict[str, int]]:
    """Of a folder, and the numbers of its shards by name; read only again when it has `changed`."""
    with open_file(file) as opened:
        columns = in_memory(opened.read, str(file), remedy(file.parent), f"{file.parent}/")
    return columns, {name: number for number, name in enumerate(columns.names())}


def own_index(tar: Path) -> ShardIndex:
    """The index beside a tar or, where that is missing, its part of an `index.json`, which former versions wrote.

    ValueError as `read_index`.
    """
    own, merged, mend = index_path(tar), tar.with_name(MERGED), remedy(tar.parent)
    index = own if own.exists() or not merged.exists() else merged
    if not tar.exists():
        raise ValueError(
            f"shard {tar} is missing, though its index {index.name} is there; put it back or delete the index"
        )
    if not index.exists():
        raise ValueError(f"shard {tar} has no index; {mend}")
    found = _shards(index, index.stat().st_mtime_ns).get(tar.name)
    if found is None:
        raise ValueError(f"index {index} knows nothing of {tar.name}; {mend}")
    return _of_this_tar(found, index, tar)


def _of_this_tar(found: ShardIndex, index: Path, tar: Path) -> ShardIndex:
    if found.bytes != tar.stat().st_size:
        raise ValueError(
            f"index {index} is of a shard of {found.bytes} bytes, but {tar.name} has {tar.stat().st_size}; "
            f"{remedy(tar.parent)}"
        )
    return found


@lru_cache(maxsize=2)
def _shards(index: Path, changed: int) -> dict[str, ShardIndex]:
    """By name. A merged index is asked once for each of its tars, but read only again when it has `changed`."""
    shards = decode(
        index.read_bytes(), str(index), f"delete it and {remedy(index.parent)}", lambda n: str(index.with_name(n))
    )
    by_name = {shard.name: shard for shard in shards}
    if len(by_name) < len(shards):
        raise ValueError(f"index {index} tells of one shard twice; delete it and {remedy(index.parent)}")
    return by_name
