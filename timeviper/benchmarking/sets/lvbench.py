"""LVBench: 103 videos of an hour, about 15 questions each (arXiv 2406.08035).

`video_info.meta.jsonl`, a line a video, with options inside the questions. Its downloader numbers the videos
(00000000.mp4 ...): a list of `--names` says which is which.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from timeviper.benchmarking.defects import choice
from timeviper.benchmarking.forms import LETTER
from timeviper.benchmarking.item import Item
from timeviper.benchmarking.rows import Row, each, rows, seconds
from timeviper.benchmarking.testset import Counts, Form, Policy, TestSet, Unread
from timeviper.benchmarking.texts import apart


def read(files: Sequence[Path]) -> Iterator[Item | Unread]:
    for path in files:
        for row in rows(path):
            yield from each(_asked(row), _item)


def _asked(video: Row | Unread) -> Iterator[Row | Unread]:
    """A row for each question of a video."""
    if isinstance(video, Unread):
        yield video
        return
    info, asked = video.get("video_info"), video.get("qa")
    if not isinstance(info, dict) or not isinstance(asked, list):
        yield Unread(video.where, f"has no video_info and qa (its fields: {', '.join(video)})")
        return
    told = {name: video.get(name) for name in ("key", "type")} | {"minutes": info.get("duration_minutes")}
    for number, one in enumerate(asked, 1):
        if isinstance(one, dict):
            yield Row({**one, **told}, f"{video.where}, question {one.get('uid')}")
        else:
            yield Unread(f"{video.where}, question {number}", "is no object")


def _item(row: Row) -> Item:
    question, options = apart(row.text("question"))
    if not options:
        raise ValueError(f"has no options (A), (B) ... in its text: {question[:60]!r}")
    minutes, types = row.maybe("minutes"), row.need("question_type")
    reference = _reference(str(row.get("time_reference") or ""))
    return choice(
        row.text("uid"),
        row.text("key"),
        question,
        options,
        row.text("answer"),
        labels={"type": (row.text("type"),), "question_type": tuple(types if isinstance(types, list) else [types])},
        duration=None if minutes is None else 60 * minutes,
        extra={"time_reference": reference} if reference else {},
    )


def _reference(text: str) -> list[float]:
    """Seconds of "01:05-01:20"; nothing if it is written otherwise."""
    try:
        return [seconds(part.strip()) for part in text.split("-")] if "-" in text else []
    except ValueError:
        return []


LVBENCH = TestSet(
    name="lvbench",
    title="LVBench",
    task="mcq",
    patterns=("video_info.meta.jsonl", "*.jsonl"),
    read=read,
    download="video_info.meta.jsonl; the videos by their YouTube ids (none are given)",
    forms={
        "official": Form(f"{{question}}\n{{options}}\n{LETTER}", option="({letter}) {text}"),
        "lmms": Form(f"{{question}}\n{{options}}\n{LETTER}", option="({letter}) {text}"),
    },
    policies={
        "official": Policy(),
        "lmms": Policy(),
        "timeviper": Policy(average="label", by="question_type"),
    },
    counts=Counts(videos=103, questions=1549),
    remarks=(
        "A question of several types counts in each; TimeViper's total counts it once for each, the set's own once.",
        "The official scorer counts only questions that the answer file has.",
        'Others score a "clean" part of 1,519 questions on 101 videos: its numbers are another set\'s.',
    ),
    licence="CC-BY-NC-SA-4.0; no videos are given",
)
