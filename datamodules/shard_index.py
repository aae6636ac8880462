"""The index of a shard: what the plan reads instead of the tar.

`name.idx.json` lies next to `name.tar` and holds, for every sample, where its members are, their checksums,
the length of the media and of the texts. Only whole samples get into it, and a reader believes nothing else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from glob import glob
from pathlib import Path
from typing import Any

from timeviper.datamodules.container import Source
from timeviper.datamodules.shard_schema import SchemaError, parse_record
from timeviper.datamodules.shard_tar import (
    Member,
    ShardError,
    Slice,
    SliceFile,
    group,
    read_member,
    scan_tar,
    slice_crc32,
)
from timeviper.datamodules.video import probe_video

VERSION = 1
SUFFIX = ".idx.json"


@dataclass(frozen=True)
class Conversation:
    """Sizes of one conversation, in UTF-8 bytes."""

    type: str
    text_bytes: int  # all messages
    answer_bytes: int  # what the assistant says


@dataclass(frozen=True)
class SampleRecord:
    """One sample: its members, the sum of its media, its conversations."""

    key: str
    members: dict[str, Slice]
    media: str  # video | image | none; "video" as soon as one of several media is a video
    duration: float  # seconds over all media; 0 for images
    fps: float  # of the first video; 0 for images
    frames: int  # over all media
    conversations: tuple[Conversation, ...]
    keyframe_spacing: float | None = None  # seconds

    @classmethod
    def of(
        cls,
        key: str,
        members: dict[str, Slice],
        media: list[dict[str, Any]],
        conversations: tuple[Conversation, ...],
    ) -> SampleRecord:
        """From media whose lengths are known (see `measured`)."""
        videos = [m for m in media if m["type"] == "video"]
        return cls(
            key=key,
            members=members,
            media="video" if videos else "image" if media else "none",
            duration=float(sum(m["duration"] for m in videos)),
            fps=float(videos[0]["fps"]) if videos else 0.0,
            frames=sum(int(m["frames"]) for m in videos) + len(media) - len(videos),
            keyframe_spacing=videos[0].get("keyframe_spacing") if videos else None,
            conversations=conversations,
        )


@dataclass(frozen=True)
class ShardIndex:
    """All samples of one tar."""

    path: Path
    bytes: int
    samples: tuple[SampleRecord, ...]

    @property
    def name(self) -> str:
        return self.path.name


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
        raise ShardError(path, f"{len(unusable)} samples cannot be used:{listed}", kind=unusable[0].kind)
    if not samples:
        raise ShardError(path, "has no samples")
    return ShardIndex(name or path, path.stat().st_size, tuple(samples))


def index_sample(path: Path, key: str, members: dict[str, Member]) -> SampleRecord:
    """One sample's entry; media without stated length are opened. ShardError with kind json or media."""
    at = members["json"]
    try:
        record = parse_record(read_member(path, at.offset, at.size), members)
    except SchemaError as error:
        raise ShardError(path, str(error), key, "json") from error
    media = [_medium(path, key, m, members[m["member"]]) for m in record["media"]]
    slices = {f: Slice(m.offset, m.size, slice_crc32(path, m.offset, m.size)) for f, m in members.items()}
    return SampleRecord.of(key, slices, media, tuple(conversation_sizes(c) for c in record["conversations"]))


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
    info = probe_video(source())
    found = {
        "duration": info.duration,
        "fps": info.fps,
        "frames": info.frames,
        "keyframe_spacing": info.keyframe_seconds,
    }
    return found | {name: value for name, value in medium.items() if value is not None}


def conversation_sizes(conversation: dict[str, Any]) -> Conversation:
    """What the index notes of a conversation."""
    size = {"system": 0, "user": 0, "assistant": 0}
    for message in conversation["messages"]:
        size[message["role"]] += len(message["content"].encode())
    return Conversation(conversation["type"], sum(size.values()), size["assistant"])


def write_index(index: ShardIndex) -> Path:
    """Put the index next to its tar, whole or not at all."""
    samples = [{k: v for k, v in asdict(s).items() if v is not None} for s in index.samples]
    content = {"version": VERSION, "shard": index.name, "bytes": index.bytes, "samples": samples}
    target = index_path(index.path)
    partial = target.with_name(target.name + ".tmp")
    with partial.open("w") as file:
        json.dump(content, file, separators=(",", ":"))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(target)
    return target


def index_shards(folder: str | Path, progress: Callable[[str], None] | None = None) -> list[Path]:
    """Write the index of every tar below `folder` that has none or an old one."""
    tars = sorted(Path(folder).rglob("*.tar"))
    if not tars:
        raise ValueError(f"{folder} has no .tar shards to index")
    written = []
    for tar in tars:
        try:
            read_index(tar)
        except ValueError:
            written.append(write_index(index_shard(tar)))
            if progress:
                progress(f"indexed {tar}")
    return written


def read_index(tar: Path) -> ShardIndex:
    """The index of one tar. ValueError says what to do if there is none, or one of another tar."""
    index, remedy = index_path(tar), f"run `timeviper shards index {tar.parent}`"
    if not tar.exists():
        raise ValueError(
            f"shard {tar} is missing, though its index {index.name} is there; put it back or delete the index"
        )
    if not index.exists():
        raise ValueError(f"shard {tar} has no index; {remedy}")
    try:
        content = json.loads(index.read_bytes())
        version, size = content["version"], content["bytes"]
        samples = tuple(_sample(s) for s in content["samples"]) if version == VERSION else ()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"index {index} cannot be read ({error!r}); delete it and {remedy}") from error
    if version != VERSION:
        raise ValueError(f"index {index} has version {version}, this program reads {VERSION}; {remedy}")
    if size != tar.stat().st_size:
        raise ValueError(
            f"index {index} is of a shard of {size} bytes, but {tar.name} has {tar.stat().st_size}; {remedy}"
        )
    return ShardIndex(tar, size, samples)


def _sample(entry: dict[str, Any]) -> SampleRecord:
    if not all(type(n) is int and n >= 0 for where in entry["members"].values() for n in where):
        raise ValueError(f"the members of sample {entry['key']!r} are {entry['members']}")
    return SampleRecord(
        **entry
        | {
            "members": {field: Slice(*where) for field, where in entry["members"].items()},
            "conversations": tuple(Conversation(**c) for c in entry["conversations"]),
        }
    )


def load_index(where: str | Path) -> list[ShardIndex]:
    """All shards of a folder, or of a glob of tars, in order of their names. ValueError for people."""
    path = Path(where)
    if path.is_dir():
        names = {p for p in path.iterdir() if p.suffix == ".tar"}
        names |= {p.with_name(p.name.removesuffix(SUFFIX) + ".tar") for p in path.iterdir() if p.name.endswith(SUFFIX)}
    else:
        names = {Path(p) for p in glob(str(where)) if p.endswith(".tar")}
    if not names:
        state = "has no .tar shards" if path.is_dir() else "does not exist" if not path.exists() else "is not a .tar"
        raise ValueError(f"no shards: {where} {state}; give a folder of shards or a glob such as 'data/*.tar'")
    return [read_index(tar) for tar in sorted(names)]
