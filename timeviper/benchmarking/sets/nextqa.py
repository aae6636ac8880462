"""NExT-QA multiple choice: why and how things happen in everyday videos, five options (arXiv 2105.08276).

A CSV a split: video, question, a0 to a4, answer (0 to 4), type; videos by their VidOR ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from timeviper.benchmarking.defects import choice
from timeviper.benchmarking.forms import BARE, LETTER_FORM
from timeviper.benchmarking.item import Item
from timeviper.benchmarking.rows import Row, each, rows
from timeviper.benchmarking.testset import Counts, Policy, TestSet, Unread

KINDS = {"C": "causal", "T": "temporal", "D": "descriptive"}


def read(files: Sequence[Path]) -> Iterator[Item | Unread]:
    for path in files:
        yield from each(rows(path), _item)


def _item(row: Row) -> Item:
    answer, video = row.text("answer"), row.text("video")
    kind = str(row.get("type") or "")
    return choice(
        f"{video}#{row.get('qid') or row.where.rpartition(' ')[2]}",
        video,
        row.text("question"),
        tuple(row.text(f"a{i}") for i in range(5)),
        int(answer) if answer.isdigit() else answer,
        labels={"type": (kind,), "kind": (KINDS.get(kind[:1], "other"),)} if kind else {},
    )


NEXTQA = TestSet(
    name="nextqa",
    title="NExT-QA multiple choice",
    task="mcq",
    patterns=("test.csv", "val.csv", "*.csv", "test-*.parquet", "*.parquet"),
    read=read,
    download="test.csv (or val.csv: say which), the videos of VidOR",
    forms={"official": LETTER_FORM, "lmms": LETTER_FORM, "bare": BARE},
    policies={"official": Policy(), "lmms": Policy(unparsed="random")},
    counts=Counts(videos=1000, questions=8564, others={"the validation split": 4996, "the training split": 34132}),
    remarks=("Papers give the test split (8,564) or the validation split (4,996): say which.",),
    licence="MIT for the questions; videos are VidOR's",
)
