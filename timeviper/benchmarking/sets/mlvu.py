"""MLVU: seven tasks with options and two with words on videos of 3 minutes to 2 hours (arXiv 2406.04264).

Nine JSON files, named by task; the videos of each lie in the folder of its name. Answers are the texts of options.
Copies on the Hub have one table with letters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from timeviper.benchmarking.defects import NO_OPTION, REPEATS, choice
from timeviper.benchmarking.forms import BARE, LETTER_FORM
from timeviper.benchmarking.item import Item, VideoRef
from timeviper.benchmarking.rows import Row, each, rows
from timeviper.benchmarking.testset import Counts, Form, Policy, TestSet, Unread
from timeviper.benchmarking.texts import unmarked

TASKS = {"plotQA": 539, "needle": 355, "ego": 352, "count": 206, "order": 259, "anomaly_reco": 200}
TASKS |= {"topic_reasoning": 264}
OPEN = {"sub_scene": 201, "summary": 217}
FILE = re.compile(r"(\d+)_(\w+)")


def read(files: Sequence[Path]) -> Iterator[Item | Unread]:
    for path in files:
        if not (found := FILE.fullmatch(path.stem)) or found[2] not in OPEN:
            yield from each(rows(path), partial(_choice, folder=path.stem if found else ""))


def read_open(files: Sequence[Path]) -> Iterator[Item | Unread]:
    for path in files:
        if not (found := FILE.fullmatch(path.stem)) or found[2] in OPEN:
            yield from each(rows(path), partial(_open, folder=path.stem if found else ""))


def _task(row: Row, folder: str) -> str:
    return folder.partition("_")[2] or row.text("question_type", "task_type")


def _video(row: Row, folder: str) -> str:
    video = row.text("video", "video_name")
    return f"{folder}/{video}" if folder and "/" not in video else video


def _key(row: Row, folder: str) -> str:
    return f"{folder or row.where.partition(', ')[0]}#{row.where.rpartition(' ')[2]}"


def _choice(row: Row, folder: str) -> Item:
    task = _task(row, folder)
    return choice(
        _key(row, folder),
        _video(row, folder),
        row.text("question"),
        unmarked(row.texts("candidates", "options")),
        row.text("answer"),
        labels={"task": (task,)},
        duration=row.maybe("duration"),
    )


def _open(row: Row, folder: str) -> Item:
    points = row.get("scoring_points")
    if "candidates" in row:
        raise ValueError("has candidates: it is a question of mlvu, not of mlvu_open")
    return Item(
        _key(row, folder),
        VideoRef(_video(row, folder)),
        "open",
        row.text("question"),
        answers=(row.text("answer"),),
        labels={"task": (_task(row, folder),)},
        duration=row.maybe("duration"),
        extra={"scoring_points": points} if points else {},
    )


PATTERNS = ("[0-9]*_*.json", "*.json", "*.parquet")
LICENCE = "CC-BY-NC-SA-4.0"
MLVU = TestSet(
    name="mlvu",
    title="MLVU dev",
    task="mcq",
    patterns=PATTERNS,
    read=read,
    download="json/1_plotQA.json to json/7_topic_reasoning.json and video/<task>/*.mp4",
    forms={
        "official": Form(
            "Question: {question}\nOptions:\n{options}\nOnly give the best option.",
            option="({letter}) {text}",
            system="Watch the video with care, what happens and in which order, and choose the best option from it.",
            prefix="Best Option: (",
        ),
        "lmms": LETTER_FORM,
        "bare": BARE,
    },
    policies={
        "official": Policy(average="macro", by="task"),
        "lmms": Policy(average="macro", by="task"),
        "vlmeval": Policy(average="question"),
        "timeviper": Policy(average="question"),
    },
    counts=Counts(questions=sum(TASKS.values()), by={"task": TASKS}, others={"MLVU-Test, with up to 6 options": 502}),
    defects={NO_OPTION: 2, REPEATS: 16},
    remarks=(
        "M-Avg is the mean of the seven tasks, not of the questions: lmms-eval before February 2025 pooled.",
        "MLVU-Test has up to six options, and lmms-eval reads A to D alone of its replies.",
    ),
    licence=LICENCE,
    gated=True,
)
MLVU_OPEN = TestSet(
    name="mlvu_open",
    title="MLVU dev, generation",
    task="open",
    patterns=PATTERNS,
    read=read_open,
    download="json/8_sub_scene.json, json/9_summary.json and their videos",
    forms={"official": Form("{question}", max_new_tokens=512), "lmms": Form("{question}", max_new_tokens=512)},
    policies={"official": Policy(average="macro", by="task"), "vlmeval": Policy(average="macro", by="task")},
    counts=Counts(questions=sum(OPEN.values()), by={"task": OPEN}),
    remarks=("G-Avg needs a judge: the sum of two marks from 1 to 5 each; VLMEvalKit cuts the marks to whole ones.",),
    licence=LICENCE,
    gated=True,
)
