"""One sample under examination: bytes, index, json, media and text. Runs in worker processes."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from timeviper.config import FramesConfig
from timeviper.datamodules.checks.media import Finding, Medium, decode, examine_medium
from timeviper.datamodules.checks.perceptual import Signature
from timeviper.datamodules.checks.text import examine_text
from timeviper.datamodules.frames.container import VideoError
from timeviper.datamodules.frames.part import Part, part_of
from timeviper.datamodules.shards.index import conversation_sizes, measured
from timeviper.datamodules.shards.index_file import SampleRecord
from timeviper.datamodules.shards.schema import FEATURES, SchemaError, media_type, parse_record
from timeviper.datamodules.shards.tar import CHUNK, Member, Slice, SliceFile, read_member


@dataclass(frozen=True)
class CheckConfig:
    """What a check wants of the samples."""

    frames: FramesConfig = field(default_factory=FramesConfig)
    """Frames that are decoded of each video, as a recipe would (data.frames); the last frame as well."""
    image_size: int = 384
    """Pixels square that they are resized to: part of the work that the forecast measures."""
    max_text: int = 2**17
    """Bytes of a conversation; about 32,000 tokens of English."""
    accept: frozenset[str] = frozenset()
    """Kinds of problems that count as notes."""


@dataclass(frozen=True)
class Sample:
    """A sample as it was found in its shard, and as the index knows it; plain data for another process."""

    tar: Path
    shard: str  # the tar below the folder that is checked
    key: str
    members: dict[str, Member]
    known: SampleRecord | None


@dataclass
class Examined:
    """What was found out about a sample."""

    findings: list[Finding] = field(default_factory=list)
    digests: dict[str, bytes] = field(default_factory=dict)
    """Of each medium's bytes, by member."""
    said: bytes = b""
    """Digest of all conversations."""
    parts: dict[str, Part] = field(default_factory=dict)
    """Of those media that are a part of their file."""
    seen: dict[str, Signature] = field(default_factory=dict)
    """How each medium looks, by member."""
    frames: int = 0
    seconds: float | None = None
    """CPU time to decode the wanted frames of all media; None if they were not reached."""
    conversations: int = 0


def examine(sample: Sample, config: CheckConfig) -> Examined:
    """Everything that can be said about a sample on its own. OSError if its shard cannot be read."""
    examined = Examined()
    slices: dict[str, Slice] = {}
    for name, member in sample.members.items():
        slices[name], digest = _digest(sample.tar, member)
        if media_type(name):
            examined.digests[name] = digest
    examined.findings += _bytes(sample, slices)
    if any(kind == "checksum" for kind, _ in examined.findings):
        return examined  # what else is wrong follows from it
    at = sample.members["json"]
    try:
        record = parse_record(read_member(sample.tar, at.offset, at.size), sample.members)
    except SchemaError as error:
        examined.findings.append((error.kind, str(error)))
        return examined
    examined.conversations = len(record["conversations"])
    examined.said = blake2b(
        json.dumps([c["messages"] for c in record["conversations"]]).encode(), digest_size=16
    ).digest()
    examined.findings += _unused(sample, record)
    end = 0.0
    if FEATURES in sample.members:
        examined.findings += _features(sample)
    for medium in record["media"]:
        if medium["member"] == FEATURES:
            end += (medium.get("duration") or 0.0) + (medium.get("time_offset") or 0.0)
            continue
        found = _medium(sample, medium, config, examined)
        part = part_of(medium)
        if part.cuts and not any(kind == "media" for kind, _ in examined.findings):
            found = _part(sample, medium, part, config, examined)
        end += part.offset + found.duration + (found.start if len(record["media"]) == 1 else 0)
    broken = any(kind == "media" for kind, _ in examined.findings)
    examined.findings += examine_text(record, 0.0 if broken else end, config.max_text)
    if sample.known and not broken:
        examined.findings += _index(sample, slices, record)
    return examined


def _digest(tar: Path, member: Member) -> tuple[Slice, bytes]:
    """Checksum of a member for the index, and one that two different media never share."""
    crc, strong = 0, blake2b(digest_size=16)
    with SliceFile(tar, member.offset, member.size) as file:
        while chunk := file.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
            strong.update(chunk)
    return Slice(member.offset, member.size, crc), strong.digest()


