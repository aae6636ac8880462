"""Folders of needles: OUT/val, whose shards a map is drawn from, and OUT/train with other clips and pictures.

A shard holds whole videos of one length, and its name begins with the number of frames: f10240-00002.tar. What is there
is kept, so that more lengths and more videos can be added later; other needles (`needles.json` says which) are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from timeviper.datamodules.needles.material import Material
from timeviper.datamodules.needles.pictures import Layout
from timeviper.datamodules.needles.world import WorldNeedles
from timeviper.datamodules.ordered_pool import ordered
from timeviper.datamodules.shards.index import index_path
from timeviper.datamodules.shards.writer import Sample, write_shard
from timeviper.files import write_whole

VERSION = 1  # of what the same seed makes
NOTE = "needles.json"
TRAIN_VIDEOS = 16  # in a shard of training; a held-out shard is one video

Progress = Callable[[int, int], None]


class Needles(Protocol):
    def check(self, frames: int) -> None: ...

    def samples(self, frames: int, video: int, folder: Path) -> Iterator[Sample]: ...


@dataclass(frozen=True)
class _Job:
    """One shard; plain data, so that it travels to another process."""

    path: Path
    needles: Needles
    frames: int
    videos: range

    def run(self) -> int:
        if not (self.path.exists() and index_path(self.path).exists()):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=self.path.parent, prefix=f".{self.path.stem}-") as made:
                samples = [s for v in self.videos for s in self.needles.samples(self.frames, v, Path(made))]
                write_shard(self.path, samples)
        return self.frames * len(self.videos)


def held_out_jobs(folder: Path, needles: Needles, lengths: Iterable[int], count: int) -> list[_Job]:
    """The shards of a map: `count` videos of each number of frames. ValueError for one that is too short."""
    return [
        _Job(folder / "val" / f"f{frames}-{video:05d}.tar", needles, frames, range(video, video + 1))
        for frames in _fitting(needles, lengths)
        for video in range(count)
    ]


def training_jobs(folder: Path, needles: Needles, lengths: Iterable[int], count: int) -> list[_Job]:
    return [
        _Job(
            folder / "train" / f"f{frames}-{n:05d}.tar", needles, frames, range(first, min(first + TRAIN_VIDEOS, count))
        )
        for frames in _fitting(needles, lengths)
        for n, first in enumerate(range(0, count, TRAIN_VIDEOS))
    ]


def _fitting(needles: Needles, lengths: Iterable[int]) -> list[int]:
    found = sorted(set(lengths))
    for frames in found:
        needles.check(frames)
    return found


def write_all(folder: Path, jobs: Sequence[_Job], note: dict[str, Any], workers: int, progress: Progress) -> None:
    """Write what is missing; `progress` gets frames of the model done and in all.

    ValueError if `folder` holds other needles than `note` says.
    """
    _check_note(folder, note)
    total, done = sum(job.frames * len(job.videos) for job in jobs), 0
    jobs = sorted(jobs, key=lambda job: -job.frames * len(job.videos))  # the longest first
    for _, frames in ordered(_Job.run, jobs, workers if workers > 1 else 0):
        done += frames
        progress(done, total)


def world_note(needles: WorldNeedles) -> dict[str, Any]:
    return {"of": "world", "seed": needles.seed, "depths": needles.parts, "fps": needles.fps}


def footage_note(
    seed: int,
    parts: int,
    fps: float,
    shown: tuple[int, int],
    layout: Layout,
    held_out: Material,
    train: Material | None,
) -> dict[str, Any]:
    """What makes needles others: two folders with the same note hold the same."""
    made = {"of": "footage", "seed": seed, "depths": parts, "fps": fps, "shown": list(shown), "layout": layout}
    return {**made, "val": held_out.as_dict(), "train": train.as_dict() if train else None}


def _check_note(folder: Path, wanted: dict[str, Any]) -> None:
    path, wanted = folder / NOTE, {"version": VERSION, **wanted}
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(wanted, indent=1) + "\n")
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        differ = [name for name in wanted | found if found.get(name) != wanted.get(name)]
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); write to another folder") from error
    if differ:
        says = ", ".join(f"{name} {found.get(name)}" for name in differ if name not in ("val", "train"))
        raise ValueError(
            f"{folder} holds other needles: {', '.join(differ)} differ from what is asked for"
            f"{f' (there {says})' if says else ''}; choose another folder, or delete it"
        )


def numbers_of(text: str, option: str) -> list[int]:
    """ "128,2,048" is a mistake, "128, 2048" is [128, 2048]. ValueError for anything but whole numbers above 0."""
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"[1-9]\d*", word) for word in words):
        raise ValueError(f"{option} {text}: write whole numbers above 0 with commas between them, such as 128,512,2048")
    return list(map(int, words))
