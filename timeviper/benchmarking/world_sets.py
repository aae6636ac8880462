"""Small test sets in the files of Video-MME, Charades-STA and YouCook2, drawn from the procedural world.

Questions, answers and videos are those of the world's held-out videos (`val/videos`), sample by sample: what a run
scores on them can be held against `timeviper eval`. `world.json` says which question is which.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

from timeviper.benchmarking.item import LETTERS
from timeviper.datamodules.formats.cells import arrow
from timeviper.datamodules.shards.schema import SchemaError
from timeviper.datamodules.world.questions import NUMBERS, sentence
from timeviper.datamodules.world.render import encode_video
from timeviper.datamodules.world.scene import COLOURS, MOTIONS, SHAPES, Scene
from timeviper.datamodules.world.world import SOURCES, describe
from timeviper.files import write_whole

SOURCE = next(source for source in SOURCES if source.name == "val/videos/shard")
CHOICES = ("colour", "shape", "count", "direction", "order")
OPTIONS = 4
TITLES = {"colour": "Attribute Perception", "shape": "Object Recognition", "count": "Counting Problem"}
TITLES |= {"direction": "Action Recognition", "order": "Temporal Reasoning"}


@dataclass(frozen=True)
class Asked:
    """A question of the world, and which of its sample it is."""

    video: str
    number: int
    place: int
    type: str
    question: str
    answer: str

    @property
    def source(self) -> list[Any]:
        """Sample and conversation in the shards."""
        return [f"val-videos-shard-{self.number:06d}", self.place]


def write_world_sets(
    out: Path, videos: int = 12, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> dict[str, int]:
    """Write OUT/videomme, OUT/charades, OUT/youcook2 and OUT/world.json; how many items each has.

    seed: that of the world whose held-out videos these are. Without pyarrow Video-MME's table is JSONL.
    """
    drawn = []
    for number in range(videos):
        scene, conversations = describe(SOURCE, seed, number)
        name = f"w{seed:03d}v{number:06d}"
        drawn.append((name, scene, list(_asked(name, number, conversations))))
        for folder in _folders(name):
            path = out / folder / f"{name}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, encode_video(scene))
        if progress:
            progress(number + 1, videos)
    which: dict[str, dict[str, list[Any]]] = {}
    which["videomme"] = _videomme(out / "videomme", drawn, seed)
    which["charades"] = _charades(out / "charades", drawn)
    which["youcook2"] = _youcook2(out / "youcook2", drawn)
    _write(out / "world.json", json.dumps({"seed": seed, "videos": videos, "questions": which}, indent=1))
    return {name: len(keys) for name, keys in which.items()}


def _folders(name: str) -> tuple[str, ...]:
    """Where a video lies in each of the sets, as they come."""
    return ("videomme/data", "charades/Charades_v1_480", f"youcook2/raw_videos/validation/{name[-3:]}")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)


def _asked(name: str, number: int, conversations: Sequence[dict[str, Any]]) -> Iterator[Asked]:
    for place, conversation in enumerate(conversations):
        user, assistant = conversation["messages"]
        question = user["content"].removeprefix("<video>\n")
        yield Asked(name, number, place, conversation["type"], question, assistant["content"])


Drawn = Sequence[tuple[str, Scene, list[Asked]]]


def _videomme(folder: Path, drawn: Drawn, seed: int) -> dict[str, list[Any]]:
    """A table of questions with options, and subtitles of all videos but each third."""
    rng = np.random.default_rng((seed, 18))
    rows, which = [], {}
    for number, (name, scene, asked) in enumerate(drawn, 1):
        chosen = [one for one in asked if one.type in CHOICES]
        for place, one in enumerate(chosen, 1):
            options, letter = _options(one, rng)
            key = f"{number:03d}-{place}"
            which[key] = one.source
            rows.append(
                {
                    "video_id": f"{number:03d}",
                    "duration": ("short", "medium", "long")[number % 3],
                    "domain": "Procedural World",
                    "sub_category": f"{len(scene.events)} objects",
                    "url": f"https://example.org/watch?v={name}",
                    "videoID": name,
                    "question_id": key,
                    "task_type": TITLES[one.type],
                    "question": one.question,
                    "options": options,
                    "answer": letter,
                }
            )
        if number % 3:
            _write(folder / "subtitle" / f"{name}.srt", _subtitles(scene))
    _table(folder / "videomme" / "test-00000-of-00001.parquet", rows)
    return which


def _options(one: Asked, rng: Generator) -> tuple[list[str], str]:
    """The answer among wrong ones of its kind, lettered; and its letter."""
    wrong = [text for text in dict.fromkeys(_alike(one)) if text != one.answer]
    picked = [wrong[i] for i in rng.permutation(len(wrong))[: OPTIONS - 1]]
    place = int(rng.integers(len(picked) + 1))
    picked.insert(place, one.answer)
    return [f"{letter}. {text}" for letter, text in zip(LETTERS, picked)], LETTERS[place]


def _alike(one: Asked) -> Iterator[str]:
    """Answers that the question could have, from the words of the right one."""
    words = one.answer.split()
    match one.type:
        case "colour":
            yield from (" ".join([*words[:-1], colour]) for colour in COLOURS)
        case "shape":
            yield from (" ".join([*words[:-1], shape]) for shape in SHAPES)
        case "count":
            yield from ("one object" if n == "one" else f"{n} objects" for n in (*NUMBERS, "four"))
        case "direction":
            stem = one.answer.removesuffix(" stays").partition(" moves ")[0]
            yield from (f"{stem} stays" if m == "stay" else f"{stem} moves {m}" for m in MOTIONS)
        case _:
            yield from (f"a {colour} {shape}" for shape in SHAPES for colour in COLOURS)


def _subtitles(scene: Scene) -> str:
    """SRT that says nothing of what is asked, as most speech does not; Video-MME's are inside a font tag."""
    cues = []
    for number, second in enumerate(range(0, int(scene.duration), 2), 1):
        text = f'<font color="white" size=".72c">this is second {second}</font>'
        cues.append(f"{number}\n00:00:{second:02d},000 --> 00:00:{second + 1:02d},500\n{text}\n")
    return "\n".join(cues)


