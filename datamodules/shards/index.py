"""The index of a shard: what the plan reads instead of the tar.

It holds, for every sample, where its members are, their checksums, the length of the media and of the texts
(`index_file.py` has its form). Only whole samples get into it, and a reader believes nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from timeviper.datamodules.frames.container import Source
from timeviper.datamodules.frames.fingerprint import Fingerprint, read_metadata
from timeviper.datamodules.frames.part import part_of
from timeviper.datamodules.frames.video import probe_video
from timeviper.datamodules.shards.block_sums import summed
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
    for name, m in members.items():
        slices[name], sums = summed(path, m.offset, m.size)
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


def index_shards(folder: str | Path, progress: Callable[[str], None] | None = None) -> list[Path]:
    """Write the index of every tar below `folder` that has none or an old one, and the merged one of each folder.

    Returns what was written.
    """
    tars = sorted(tar for tar in Path(folder).rglob("*.tar") if not is_litter(tar))
    if not tars:
        raise ValueError(f"{folder} has no .tar shards to index")
    written: list[Path] = []
    folders: dict[Path, list[ShardIndex]] = {}
    for tar in tars:
        try:
            index = read_index(tar)
        except ValueError:
            index = index_shard(tar)
            written.append(write_index(index))
            if progress:
                progress(f"indexed {tar}")
        folders.setdefault(tar.parent, []).append(index)
    for place, shards in folders.items():
        content, target = encode(shards), place / MERGED
        if not target.exists() or target.read_bytes() != content:
            written.append(write_whole(target, content))
    return written


def read_index(tar: Path) -> ShardIndex:
    """The index of one tar: its own or, where that is missing, its part of the folder's merged one.

    ValueError says what to do if there is none, or one of another tar.
    """
    own, merged, remedy = index_path(tar), tar.with_name(MERGED), f"run `timeviper shards index {tar.parent}`"
    index = own if own.exists() or not merged.exists() else merged
    if not tar.exists():
        raise ValueError(
            f"shard {tar} is missing, though its index {index.name} is there; put it back or delete the index"
        )
    if not index.exists():
        raise ValueError(f"shard {tar} has no index; {remedy}")
    found = _shards(index, index.stat().st_mtime_ns).get(tar.name)
    if found is None:
        raise ValueError(f"index {index} knows nothing of {tar.name}; {remedy}")
    if found.bytes != tar.stat().st_size:
        raise ValueError(
            f"index {index} is of a shard of {found.bytes} bytes, but {tar.name} has {tar.stat().st_size}; {remedy}"
        )
    return found


@lru_cache(maxsize=2)
def _shards(index: Path, changed: int) -> dict[str, ShardIndex]:
    """By name. A merged index is asked once for each of its tars, but read only again when it has `changed`."""
    remedy = f"delete it and run `timeviper shards index {index.parent}`"
    shards = decode(index.read_bytes(), str(index), remedy, lambda name: str(index.with_name(name)))
    return {shard.name: shard for shard in shards}
