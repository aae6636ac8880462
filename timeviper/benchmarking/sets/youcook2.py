"""YouCook2: captions of all steps of a recipe, each with its window (arXiv 1703.09788).

`youcookii_annotations_trainval.json` holds both splits; the validation one is asked. Videos by their YouTube ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from timeviper.benchmarking.defects import windowed
from timeviper.benchmarking.item import Item, VideoRef
from timeviper.benchmarking.rows import Row, each, keyed, window
from timeviper.benchmarking.testset import Counts, Form, Policy, TestSet, Unread

SPLIT = "validation"
STEPS = (
    "Describe all steps of the cooking in this video, in their order, a line for each with its start and end in "
    "seconds: <start> - <end> seconds, <sentence>."
)


def read(files: Sequence[Path]) -> Iterator[Item | Unread]:
    for path in files:
        database = keyed(path).get("database")
        if not isinstance(database, dict):
            raise ValueError(f"{path.name} has no database of videos")
        entries = [Row(v, f"{path.name}, {k}") if isinstance(v, Mapping) else Unread(k, "is no object")
                   for k, v in database.items()]  # fmt: skip
        wanted = [e for e in entries if isinstance(e, Unread) or e.get("subset") == SPLIT]
        if not wanted:
            there = sorted({str(e.get("subset")) for e in entries if isinstance(e, Row)})
            raise ValueError(f"{path.name} has no video of subset {SPLIT}, but {', '.join(there)}: it is another split")
        yield from each(wanted, _item)


def _item(row: Row) -> Item:
    key = row.where.rpartition(", ")[2]
    steps = [Row(step, row.where) for step in row.need("annotations")]
    windows = tuple(window(step.need("segment"), "segment") for step in steps)
    clock = any(step.clocks("segment") for step in steps)
    item = Item(
        key,
        VideoRef(key),
        "dense",
        STEPS,
        answers=tuple(step.text("sentence") for step in steps),
        windows=windows,
        labels={"recipe_type": (str(row.get("recipe_type", "")),)},
        duration=row.maybe("duration"),
    )
    return windowed(item, clock)


YOUCOOK2 = TestSet(
    name="youcook2",
    title="YouCook2",
    task="dense",
    patterns=("*youcookii_annotations_trainval*.json", "*.json"),
    read=read,
    download="youcookii_annotations_trainval.json, the videos by their YouTube ids",
    forms={
        "official": Form("{question}", max_new_tokens=1024),
        "timeviper": Form("{question}", max_new_tokens=128),
        "world": Form("Tell what happens and when.", max_new_tokens=256),
    },
    policies={"official": Policy(average="video", strict=True)},
    counts=Counts(videos=457, questions=457),
    remarks=(
        "Many videos are gone from YouTube: 413 were reachable when others looked.",
        "lmms-eval's youcook2 is another task: captions of cut clips.",
        "The training split is in TimeViper's mixture: its number is not zero-shot.",
    ),
    licence="annotations by their README; videos are YouTube's",
)
