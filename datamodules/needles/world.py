"""Needles of the procedural world: a crowded video of any length, with objects in every part of it.

A frame is drawn for each that a model is shown, and an object stays for three or four of them, one at a time. A short
video is as crowded as those of the crowded world; a long one holds each pair of colour and shape once, and between them
stands nothing: what is asked is then far from everything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

from timeviper.datamodules.needles.place import Place
from timeviper.datamodules.shards.writer import Sample
from timeviper.datamodules.world.crowd import CROWD_QUESTIONS, MOST, draw_crowd
from timeviper.datamodules.world.questions import sentence
from timeviper.datamodules.world.render import GOP, encode_video
from timeviper.datamodules.world.scene import Scene, draw_times

LASTING = (3, 4)  # frames of an object
EACH = 4.5  # frames of a short video that an object has on average, as in the crowded world
QUESTIONS = ("at", "when", "order", "between", "direction")
# Of questions about several objects: how many before and behind a needle they may be about, and how many it takes.
BESIDE = {"order": (1, 2), "between": (3, 3)}


@dataclass(frozen=True)
class WorldNeedles:
    """How to make the videos; plain data, so that it travels to another process."""

    parts: int
    """Equal parts of a video, each of which holds a needle."""
    fps: float
    """Frames a second that the model is shown."""
    seed: int

    def check(self, frames: int) -> None:
        """ValueError where the needles do not fit into a video of so many frames."""
        each = LASTING[1] + 1
        if frames < self.parts * each:
            raise ValueError(
                f"a video of {frames:,} frames has no room for needles of {LASTING[1]} frames, one apart, in each of "
                f"{self.parts} parts: take {self.parts * each} frames or more, or --depths {max(frames // each, 1)}"
            )

    def samples(self, frames: int, video: int, folder: Path) -> Iterator[Sample]:
        """The needles of one video, whose file is written to `folder`: a sample each, in order of depth."""
        rng = np.random.default_rng((self.seed, frames, self.parts, video))
        scene, needles = self.scene(rng, frames, held_out=video % 2 == 0)
        file = folder / f"f{frames}-v{video:05d}.mp4"
        file.write_bytes(encode_video(scene))
        length = {"duration": scene.duration, "fps": scene.fps, "frames": scene.frames}
        media = [{"type": "video", "member": "mp4", **length, "keyframe_spacing": GOP / scene.fps}]
        segments = [{"start": e.start, "end": e.end, "text": sentence(e)} for e in scene.events]
        for part, at in enumerate(needles):
            record = {
                "media": media,
                "conversations": list(questions(scene, rng, at)),
                "segments": segments,
                "source": "world",
            }
            yield {"__key__": Place(frames, part, self.parts, video).key, "json": record, "mp4": file}

    def scene(self, rng: Generator, frames: int, held_out: bool) -> tuple[Scene, list[int]]:
        """A crowd that is spread over all parts, and the number of the object that is the needle of each."""
        count = min(MOST, max(self.parts, int(frames / EACH)))
        crowd = draw_crowd(rng, max(frames, count * LASTING[1]), self.fps, count, held_out, LASTING)
        each = np.full(self.parts, count // self.parts)
        each[rng.permutation(self.parts)[: count % self.parts]] += 1
        edges = [i * frames // self.parts for i in range(self.parts + 1)]
        times, needles = [], []
        for n, start, end in zip(each.tolist(), edges, edges[1:]):
            n = min(n, (end - start) // LASTING[0])
            needles.append(len(times) + int(rng.integers(n)))
            times += [(start + a, start + b) for a, b in draw_times(rng, end - start, n, *LASTING)]
        events = tuple(replace(e, start=a / self.fps, end=b / self.fps) for e, (a, b) in zip(crowd.events, times))
        return replace(crowd, duration=frames / self.fps, events=events), needles


def questions(scene: Scene, rng: Generator, at: int) -> Iterator[dict[str, Any]]:
    """One of each type that needs the `at`-th object: asked of a video of it alone, or of it and those beside it."""
    for kind in QUESTIONS:
        beside, least = BESIDE.get(kind, (0, 1))
        events = scene.events[max(at - beside, 0) : at + beside + 1]
        if len(events) >= least and (said := CROWD_QUESTIONS[kind](replace(scene, events=events), rng)):
            yield said
