"""What an index knows of a shard, and the file that it stands in.

`name.idx.json` beside `name.tar` holds the index of one shard. (Those of all shards of a folder stand in columns,
`column_file.py`; former versions wrote them into `index.json`, in the same form with a line a shard, which is read.)

    {"version":3,"crc32":"89abcdef","shards":[
    {"shard":"a.tar","bytes":10240,"samples":[{"key":"clip1","members":{"mp4":[512,4711,305419896]}, ...}]},
    {"shard":"b.tar", ...}
    ]}

`crc32` is that of the lines between the brackets: the plan believes an index, so a changed one must not be read.
"""

from __future__ import annotations

import json
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from timeviper.datamodules.frames.share import STILL, Length
from timeviper.datamodules.shards.address import split_query
from timeviper.datamodules.shards.block_sums import fits
from timeviper.datamodules.shards.tar import Slice

VERSION = 3
SUFFIX = ".idx.json"
MERGED = "index.json"
TAIL = b"\n]}\n"


class Turn(NamedTuple):
    """A question and its answer, in UTF-8 bytes, and the media that stand in the question."""

    text_bytes: int
    answer_bytes: int
    media: int


@dataclass(frozen=True)
class Conversation:
    """Sizes of one conversation, in UTF-8 bytes."""

    type: str
    text_bytes: int  # all messages
    answer_bytes: int  # what the assistant says
    turns: tuple[Turn, ...] = ()  # where there are several


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
    fingerprint: str | None = None  # digest of what its features were made with (fingerprint.py)
    blocks: dict[str, bytes] = field(default_factory=dict)
    """For each member larger than one block (block_sums.py): the crc32 of its blocks, little-endian uint32."""
    lengths: tuple[Length, ...] = ()
    """Of each medium, where there are several."""

    @property
    def each(self) -> tuple[Length, ...]:
        """Of each medium, in the order of the json."""
        alone = () if self.media == "none" else (Length(self.duration, self.frames),)
        return self.lengths or alone

    @classmethod
    def of(
        cls,
        key: str,
        members: dict[str, Slice],
        media: list[dict[str, Any]],
        conversations: tuple[Conversation, ...],
        fingerprint: str | None = None,
        blocks: dict[str, bytes] | None = None,
    ) -> SampleRecord:
        """From media whose lengths are known (see `measured`)."""
        videos = [m for m in media if m["type"] == "video"]
        still = "image" if media else "none"
        lengths = [Length(float(m["duration"]), int(m["frames"])) if m["type"] == "video" else STILL for m in media]
        return cls(
            key=key,
            members=members,
            media="video" if videos else still,
            duration=float(sum(m["duration"] for m in videos)),
            fps=float(videos[0]["fps"]) if videos else 0.0,
            frames=sum(length.frames for length in lengths),
            keyframe_spacing=videos[0].get("keyframe_spacing") if videos else None,
            conversations=conversations,
            fingerprint=fingerprint,
            blocks=blocks or {},
            lengths=tuple(lengths) if len(lengths) > 1 else (),
        )


@dataclass(frozen=True)
class ShardIndex:
    """All samples of one tar."""

    location: str
    """Path or URL of the tar."""
    bytes: int
    samples: tuple[SampleRecord, ...]
    crc32: int | None = field(default=None, compare=False)
    """Of its line in an index file, where it was read from one."""

    @property
    def name(self) -> str:
        return PurePosixPath(split_query(self.location)[0]).name

    @property
    def path(self) -> Path:
        """Of a tar on a disk."""
        return Path(self.location)


def encode(shards: Iterable[ShardIndex]) -> bytes:
    """The content of an index file; the same for the same shards."""
    body = b",\n".join(line(shard) for shard in shards)
    return b'{"version":%d,"crc32":"%08x","shards":[\n' % (VERSION, zlib.crc32(body)) + body + TAIL


def line(shard: ShardIndex) -> bytes:
    """What an index file has of a shard."""
    samples = []
    for sample in shard.samples:
        entry = {k: v for k, v in vars(sample).items() if v is not None and v not in ({}, ())}
        entry["conversations"] = [{k: v for k, v in vars(c).items() if v != ()} for c in sample.conversations]
        if sample.blocks:
            entry["blocks"] = {name: b64encode(sums).decode() for name, sums in sample.blocks.items()}
        samples.append(entry)
    content = {"shard": shard.name, "bytes": shard.bytes, "samples": samples}
    return json.dumps(content, separators=(",", ":")).encode()


def decode(raw: bytes, where: str, remedy: str, location: Callable[[str], str]) -> list[ShardIndex]:
    """The shards of an index file; `location` makes a path or URL of a shard's name.

    ValueError that names the file (`where`) and ends with `remedy` if it is of another version, damaged or foreign.
    """
    try:
        content = json.loads(raw)
        version, sound, shards, each = content["version"], False, [], []
        if version == VERSION:
            _, _, lines = raw.partition(b"\n")
            sound = lines.endswith(TAIL) and zlib.crc32(lines[: -len(TAIL)]) == int(content["crc32"], 16)
            shards = [_shard(shard, location) for shard in content["shards"]] if sound else []
            each = lines[: -len(TAIL)].split(b",\n")
            sound = sound and len(each) == max(len(shards), 1)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"index {where} cannot be read ({error!r}); {remedy}") from error
    if version != VERSION:
        raise ValueError(f"index {where} has version {version}, this program reads {VERSION}; {remedy}")
    if not sound:
        raise ValueError(f"index {where} is damaged or was changed (wrong checksum); {remedy}")
    return [replace(shard, crc32=zlib.crc32(text)) for shard, text in zip(shards, each)]


def _shard(entry: dict[str, Any], location: Callable[[str], str]) -> ShardIndex:
    name, size = entry["shard"], entry["bytes"]
    if not name.endswith(".tar") or name != PurePosixPath(name).name:
        raise ValueError(f"a shard is the name of a .tar in the same folder, got {name!r}")
    return ShardIndex(location(name), size, tuple(_sample(sample, size) for sample in entry["samples"]))


def _sample(entry: dict[str, Any], shard_bytes: int) -> SampleRecord:
    blocks = {name: b64decode(sums, validate=True) for name, sums in entry.get("blocks", {}).items()}
    for name, (offset, size, _) in entry["members"].items():
        if not (type(offset) is type(size) is int and 0 <= offset <= offset + size <= shard_bytes):
            raise ValueError(f"sample {entry['key']!r} has bytes {offset!r} + {size!r} of {shard_bytes}")
        if not fits(size, blocks.get(name, b"")):
            raise ValueError(f"sample {entry['key']!r} lacks checksums of its {name}")
    spacing = entry.get("keyframe_spacing")
    if spacing is not None and type(spacing) not in (int, float):
        raise ValueError(f"sample {entry['key']!r} has keyframe_spacing {spacing!r}, which is no number")
    return SampleRecord(
        **entry
        | {
            "members": {name: Slice(*where) for name, where in entry["members"].items()},
            "conversations": tuple(
                Conversation(**c | {"turns": tuple(Turn(*turn) for turn in c.get("turns", ()))})
                for c in entry["conversations"]
            ),
            "blocks": blocks,
            "lengths": tuple(Length(*length) for length in entry.get("lengths", ())),
        }
    )
