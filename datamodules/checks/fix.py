"""Mended copies of shards: what a check found is repaired, or the sample is left out and named.

Videos that cost more to sample than they need to, are turned, or say of themselves what is not so are encoded anew
(`reencode.py`); the json gets their real lengths, the index is written from what is there. A sample that
cannot be repaired goes to `dropped.jsonl` with the reason. The originals are not touched.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import numpy as np

from timeviper.config import FramesConfig
from timeviper.datamodules.checks.defects import MENDED, Defect, Report
from timeviper.datamodules.checks.reencode import reencode
from timeviper.datamodules.checks.sample import CheckConfig, Sample
from timeviper.datamodules.checks.shards import find_shards, walk_shard
from timeviper.datamodules.frames.container import Container, VideoError
from timeviper.datamodules.frames.decode import FrameReader
from timeviper.datamodules.frames.draw import is_turned
from timeviper.datamodules.frames.part import Part, part_of
from timeviper.datamodules.frames.timeline import read_timeline
from timeviper.datamodules.frames.video import lead_in, probe_video, sample_times
from timeviper.datamodules.ordered_pool import ordered
from timeviper.datamodules.shards.index import index_shards
from timeviper.datamodules.shards.schema import FEATURES, parse_record
from timeviper.datamodules.shards.tar import Member, SliceFile, read_member
from timeviper.datamodules.shards.writer import TarSlice, write_shard
from timeviper.files import whole_file

DROPPED = "dropped.jsonl"
MAX_LOST = 0.01  # share of a video's frames that may be undecodable; texts speak of what was shown in the rest


@dataclass(frozen=True)
class _Job:
    tar: Path
    shard: str
    out: Path
    frames: FramesConfig
    problems: dict[str, list[Defect]]
    """Of its samples, by key."""


@dataclass
class _Mended:
    samples: int
    dropped: list[Defect]


def fix_shards(
    folder: str | Path,
    out: str | Path,
    report: Report,
    config: CheckConfig | None = None,
    workers: int = 0,
    progress: Callable[[int, str], None] | None = None,
) -> list[Defect]:
    """Write mended copies of the shards below `folder` below `out`; what was left out, as `out`/dropped.jsonl has it.

    `report` is that of `check_shards(folder)`. ValueError if `out` is not empty, or lies in `folder`.
    """
    folder, out, config = Path(folder), Path(out), config or CheckConfig()
    if out.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{out} lies in {folder}, so its shards would be checked with the originals; choose another")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; name a new folder for the mended shards, or empty it")
    problems: dict[str, dict[str, list[Defect]]] = defaultdict(lambda: defaultdict(list))
    for problem in report.problems:
        if problem.key:
            problems[problem.shard][problem.key].append(problem)
    out.mkdir(parents=True, exist_ok=True)
    names = [(tar, str(tar.relative_to(folder))) for tar in find_shards(folder)]
    jobs = (_Job(tar, name, out / name, config.frames, dict(problems[name])) for tar, name in names)
    samples = 0
    dropped: list[Defect] = []
    with whole_file(out / DROPPED) as partial, partial.open("w", encoding="utf-8") as file:
        for job, mended in ordered(_mend_shard, jobs, workers, _crashed):
            dropped += mended.dropped
            for problem in mended.dropped:
                file.write(json.dumps(asdict(problem), ensure_ascii=False) + "\n")
            samples += mended.samples
            if progress:
                progress(samples, job.shard)
    if samples:
        index_shards(out)  # the index of each folder
    return dropped


def _crashed(job: _Job) -> _Mended:
    raise OSError(f"mending {job.shard} ended its process; see what `check` says of its samples, and move it elsewhere")


def _mend_shard(job: _Job) -> _Mended:
    dropped, kept = [], []
    job.out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{job.out.stem}-", dir=job.out.parent) as scratch:
        for found in walk_shard(job.tar, job.shard):
            if isinstance(found, Defect):
                if found.key and found.kind not in MENDED:
                    dropped.append(found)
                continue
            # Of the walk, these are about other files of the same key.
            hopeless = (*MENDED, "key", "incomplete", "missing")
            reasons = [p for p in job.problems.get(found.key, []) if p.kind not in hopeless]
            if reasons:
                dropped += reasons
                continue
            try:
                kept.append(_mend(found, job, Path(scratch)))
            except VideoError as error:
                dropped.append(Defect(job.shard, found.key, "media", error.reason))
        if kept:
            write_shard(job.out, kept)
    return _Mended(len(kept), dropped)


def _mend(sample: Sample, job: _Job, scratch: Path) -> dict[str, Any]:
    """The sample for the writer. VideoError for a medium that cannot be repaired."""
    files: dict[str, TarSlice | Path] = {
        name: TarSlice(sample.tar, m.offset, m.size) for name, m in sample.members.items() if name != "json"
    }
    at = sample.members["json"]
    record = parse_record(read_member(sample.tar, at.offset, at.size), sample.members)
    broken = [p for p in job.problems.get(sample.key, []) if p.kind == "media"]
    names: dict[str, str] = {}
    for medium in record["media"]:
        if medium["member"] == FEATURES:
            continue
        member = sample.members[medium["member"]]
        if medium["type"] == "image" and broken:
            raise VideoError(member.field, "; ".join(p.detail for p in broken))
        if medium["type"] == "video" and member.field not in names:
            target = scratch / f"{member.offset}.mp4"  # which samples may share
            anew = broken or not _is_fit(sample.tar, member, job.frames)
            if target.exists() or (anew and _anew(sample.tar, member, target, job, broken)):
                names[member.field] = _free_name(member.field, files)
                del files[member.field]
                files[names[member.field]] = target
        if medium["type"] == "video":
            medium["member"] = names.get(member.field, member.field)
            medium |= _lengths(files[medium["member"]], part_of(medium))
    return {"__key__": sample.key, "json": record, **files}


def _anew(tar: Path, member: Member, target: Path, job: _Job, broken: list[Defect]) -> bool:
    """Encode a video anew; whether that can be done. VideoError if it must be, and cannot or shows too little."""
    try:
        with _open(TarSlice(tar, member.offset, member.size)) as file:
            lost = reencode(file, target, job.frames)
    except VideoError:
        target.unlink(missing_ok=True)
        if broken:
            raise
        return False  # it plays, so it stays as it is
    if lost > MAX_LOST:
        target.unlink()
        raise VideoError(member.field, f"{member.field}: {lost:.1%} of its frames cannot be decoded")
    return True


def _free_name(field: str, taken: dict[str, Any]) -> str:
    """The member's name as an mp4, which another file may have already."""
    stem, dot, _ = field.rpartition(".")
    name = f"{stem}{dot}mp4"
    while name != field and name in taken:
        name = f"more.{name}"
    return name


