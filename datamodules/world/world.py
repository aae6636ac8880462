"""The default data: a seeded procedural video world, encoded to H.264 in WebDataset shards.

    python -m timeviper.datamodules.world.world OUT [--scale 0.1] [--workers 2] [--seed 0]

writes OUT/train/<source> and OUT/val/<source> for the sources images, clips and videos; other kinds of world (`WORLDS`)
have their own. What happens is in `scene.py`, how it looks in `render.py`, what is said about it in `questions.py`.
Held-out data have other seeds, and half of their samples show an object that training never shows in this size,
colour and shape.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

from timeviper.datamodules.ordered_pool import ordered
from timeviper.datamodules.shards.index import index_path
from timeviper.datamodules.shards.writer import write_shard
from timeviper.datamodules.world.crowd import crowd_questions, draw_crowd
from timeviper.datamodules.world.glimpses import draw_glimpses, glimpse_questions
from timeviper.datamodules.world.questions import (
    clip_questions,
    image_questions,
    needle_questions,
    sentence,
    video_questions,
)
from timeviper.datamodules.world.render import GOP, draw, encode_image, encode_video
from timeviper.datamodules.world.scene import (
    COLOURS,
    MOTIONS,
    SHAPES,
    Scene,
    draw_image,
    draw_video,
    held_out_looks,
    late,
)
from timeviper.errors import one_of
from timeviper.files import write_whole

__all__ = ["SOURCES", "WORLDS", "WorldSource", "build_world", "describe", "held_out_looks", "world_text"]

VERSION = 5  # of what the same seed draws
FPS = 1.0  # what recipes read: events begin and end at whole seconds, and more would be drawn in vain
SCALES = {"small": 0.02, "default": 1.0}  # named amounts: a smoke test, a training


@dataclass(frozen=True)
class WorldSource:
    """A set of samples of one sort; its shards are OUT/<folder>/<prefix>-00000.tar, ..."""

    folder: str
    kind: str  # image | clip | video | cut | long
    samples: int
    per_shard: int
    prefix: str = "shard"
    seconds: tuple[int, int] = (0, 0)  # shortest and longest video
    lasting: tuple[int, int] = (2, 4)  # shortest and longest event
    latest: int = field(default=0, kw_only=True)  # what the clock of a cut shows at its first frame, at most: seconds

    @property
    def name(self) -> str:
        return f"{self.folder}/{self.prefix}"

    @property
    def train(self) -> bool:
        return self.folder.startswith("train/")


SOURCES = (
    WorldSource("train/images", "image", 10000, 1000),
    WorldSource("val/images", "image", 100, 100),
    WorldSource("train/clips", "clip", 3000, 500, seconds=(2, 4)),
    WorldSource("val/clips", "clip", 100, 100, seconds=(2, 4)),
    # In 8 s three events have room: so the length of a video, which prompts tell, does not tell the count.
    WorldSource("train/videos", "video", 12000, 250, seconds=(8, 10), lasting=(2, 3)),
    WorldSource("val/videos", "video", 160, 80, seconds=(8, 10), lasting=(2, 3)),
)

# Cuts out of videos of 17 minutes teach times of four digits from 16 frames: one of 512 holds as many labels for 32
# times the work. A needle covers at least 3 frames. The prefix tells the longest duration: a curriculum can name its
# part of the folder, train/long/d032-*.tar.
LONG = (
    WorldSource("train/cuts", "cut", 6000, 250, "d016", seconds=(16, 16), lasting=(2, 5), latest=1008),
    WorldSource("train/cuts", "cut", 1000, 50, "d064", seconds=(64, 64), lasting=(3, 8), latest=960),
    WorldSource("train/cuts", "cut", 200, 25, "d256", seconds=(256, 256), lasting=(4, 8), latest=768),
    WorldSource("val/cuts", "cut", 120, 60, "d064", seconds=(64, 64), lasting=(3, 8), latest=960),
    WorldSource("train/long", "long", 300, 100, "d032", seconds=(24, 32), lasting=(3, 5)),
    WorldSource("train/long", "long", 200, 50, "d128", seconds=(96, 128), lasting=(3, 6)),
    WorldSource("train/long", "long", 200, 25, "d512", seconds=(384, 512), lasting=(4, 8)),
    WorldSource("val/long", "long", 60, 30, "d512", seconds=(512, 512), lasting=(4, 8)),
)


@dataclass(frozen=True)
class CrowdSource(WorldSource):
    """Videos with many objects."""

    objects: tuple[int, int] = (3, 4)  # fewest and most


# The prefix tells the most objects, so that a curriculum can name its part of the folder: train/crowd/n04-*.tar.
# Objects and the gaps between them fill the time alike in all; a state of fixed size holds those of the first alone.
CROWDED = (
    CrowdSource("train/crowd", "crowd", 4000, 250, "n04", (14, 18), (3, 4), (3, 4)),
    CrowdSource("train/crowd", "crowd", 4000, 250, "n08", (28, 36), (3, 4), (6, 8)),
    CrowdSource("train/crowd", "crowd", 4000, 125, "n16", (60, 68), (3, 4), (12, 16)),
    CrowdSource("train/crowd", "crowd", 2000, 50, "n32", (120, 136), (3, 4), (24, 32)),
    CrowdSource("val/crowd", "crowd", 100, 100, "n08", (32, 32), (3, 4), (6, 8)),
    CrowdSource("val/crowd", "crowd", 100, 50, "n16", (64, 64), (3, 4), (12, 16)),
    CrowdSource("val/crowd", "crowd", 100, 50, "n32", (128, 128), (3, 4), (24, 32)),
)

# An object a second in nearly every second.
GLIMPSES = (
    CrowdSource("train/glimpses", "glimpses", 3000, 250, "n08", (8, 8), (1, 1), (6, 8)),
    CrowdSource("train/glimpses", "glimpses", 3000, 250, "n16", (16, 16), (1, 1), (12, 16)),
    CrowdSource("train/glimpses", "glimpses", 5000, 250, "n32", (32, 32), (1, 1), (24, 32)),
    CrowdSource("val/glimpses", "glimpses", 100, 100, "n08", (8, 8), (1, 1), (6, 8)),
    CrowdSource("val/glimpses", "glimpses", 240, 80, "n32", (32, 32), (1, 1), (24, 32)),
)

WORLDS: dict[str, tuple[WorldSource, ...]] = {
    "default": SOURCES,
    "crowded": CROWDED,
    "glimpses": GLIMPSES,
    "long": LONG,
}


def describe(source: WorldSource, seed: int, number: int) -> tuple[Scene, list[dict[str, Any]]]:
    """The scene and the conversations of one sample: a function of the three arguments alone."""
    rng = np.random.default_rng((seed, zlib.crc32(source.name.encode()), number))
    held_out = False if source.train else number % 2 == 0
    match source.kind:
        case "image":
            scene = draw_image(rng, 1 + int(rng.choice(3, p=(0.4, 0.35, 0.25))), held_out)
            return scene, image_questions(scene, rng)
        case "clip":
            scene = _draw(rng, source, 1, held_out)
            # Held out, only the caption: "from 0 to the end" is too good an answer to "when" in a short clip.
            return scene, clip_questions(scene, rng)[: None if source.train else 1]
        case "crowd":
            assert isinstance(source, CrowdSource)
            seconds, objects = (float(rng.integers(low, high + 1)) for low, high in (source.seconds, source.objects))
            scene = draw_crowd(rng, seconds, FPS, int(objects), held_out, source.lasting)
            return scene, crowd_questions(scene, rng)
        case "glimpses":
            assert isinstance(source, CrowdSource)
            objects = int(rng.integers(*source.objects, endpoint=True))
            scene = draw_glimpses(rng, source.seconds[0], FPS, objects, held_out)
            return scene, glimpse_questions(scene, rng)
        case "cut":
            scene = _draw(rng, source, 1 + int(rng.integers(3)), held_out)
            scene = late(scene, float(rng.integers(source.latest + 1)))
            return scene, video_questions(scene, rng)
        case "video" if source.train:
            scene = _draw(rng, source, 1 + int(rng.integers(3)), held_out)
            return scene, video_questions(scene, rng)
        case "video":
            return _balanced_video(rng, source, number // 2, held_out)
        case _:
            scene = _draw(rng, source, 1 + int(rng.choice(3, p=(0.7, 0.2, 0.1))), held_out)
            return scene, needle_questions(scene, rng)


def _draw(rng: Generator, source: WorldSource, objects: int, held_out: bool) -> Scene:
    low, high = source.seconds
    return draw_video(rng, float(rng.integers(low, high + 1)), FPS, objects, held_out, source.lasting)


def _balanced_video(
    rng: Generator, source: WorldSource, turn: int, held_out: bool
) -> tuple[Scene, list[dict[str, Any]]]:
    """A video for evaluation: every type is asked equally often, although one object alone has no order, and
    answers take turns as well, so that on a few dozen questions none of them is a good guess."""
    if turn % 2:
        types, objects = ("direction", "order", "when", "timeline", "times"), 2 + turn // 2 % 2
    else:
        types, objects = ("caption", "describe", "colour", "shape", "count"), 1 + turn // 2 % 3
    ends = {"colour": list(COLOURS), "shape": SHAPES, "direction": [m.replace("stay", "stays") for m in MOTIONS]}
    if objects == 1 and held_out:  # a single object of this kind has not any colour with any shape
        ends = {"colour": list(COLOURS)}
    wanted = {kind: row[turn // 2 % len(row)] for kind, row in ends.items() if kind in types}
    while True:
        scene = _draw(rng, source, objects, held_out)
        conversations = video_questions(scene, rng, types)
        given = {c["type"]: c["messages"][-1]["content"].split()[-1] for c in conversations}
        if wanted.items() <= given.items():
            return scene, conversations


def sample(source: WorldSource, seed: int, number: int) -> dict[str, Any]:
    """One sample as `write_shard` takes it."""
    scene, conversations = describe(source, seed, number)
    record: dict[str, Any] = {"media": [], "conversations": conversations, "source": "world", "seed": [seed, number]}
    if source.kind == "image":
        media = {"jpg": encode_image(next(draw(scene))[0])}
        record["media"].append({"type": "image", "member": "jpg"})
    else:
        media = {"mp4": encode_video(scene)}
        length = {"duration": scene.duration, "fps": scene.fps, "frames": scene.frames}
        record["media"].append({"type": "video", "member": "mp4", **length, "keyframe_spacing": GOP / scene.fps})
        if scene.offset:
            record["media"][0]["time_offset"] = scene.offset
        record["segments"] = [{"start": e.start, "end": e.end, "text": sentence(e)} for e in scene.events]
    key = f"{source.folder.replace('/', '-')}-{source.prefix}-{number:06d}"
    return {"__key__": key, "json": record, **media}


def world_text(seed: int = 0) -> Iterator[str]:
    """Questions and answers of the training samples, also of long and of crowded videos, without end, one a line: what
    a tokenizer learns from."""
    train = [source for source in (*SOURCES, *LONG, *CROWDED) if source.train]
    for number in count():
        for source in train:
            for conversation in describe(source, seed, number)[1]:
                for message in conversation["messages"]:
                    yield message["content"].split("\n")[-1]


@dataclass(frozen=True)
class _Job:
    """One shard to write; plain data, so that it travels to another process."""

    path: Path
    source: WorldSource
    seed: int
    first: int
    stop: int

    def run(self) -> int:
        if not (self.path.exists() and index_path(self.path).exists()):
            write_shard(self.path, [sample(self.source, self.seed, i) for i in range(self.first, self.stop)])
        return self.stop - self.first


def build_world(
    out: str | Path,
    scale: float | str = "default",
    workers: int = 2,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    kind: str = "default",
) -> None:
    """Write all sources of a kind of world below `out`, or what is missing of them; `progress` gets samples done and in
    all.

    `scale` multiplies the numbers of samples, or is one of SCALES. ValueError if `out` has another world, or there is
    no such kind.
    """
    if kind not in WORLDS:
        raise ValueError(f"there is no {kind!r} world: {one_of(WORLDS)}")
    folder, scale, sources = Path(out), _amount(scale), WORLDS[kind]
    _check_manifest(folder, {"version": VERSION, "seed": seed, "scale": scale}, sources)
    jobs = [job for source in sources for job in _jobs(folder, source, scale, seed)]
    total, done = sum(job.stop - job.first for job in jobs), 0
    jobs.sort(key=lambda job: -(job.stop - job.first) * (1 + job.source.seconds[1]))  # the longest first
    for _, samples in ordered(_Job.run, jobs, max(1, workers)):
        done += samples
        if progress:
            progress(done, total)


def _amount(scale: float | str) -> float:
    try:
        amount = SCALES[scale] if scale in SCALES else float(scale)
    except ValueError:
        amount = 0.0
    if not 0 < amount < float("inf"):
        raise ValueError(f"scale {scale!r} must be a number above 0 or one of {', '.join(SCALES)}")
    return amount


def _jobs(folder: Path, source: WorldSource, scale: float, seed: int) -> Iterator[_Job]:
    samples = max(4, round(source.samples * scale))
    for shard, first in enumerate(range(0, samples, source.per_shard)):
        path = folder / source.folder / f"{source.prefix}-{shard:05d}.tar"
        yield _Job(path, source, seed, first, min(samples, first + source.per_shard))


def _check_manifest(folder: Path, wanted: dict[str, Any], sources: Sequence[WorldSource]) -> None:
    """Note what is being built; an interrupted run may only be continued with the same numbers."""
    wanted["sources"] = json.loads(json.dumps([asdict(source) for source in sources]))
    path = folder / "world.json"
    if path.exists():
        found = json.loads(path.read_text())
        differ = [name for name in wanted if found.get(name) != wanted[name]]
        if differ:
            raise ValueError(
                f"{folder} holds another world: its {', '.join(differ)} differ from what is asked for "
                f"(seed {found.get('seed')}, scale {found.get('scale')} there); delete it or choose another folder"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(wanted, indent=1) + "\n")
