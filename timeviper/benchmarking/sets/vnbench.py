"""VNBench: needles that were put into videos, found, ordered and counted; each question in four orders of its options
(VideoNIAH, arXiv 2406.09367).

VNBench-main-4try.json: video, question, options, gt, gt_option, needle_time, length, type, try.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from timeviper.benchmarking.defects import SHORT_GROUP, choice
from timeviper.benchmarking.forms import BARE, LETTER_FORM
from timeviper.benchmarking.item import Item
from timeviper.benchmarking.rows import Row, each, flat, rows, seconds
from timeviper.benchmarking.testset import Counts, Policy, TestSet, Unread

TRIES = 4
TASKS = {"ret": "retrieval", "ord": "ordering", "cnt": "counting"}


def read(files: Sequence[Path]) -> Iterator[Item | Unread]:
    """The rows of a question stand in a group: right are those of which all four rotations are."""
    found = [one for path in files for one in each(rows(path), _item)]
    sizes = Counter(one.group for one in found if isinstance(one, Item))
    for one in found:
        if isinstance(one, Item) and sizes[one.group] != TRIES:
            one = replace(one, notes=(*one.notes, SHORT_GROUP))
        yield one


def _item(row: Row) -> Item:
    kind, video, question = row.text("type"), row.text("video"), row.text("question")
    name = video.rpartition("/")[2]
    turn = int(row.number("try"))
    group = f"{kind}#{name}#{question}"
    task = TASKS.get(re.split(r"[_\d]", kind)[0])
    if task is None:
        raise ValueError(f"has type {kind!r}; they begin with {', '.join(TASKS)}")
    needles = [seconds(t, "needle_time") for t in flat(row.get("needle_time") or []) if t not in (None, "")]
    return choice(
        f"{group}#{turn}",
        video.lstrip("./"),
        question,
        row.texts("options"),
        row.text("gt"),
        task="group",
        group=group,
        group_rule="all",
        place=turn + 1,
        labels={"task": (task,), "type": (kind,)},
        duration=row.maybe("length"),
        extra={"needles": needles} if needles else {},
    )


VNBENCH = TestSet(
    name="vnbench",
    title="VNBench",
    task="group",
    patterns=("VNBench-main-4try.json", "*4try*.json", "*.json"),
    read=read,
    download="VNBench-main-4try.json, VNBench_new.zip",
    forms={"official": LETTER_FORM, "lmms": LETTER_FORM, "bare": BARE},
    policies={"official": Policy(average="macro", by="type")},
    counts=Counts(questions=5400, groups=1350, others={"one rotation of each": 1350}),
    remarks=(
        'The official reader takes an "A" anywhere before the first full stop, before all other letters.',
        "The official score is the mean of the nine types, of which each of the three tasks has three.",
    ),
    licence="academic research alone",
)