def _table(path: Path, rows: list[dict[str, Any]]) -> None:
    try:
        pa = arrow()
    except SchemaError:
        _write(path.with_suffix(".jsonl"), "".join(json.dumps(row) + "\n" for row in rows))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    pa.parquet.write_table(pa.Table.from_pylist(rows), path)


def _charades(folder: Path, drawn: Drawn) -> dict[str, list[Any]]:
    """Lines of moments, whose sentence is the world's question, and the lengths of the videos."""
    lines, which = [], {}
    for name, _, asked in drawn:
        for one in asked:
            if one.type == "when":
                begin, end = _times(one.answer)
                lines.append(f"{name} {begin} {end}##{one.question}")
                which[f"{name}#{len(lines)}"] = one.source
    _write(folder / "charades_sta_test.txt", "\n".join(lines) + "\n")
    rows = [f"{name},{scene.duration:g}" for name, scene, _ in drawn]
    _write(folder / "Charades_v1_test.csv", "\n".join(["id,length", *rows]) + "\n")
    return which


def _times(answer: str) -> tuple[str, str]:
    """The two numbers of "the red ring from 1.0 to 3.0 seconds"."""
    words = answer.split()
    return words[-4], words[-2]


def _youcook2(folder: Path, drawn: Drawn) -> dict[str, list[Any]]:
    """What each object does, with its window; two videos of another split beside, as in the real file."""
    database: dict[str, Any] = {}
    which: dict[str, list[Any]] = {}
    for number, (name, scene, asked) in enumerate(drawn):
        steps = [{"segment": [e.start, e.end], "id": i, "sentence": sentence(e)} for i, e in enumerate(scene.events)]
        database[name] = {
            "subset": "validation",
            "recipe_type": str(100 + number % 5),
            "duration": scene.duration,
            "annotations": steps,
            "video_url": f"https://example.org/watch?v={name}",
        }
        which[name] = next((one.source for one in asked if one.type == "timeline"), [])
    for name in ("otherSplit0", "otherSplit1"):
        step = {"segment": [0, 2], "id": 0, "sentence": "a red ring stays"}
        database[name] = {"subset": "training", "recipe_type": "101", "duration": 4.0, "annotations": [step]}
    _write(folder / "youcookii_annotations_trainval.json", json.dumps({"database": database}))
    return which
