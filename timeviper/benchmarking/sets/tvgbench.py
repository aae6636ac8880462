"""TVGBench: 800 queries of eleven kinds on videos of five collections (Time-R1, arXiv 2503.13377).

tvgbench.json: path, question, answer "13.4-28.1", start and end of the clip (or null), duration, question_type, source,
qsemtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from timeviper.benchmarking.defects import windowed
from timeviper.benchmarking.forms import BARE, COUNTED, PAIR
from timeviper.benchmarking.item import Item, VideoRef
from timeviper.benchmarking.rows import CLOCK, Row, each, rows, seconds
from timeviper.benchmarking.testset import Counts, Policy, TestSet, Unread


def read(files: Sequence[Path]) -> Iterator[Item | Unread]:
    for path in files:
        yield from each(rows(path), _item)


def _item(row: Row) -> Item:
    """Windows count from the start of the clip, where there is one."""
    written = row.text("answer").split("-")
    if len(written) != 2:
        raise ValueError(f'answer must be "start-end" in seconds, got {row["answer"]!r}')
    start, end = seconds(written[0].strip(), "answer"), seconds(written[1].strip(), "answer")
    labels = {name: (str(row[name]),) for name in ("question_type", "source", "qsemtype") if row.get(name)}
    item = Item(
        row.where.rpartition(" ")[2],
        VideoRef(row.text("path"), start=row.maybe("start"), end=row.maybe("end")),
        "grounding",
        row.text("question"),
        windows=((start, end),),
        labels=labels,
        duration=row.maybe("duration"),
    )
    return windowed(item, any(CLOCK.fullmatch(part.strip()) for part in written))


TVGBENCH = TestSet(
    name="tvgbench",
    title="TVGBench",
    task="grounding",
    patterns=("tvgbench.json", "*.json"),
    read=read,
    download="tvgbench.json, the videos of its collections",
    forms={"official": PAIR, "timeviper": COUNTED, "bare": BARE},
    policies={"official": Policy(strict=True), "timeviper": Policy(strict=True)},
    counts=Counts(videos=462, questions=800),
    remarks=(
        "TimeViper's and Time-R1's scripts leave out missing videos without a word, and ignore start and end of clips: "
        "here missing ones count as wrong, and a clip is cut.",
        "That times count from the start of the clip is not written down: mind windows beyond its end.",
    ),
    licence="mixed: that of each collection",
)
