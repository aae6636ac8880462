"""Small test sets in the files of six public ones, drawn from the procedural world.

Questions, answers and videos are those of the world's held-out videos (`val/videos`), sample by sample: what a run
scores on them can be held against `timeviper eval`. `world.json` says which question is which. Only Video-MME-v2, whose
questions stand in groups of four, asks more of the same kind about these videos.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from timeviper.benchmarking.world_files import CHOICES, SETS, Asked, Drawn, whole
from timeviper.datamodules.world.questions import video_questions
from timeviper.datamodules.world.render import encode_video
from timeviper.datamodules.world.world import SOURCES, describe

SOURCE = next(source for source in SOURCES if source.name == "val/videos/shard")


def write_world_sets(
    out: Path, videos: int = 12, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> dict[str, int]:
    """Write OUT/SET for each of `world_files.SETS`, and OUT/world.json; how many items each has.

    seed: that of the world whose held-out videos these are. Without pyarrow tables of Parquet are JSONL.
    """
    drawn = []
    for number in range(videos):
        scene, conversations = describe(SOURCE, seed, number)
        name = f"w{seed:03d}v{number:06d}"
        talks = list(_asked(name, number, conversations))
        grouped = video_questions(scene, np.random.default_rng((seed, 2, number)), CHOICES)
        drawn.append(Drawn(name, number, scene, talks, list(_asked(name, number, grouped)), encode_video(scene)))
        if progress:
            progress(number + 1, videos)
    which = {name: write(out / name, drawn, np.random.default_rng((seed, 18))) for name, write in SETS.items()}
    whole(out / "world.json", json.dumps({"seed": seed, "videos": videos, "questions": which}, indent=1))
    return {name: len(keys) for name, keys in which.items()}


def _asked(name: str, number: int, conversations: Sequence[dict[str, Any]]) -> Iterator[Asked]:
    for place, conversation in enumerate(conversations):
        user, assistant = conversation["messages"]
        question = user["content"].removeprefix("<video>\n")
        yield Asked(name, number, place, conversation["type"], question, assistant["content"])