def _is_fit(tar: Path, member: Member, frames: FramesConfig) -> bool:
    """Whether encoding it anew would gain nothing: every sampled instant has its keyframe already."""
    with _open(TarSlice(tar, member.offset, member.size)) as file, Container(file) as video:
        timeline = read_timeline(video)
        plain = video.context.name == "h264" and video.context.pix_fmt == "yuv420p" and "mov" in video.format
        late = lead_in(video, timeline.start) / video.tick > timeline.step / 2
        if not plain or late or timeline.shown is not None:
            return False
        first = next(FrameReader(video, timeline).read([timeline.start]), None)
        if first is None or is_turned(first[0]):
            return False
        duration = (timeline.promised - timeline.start) * video.tick
        instants = timeline.start + (sample_times(duration, frames, timeline.count) / video.tick + 1e-6).astype(int)
    with _open(TarSlice(tar, member.offset, member.size)) as file, Container(file) as video:
        stamps = np.array(sorted(p.pts for p in video.packets() if p.pts is not None))
    sampled = stamps[np.maximum(np.searchsorted(stamps, instants, side="right") - 1, 0)]
    return set(sampled.tolist()) <= set(timeline.keys)


def _lengths(file: TarSlice | Path, part: Part | None) -> dict[str, float]:
    """What the json says of a video."""
    with _open(file) as opened:
        info = probe_video(opened, part)
    return {
        "duration": info.duration,
        "fps": info.fps,
        "frames": info.frames,
        "keyframe_spacing": info.keyframe_seconds,
    }


def _open(file: TarSlice | Path) -> IO[bytes]:
    return file.open("rb") if isinstance(file, Path) else SliceFile(file.path, file.offset, file.size)
