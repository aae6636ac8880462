"""The doctor of shards: everything that training would stumble over, found beforehand.

`timeviper shards check` prints every problem with shard and sample, and exits with 1 if there are any.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from timeviper.config import FramesConfig
from timeviper.datamodules.shard_index import SampleRecord, index_path, read_index
from timeviper.datamodules.shard_schema import SchemaError, media_type, parse_record
from timeviper.datamodules.shard_tar import (
    Member,
    ShardError,
    SliceFile,
    group,
    read_member,
    scan_tar,
    slice_crc32,
)
from timeviper.datamodules.video import VideoError, probe_video, read_video

# Frames that are decoded of every video, evenly over its length.
TRIED, TRIED_SIZE = FramesConfig(fps=1e6, max_frames=16), 16


@dataclass(frozen=True)
class Problem:
    """One thing to repair. Kinds: tar index key incomplete json checksum media duration duplicate."""

    shard: str
    key: str
    kind: str
    detail: str


@dataclass
class Report:
    """What a check found. `forecast`: seconds of work a sample, 16 frames and all checksums, mean and worst."""

    shards: int = 0
    samples: int = 0
    problems: list[Problem] = field(default_factory=list)
    forecast: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)


def check_shards(folder: str | Path) -> Report:
    """Check every shard below `folder`, to the last byte. ValueError if there is none."""
    tars = sorted(Path(folder).rglob("*.tar"))
    if not tars:
        raise ValueError(f"no shards: {folder} has no .tar in it")
    report, first_of, seconds = Report(shards=len(tars)), {}, []
    for tar in tars:
        name = str(tar.relative_to(folder))
        for sample in _samples(tar, name, report.problems):
            report.samples += 1
            begun = time.process_time()
            report.problems += sample.problems()
            seconds.append(time.process_time() - begun)
            for crc in sample.fingerprints():
                first = first_of.setdefault(crc, f"{name}/{sample.key}")
                if first != f"{name}/{sample.key}":
                    report.problems.append(sample.problem("duplicate", f"the same medium as {first}"))
    if seconds:
        report.forecast = {"mean_s": sum(seconds) / len(seconds), "max_s": max(seconds)}
    return report


def _samples(tar: Path, name: str, problems: list[Problem]) -> Iterator[_Sample]:
    """Whole samples of one shard; what is not whole goes to `problems`."""
    index: dict[str, SampleRecord] = {}
    try:
        index = {s.key: s for s in read_index(tar).samples}
    except ValueError as error:
        problems.append(Problem(name, "", "index", str(error)))
    try:
        members = scan_tar(tar)
    except ShardError as error:
        problems.append(Problem(name, error.key, error.kind, error.detail))
        return
    keys = set()
    for found in group(tar, members):
        if isinstance(found, ShardError):
            problems.append(Problem(name, found.key, found.kind, found.detail))
            continue
        keys.add(found[0])
        yield _Sample(tar, name, *found, index.get(found[0]))
    if index and keys != set(index):
        odd = ", ".join(sorted(keys ^ set(index))[:5])
        problems.append(Problem(name, "", "index", f"{index_path(tar).name} and the tar differ in the samples {odd}"))


@dataclass
class _Sample:
    """One sample under examination."""

    tar: Path
    name: str  # of the tar, below the folder that is checked
    key: str
    members: dict[str, Member]
    index: SampleRecord | None

    def problem(self, kind: str, detail: str) -> Problem:
        return Problem(self.name, self.key, kind, detail)

    def problems(self) -> list[Problem]:
        found = self._checksums()
        at = self.members["json"]
        try:
            record = parse_record(read_member(self.tar, at.offset, at.size), self.members)
        except SchemaError as error:
            return [*found, self.problem("json", str(error))]
        for medium in record["media"]:
            found += self._medium(medium)
        return found

    def fingerprints(self) -> list[tuple[int, int]]:
        """(checksum, size) of every medium: two samples with one of them show the same."""
        media = [m for m in self.members.values() if media_type(m.field)]
        return [(slice_crc32(self.tar, m.offset, m.size), m.size) for m in media]

    def _checksums(self) -> list[Problem]:
        if self.index is None:
            return []
        bad = []
        for name, member in self.members.items():
            known = self.index.members.get(name)
            if known is None or (known.offset, known.size) != (member.offset, member.size):
                bad.append(
                    self.problem("index", f"{name} is not where the index says; delete the index and write it anew")
                )
            elif slice_crc32(self.tar, member.offset, member.size) != known.crc32:
                bad.append(self.problem("checksum", f"{name} is not what it was when the index was written"))
        return bad

    def _medium(self, medium: dict[str, Any]) -> list[Problem]:
        """Can frames from all over it be decoded, and is it as long as the json says?"""
        member = self.members[medium["member"]]
        try:
            with SliceFile(self.tar, member.offset, member.size) as file:
                info = probe_video(file)
            with SliceFile(self.tar, member.offset, member.size) as file:
                frames = read_video(file, TRIED_SIZE, TRIED)
        except VideoError as error:
            return [self.problem("media", f"{member.field}: {error.reason}")]
        if frames.missing:
            tried = frames.missing + len(frames.times)
            detail = f"{member.field}: {frames.missing} of {tried} frames from all over it cannot be decoded"
            return [self.problem("media", detail)]
        return [] if medium["type"] == "image" else self._length(medium, info.duration, info.frames)

    def _length(self, medium: dict[str, Any], seconds: float, frames: int) -> list[Problem]:
        claimed = medium.get("duration") or seconds
        # A frame more or less is a matter of counting; beyond that the texts' times do not fit the frames.
        if abs(claimed - seconds) > max(0.02 * seconds, 1.5 * seconds / frames):
            detail = f"{medium['member']}: lasts {seconds:.2f} s, the json says {claimed:.2f} s"
            return [self.problem("duration", detail)]
        if medium.get("frames") not in (None, frames):
            detail = f"{medium['member']}: has {frames} frames, the json says {medium['frames']}"
            return [self.problem("duration", detail)]
        return []