def _bytes(sample: Sample, slices: dict[str, Slice]) -> Iterator[Finding]:
    if sample.known is None:
        return
    for name, found in slices.items():
        known = sample.known.members.get(name)
        if known is None or known[:2] != found[:2]:
            yield "index", f"{name} is not where the index says; delete the index and write it anew"
        elif known.crc32 != found.crc32:
            yield "checksum", f"{name} is not what it was when the index was written; copy the shard again"
    for name in sorted(sample.known.members.keys() - slices.keys()):
        yield "index", f"{name} is in the index only; delete the index and write it anew"


def _unused(sample: Sample, record: dict[str, Any]) -> Iterator[Finding]:
    used = {"json", FEATURES, *(m["member"] for m in record["media"])}
    for name in sorted(sample.members.keys() - used):
        yield "unused", f"{name} is read by nothing; media end as docs/your-data.md lists"


def _features(sample: Sample) -> Iterator[Finding]:
    from timeviper.datamodules.frames.stored import decode_features  # brings torch, which nothing else here needs

    at = sample.members[FEATURES]
    try:
        media = decode_features(read_member(sample.tar, at.offset, at.size), 1)
        if any(not bool(f.isfinite().all()) for m in media for f in m.features.values()):
            yield "media", f"{FEATURES}: holds NaN or infinity"
    except (ValueError, OSError) as error:
        yield "media", f"{FEATURES}: {error}"


def _medium(sample: Sample, medium: dict[str, Any], config: CheckConfig, examined: Examined) -> Medium:
    member = sample.members[medium["member"]]
    still = medium["type"] == "image"
    found = examine_medium(
        lambda: SliceFile(sample.tar, member.offset, member.size), config.frames, config.image_size, still
    )
    findings = list(found.findings)
    if not part_of(medium).cuts and not any(kind == "media" for kind, _ in findings):
        findings += _claims(medium, found)
    examined.findings += ((kind, f"{member.field}: {detail}") for kind, detail in findings)
    examined.frames += found.frames
    examined.seconds = (examined.seconds or 0.0) + found.seconds
    if found.seen is not None:
        examined.seen[member.field] = found.seen
    return found


def _part(sample: Sample, medium: dict[str, Any], part: Part, config: CheckConfig, examined: Examined) -> Medium:
    """The part of its file that a medium is: the frames that training will want are others than those of the whole."""
    member, found = sample.members[medium["member"]], Medium()
    examined.parts[member.field] = part

    def opened() -> SliceFile:
        return SliceFile(sample.tar, member.offset, member.size)

    try:
        decode(found, opened, lambda file: file, config.frames, config.image_size, part)
        found.findings += _claims(medium, found)
    except VideoError as error:
        found.findings.append(("media", error.reason))
    findings = found.findings
    examined.findings += ((kind, f"{member.field}: {detail}") for kind, detail in findings)
    examined.frames += found.frames
    examined.seconds = (examined.seconds or 0.0) + found.seconds
    return found


def _claims(medium: dict[str, Any], found: Medium) -> Iterator[Finding]:
    """The json beside the file."""
    kind = "video" if found.duration else "image"
    if kind != medium["type"]:
        yield "media", f"the json calls it a {medium['type']}, but it is an {kind}"
    if kind == "image" or medium["type"] == "image":
        return
    claimed = medium.get("duration") or found.duration
    # A frame more or less is a matter of counting; beyond that the texts' times do not fit the frames.
    if abs(claimed - found.duration) > max(0.02 * found.duration, 1.5 * found.duration / found.count):
        yield "duration", f"lasts {found.duration:.2f} s, the json says {claimed:.2f} s"
    elif medium.get("frames") not in (None, found.count):
        yield "duration", f"has {found.count} frames, the json says {medium['frames']}"
    rate = found.count / found.duration
    if abs(medium.get("fps", rate) - rate) > 0.1 * rate:
        yield "fps", f"has {rate:.2f} frames a second on average, the json says {medium['fps']}"


def _index(sample: Sample, slices: dict[str, Slice], record: dict[str, Any]) -> Iterator[Finding]:
    """What the plan believes of the sample, beside what it would be told by an index written now."""
    assert sample.known
    media = []
    for medium in record["media"]:
        at = slices[medium["member"]]
        with SliceFile(sample.tar, at.offset, at.size) as file:
            media.append(measured(medium, lambda file=file: file))
    sizes = tuple(conversation_sizes(c, len(media)) for c in record["conversations"])
    now = SampleRecord.of(sample.key, slices, media, sizes)
    for name in ("media", "duration", "fps", "frames", "conversations", "keyframe_spacing", "lengths"):
        if getattr(now, name) != getattr(sample.known, name):
            yield "index", f"{name} is {getattr(sample.known, name)!r} in the index, but {getattr(now, name)!r}"
