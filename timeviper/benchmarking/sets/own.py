"""One's own sets, JSON lines (or CSV, JSON, Parquet) of four generic forms:

    mcq        {"id": "1", "video": "a.mp4", "question": "...", "options": ["red", "blue"], "answer": "A"}
    grounding  {"id": "1", "video": "a.mp4", "query": "a dog runs", "windows": [[2.0, 5.0]]}
    caption    {"id": "1", "video": "a.mp4", "question": "Describe the video.", "answers": ["..."]}
    dense      {"id": "1", "video": "a.mp4", "windows": [[0, 2], [3, 5]], "answers": ["...", "..."]}

More fields of any of them: start, end (of a clip, seconds), duration, subtitles (a file), labels {"kind": "x"}, group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from timeviper.benchmarking.defects import choice, windowed
from timeviper.benchmarking.forms import BARE, LETTER_FORM, PAIR
from timeviper.benchmarking.item import Item, SubtitleRef, Task, VideoRef
from timeviper.benchmarking.rows import Row, each, rows, window
from timeviper.benchmarking.testset import Form, Policy, TestSet, Unread
from timeviper.benchmarking.texts import unmarked


def read(files: Sequence[Path], task: Task) -> Iterator[Item | Unread]:
    for path in files:
        yield from each(rows(path), partial(_item, task=task))


def _item(row: Row, task: Task) -> Item:
    key = row.text("id", "key", "question_id") if {"id", "key", "question_id"} & row.keys() else row.where
    video = VideoRef(row.text("video"), start=row.maybe("start"), end=row.maybe("end"), fps=row.maybe("fps"))
    more: dict[str, Any] = {
        "labels": {
            str(k): tuple(v) if isinstance(v, list) else (str(v),) for k, v in (row.get("labels") or {}).items()
        },
        "duration": row.maybe("duration"),
        "subtitles": SubtitleRef(str(row["subtitles"])) if row.get("subtitles") else None,
    }
    if task == "mcq":
        answer = row.need("answer")
        return choice(
            key,
            video,
            row.text("question"),
            unmarked(row.texts("options", "candidates")),
            answer if isinstance(answer, int) else str(answer),
            **more,
        )
    answers = row.texts("answers") if "answers" in row else ((row.text("answer"),) if row.get("answer") else ())
    if task == "caption" and not answers:
        raise ValueError("has no answers: the captions that are right")
    windows = tuple(window(one, "windows") for one in row.get("windows") or ())
    if task == "dense" and len(windows) != len(answers):
        raise ValueError(f"has {len(windows)} windows for {len(answers)} answers")
    question = row.text("query", "question") if task == "grounding" else str(row.get("question") or ASKED[task])
    item = Item(key, video, task, question, answers=answers, windows=windows, **more)
    return item if task == "caption" else windowed(item, row.clocks("windows"))


ASKED = {
    "caption": "Describe the video.",
    "dense": "List all events of the video, a line for each with its start and end in seconds: "
    "<start> - <end> seconds, <sentence>.",
}
FORMS = {"mcq": LETTER_FORM, "grounding": PAIR, "caption": BARE, "dense": Form("{question}", max_new_tokens=1024)}


def _set(task: Task) -> TestSet:
    return TestSet(
        name=task,
        title=f"own set ({task})",
        task=task,
        patterns=("*.jsonl", "*.json", "*.csv", "*.parquet"),
        read=partial(read, task=task),
        download="nothing: your own file",
        forms={"official": FORMS[task], "bare": BARE},
        policies={"official": Policy(average="video" if task == "dense" else "question")},
    )


OWN_SETS = tuple(_set(task) for task in ("mcq", "grounding", "caption", "dense"))
