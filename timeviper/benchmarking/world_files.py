"""The files of public sets, as they are downloaded, filled with what the procedural world has drawn."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from numpy.random import Generator

from timeviper.benchmarking.item import LETTERS
from timeviper.datamodules.formats.cells import arrow
from timeviper.datamodules.shards.schema import SchemaError
from timeviper.datamodules.world.questions import NUMBERS, sentence
from timeviper.datamodules.world.scene import COLOURS, MOTIONS, SHAPES, Scene
from timeviper.files import write_whole

OPTIONS, GROUP = 4, 4
TITLES = {"colour": "Attribute Perception", "shape": "Object Recognition", "count": "Counting Problem"}
TITLES |= {"direction": "Action Recognition", "order": "Temporal Reasoning"}
CHOICES = tuple(TITLES)
# Where the questions of each kind stand in sets of several files, and the folder of their videos.
MLVU = {"colour": ("1_plotQA", "plotQA"), "shape": ("2_needle", "findNeedle"), "direction": ("3_ego", "ego")}
MLVU |= {"count": ("4_count", "count"), "order": ("5_order", "order")}
CLEVRER, PERCEPTION = "video/clevrer/video_validation", "video/perception/videos"
MVBENCH = {"colour": ("moving_attribute", CLEVRER), "shape": ("object_existence", CLEVRER)}
MVBENCH |= {"count": ("moving_count", CLEVRER), "direction": ("moving_direction", CLEVRER)}
MVBENCH |= {"order": ("character_order", PERCEPTION)}
STRUCTURES = (("relevance", "[1,2,3,4]"), ("logic", "[1,2,3,4]"), ("logic", "[1,[2,3],4]"), ("logic", "[[1,2],3,4]"))


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


@dataclass(frozen=True)
class Drawn:
    """A video of the world, and what is asked about it."""

    name: str
    number: int
    scene: Scene
    asked: Sequence[Asked]
    more: Sequence[Asked]
    """A question of each of `CHOICES` that the scene allows."""
    encoded: bytes

    def save(self, folder: Path, name: str = "") -> None:
        whole(folder / f"{name or self.name}.mp4", self.encoded)


Which = dict[str, list[Any]]
"""`Asked.source` by the key of an item."""


def whole(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)


def videomme(folder: Path, drawn: Sequence[Drawn], rng: Generator) -> Which:
    """A table of questions with options, and subtitles of all videos but each third."""
    rows, which = [], {}
    for number, one in enumerate(drawn, 1):
        one.save(folder / "data")
        for place, asked in enumerate((a for a in one.asked if a.type in CHOICES), 1):
            options, letter = _options(asked, rng)
            key = f"{number:03d}-{place}"
            which[key] = asked.source
            rows.append(
                {
                    "video_id": f"{number:03d}",
                    "duration": ("short", "medium", "long")[number % 3],
                    "domain": "Life Record",  # one that the set has: other harnesses know no others
                    "sub_category": "Daily Life",
                    "url": f"https://example.org/watch?v={one.name}",
                    "videoID": one.name,
                    "question_id": key,
                    "task_type": TITLES[asked.type],
                    "question": asked.question,
                    "options": _lettered(options),
                    "answer": letter,
                }
            )
        if number % 3:
            whole(folder / "subtitle" / f"{one.name}.srt", _subtitles(one.scene))
    _table(folder / "videomme" / "test-00000-of-00001.parquet", rows)
    return which


def videomme_v2(folder: Path, drawn: Sequence[Drawn], rng: Generator) -> Which:
    """Groups of four questions about the videos that allow as many."""
    rows, which = [], {}
    for number, one in enumerate((one for one in drawn if len(one.more) >= GROUP), 1):
        kind, structure = STRUCTURES[number % len(STRUCTURES)]
        one.save(folder, f"{number:03d}")
        for place, asked in enumerate(one.more[:GROUP], 1):
            options, letter = _options(asked, rng)
            which[f"{number:03d}-{place}"] = []
            rows.append(
                {
                    "video_id": f"{number:03d}",
                    "url": f"https://example.org/watch?v={one.name}",
                    "group_type": kind,
                    "group_structure": structure,
                    "question_id": f"{number:03d}-{place}",
                    "question": asked.question,
                    "options": "\n".join(_lettered(options)),
                    "answer": letter,
                    "level": str(1 + number % 3),
                    "second_head": TITLES[asked.type],
                    "third_head": asked.type,
                }
            )
    _table(folder / "test.parquet", rows)
    return which


def tasks(
    folder: Path, drawn: Sequence[Drawn], rng: Generator, *, files: Mapping[str, tuple[str, str]], under: str
) -> Which:
    """MLVU and MVBench: a JSON file for each kind of question, whose answers are texts.

    files: file and, for MVBench, the folder of videos. under: before the file's name, for MLVU's folders of videos.
    """
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name, _ in files.values()}
    which = {}
    for one in drawn:
        for asked in (a for a in one.asked if a.type in files):
            name, told = files[asked.type]
            options, letter = _options(asked, rng)
            one.save(folder / (f"{under}/{name}" if under else told))
            row = {"video": f"{one.name}.mp4", "duration": one.scene.duration, "question": asked.question}
            row |= {"candidates": options, "answer": options[LETTERS.index(letter)]}
            rows[name].append(row | ({"question_type": told} if under else {}))
            which[f"{name}#{len(rows[name])}"] = asked.source
    for name, each in rows.items():
        whole(folder / "json" / f"{name}.json", json.dumps(each, indent=1))
    return which


def charades(folder: Path, drawn: Sequence[Drawn], rng: Generator) -> Which:
    """Lines of moments, whose sentence is the world's question, and the lengths of the videos."""
    lines, which = [], {}
    for one in drawn:
        one.save(folder / "Charades_v1_480")
        for asked in one.asked:
            if asked.type == "when":
                words = asked.answer.split()  # "the red ring 1.0 to 3.0 seconds"
                lines.append(f"{one.name} {words[-4]} {words[-2]}##{asked.question}")
                which[f"{one.name}#{len(lines)}"] = asked.source
    whole(folder / "charades_sta_test.txt", "\n".join(lines) + "\n")
    rows = [f"{one.name},{one.scene.duration:g}" for one in drawn]
    whole(folder / "Charades_v1_test.csv", "\n".join(["id,length", *rows]) + "\n")
    return which


