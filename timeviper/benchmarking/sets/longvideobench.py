"""LongVideoBench: questions that refer to a moment of a video, with interleaved subtitles (arXiv 2407.15754).

lvb_val.json, or Parquet with option0 to option4; videos in `videos.tar.part.aa` ..., subtitles in `subtitles.tar`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from timeviper.benchmarking.defects import TWICE, choice
from timeviper.benchmarking.forms import LETTER
from timeviper.benchmarking.item import Item, SubtitleRef
from timeviper.benchmarking.rows import Row, each, rows
from timeviper.benchmarking.testset import Counts, Form, Policy, TestSet, Unread


def read(files: Sequence[Path]) -> Iterator[Item | Unread]:
    for path in files:
        yield from each(rows(path), _item)


def _item(row: Row) -> Item:
    if "candidates" in row:
        options = row.texts("candidates")
    else:
        options = tuple(t for i in range(5) if (t := str(row.need(f"option{i}")).strip()) not in ("N/A", ""))
    right = row.number("correct_choice")
    if right != int(right):
        raise ValueError(f"correct_choice must be a whole number, got {right}")
    offset = row.maybe("starting_timestamp_for_subtitles") or 0.0
    group = row.number("duration_group")
    return choice(
        row.text("id"),
        row.text("video_path"),
        row.text("question"),
        options,
        int(right),
        labels={
            "duration_group": (f"{group:g}",),
            "question_category": (row.text("question_category"),),
            "topic_category": (row.text("topic_category"),),
            "level": (row.text("level"),),
            "options": (str(len(options)),),
        },
        duration=row.maybe("duration"),
        subtitles=SubtitleRef(row.text("subtitle_path"), offset=offset) if row.get("subtitle_path") else None,
    )


TEXT = "{subtitles}\nQuestion: {question}\n{options}\n" + LETTER
LONGVIDEOBENCH = TestSet(
    name="longvideobench",
    title="LongVideoBench val",
    task="mcq",
    patterns=("lvb_val.json", "validation-*.parquet", "lvb_test*.json", "*.parquet"),
    read=read,
    download="lvb_val.json, videos.tar.part.*, subtitles.tar",
    forms={"official": Form(TEXT), "lmms": Form(TEXT)},
    policies={"official": Policy(), "lmms": Policy(unparsed="random"), "vlmeval": Policy()},
    counts=Counts(
        videos=753,
        questions=1337,
        by={
            "duration_group": {"15": 189, "60": 172, "600": 412, "3600": 564},
            "options": {"5": 983, "4": 353, "3": 1},
            "letter": {"A": 291, "B": 304, "C": 270, "D": 290, "E": 182},
        },
        others={"the test split, whose answers are hidden": 5341},
    ),
    defects={TWICE: 9},
    remarks=(
        "Say whether subtitles were shown: VideoChat-Flash's 64.2 is with them, TimeViper's 54.1 without.",
        "A model that always says B scores 22.7.",
        "For 250 questions subtitles start later than the video: their offset is subtracted.",
    ),
    licence="CC-BY-NC-SA-4.0",
    gated=True,
)