def youcook2(folder: Path, drawn: Sequence[Drawn], rng: Generator) -> Which:
    """What each object does, with its window; two videos of another split beside, as in the real file."""
    database: dict[str, Any] = {}
    which: Which = {}
    for number, one in enumerate(drawn):
        one.save(folder / "raw_videos" / "validation" / one.name[-3:])
        events = enumerate(one.scene.events)
        database[one.name] = {
            "subset": "validation",
            "recipe_type": str(100 + number % 5),
            "duration": one.scene.duration,
            "annotations": [{"segment": [e.start, e.end], "id": i, "sentence": sentence(e)} for i, e in events],
            "video_url": f"https://example.org/watch?v={one.name}",
        }
        which[one.name] = next((a.source for a in one.asked if a.type == "timeline"), [])
    for name in ("otherSplit0", "otherSplit1"):
        step = {"segment": [0, 2], "id": 0, "sentence": "a red ring stays"}
        database[name] = {"subset": "training", "recipe_type": "101", "duration": 4.0, "annotations": [step]}
    whole(folder / "youcookii_annotations_trainval.json", json.dumps({"database": database}))
    return which


SETS: dict[str, Callable[[Path, Sequence[Drawn], Generator], Which]] = {
    "videomme": videomme,
    "videomme_v2": videomme_v2,
    "mlvu": partial(tasks, files=MLVU, under="video"),
    "mvbench": partial(tasks, files=MVBENCH, under=""),
    "charades": charades,
    "youcook2": youcook2,
}


def _options(one: Asked, rng: Generator) -> tuple[list[str], str]:
    """The answer among wrong ones of its kind; and its letter."""
    wrong = [text for text in dict.fromkeys(_alike(one)) if text != one.answer]
    picked = [wrong[i] for i in rng.permutation(len(wrong))[: OPTIONS - 1]]
    place = int(rng.integers(len(picked) + 1))
    picked.insert(place, one.answer)
    return picked, LETTERS[place]


def _lettered(options: Sequence[str]) -> list[str]:
    return [f"{letter}. {text}" for letter, text in zip(LETTERS, options)]


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
        whole(path.with_suffix(".jsonl"), "".join(json.dumps(row) + "\n" for row in rows))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    pa.parquet.write_table(pa.Table.from_pylist(rows), path)
