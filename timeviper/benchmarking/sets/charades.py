"""Charades-STA: when in a video of half a minute does a sentence happen? (arXiv 1705.02101)

`charades_sta_test.txt` has a line for each, "AO8RW 0.0 6.9##a person is putting a book on a shelf."; the CSV of
Charades beside it (columns id, length) tells how long the videos are. Copies on the Hub: video, caption, timestamp.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from timeviper.benchmarking.defects import BEYOND_END, windowed
from timeviper.benchmarking.forms import BARE, COUNTED, PAIR, WORKED
from timeviper.benchmarking.item import Item, VideoRef
from timeviper.benchmarking.rows import CLOCK, Row, each, rows, seconds, window
from timeviper.benchmarking.testset import Counts, Policy, TestSet, Unread
from timeviper.datamodules.formats.text_files import read_lines

LENGTHS = ("Charades_v1_test.csv", "Charades_v1_train.csv")
LINE = re.compile(r"(\S+)\s+(\S+)\s+(\S+?)\s*##\s*(.+)")


def read(files: Sequence[Path]) -> Iterator[Item | Unread]:
    for path in files:
        if path.suffix.lower() == ".txt":
            yield from _lines(path, _lengths(path.parent))
        else:
            yield from each(rows(path), _row)


def _lengths(folder: Path) -> dict[str, float]:
    """Seconds of the videos, from the CSVs of Charades in a folder; empty without one."""
    found = {}
    for path in (folder / name for name in LENGTHS if (folder / name).is_file()):
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file):
                if row.get("id") and row.get("length"):
                    found[row["id"]] = seconds(row["length"], "length")
    return found


def _lines(path: Path, lengths: dict[str, float]) -> Iterator[Item | Unread]:
    for number, line in read_lines(path):
        where = f"{path.name}, line {number}"
        found = LINE.fullmatch(line) if isinstance(line, str) else None
        if not found:
            yield Unread(where, f'must be "VIDEO START END##SENTENCE", got {str(line)[:60]!r}')
            continue
        video, start, end, sentence = found.groups()
        try:
            times = window([start, end])
        except ValueError as error:
            yield Unread(where, str(error))
            continue
        clock = bool(CLOCK.fullmatch(start) or CLOCK.fullmatch(end))
        yield _moment(str(number), video, sentence, times, lengths.get(video), clock)


def _row(row: Row) -> Item:
    video = row.text("video")
    times = window(row.need("timestamp"), "timestamp")
    key = f"{row.where.rpartition(' ')[2]}"
    return _moment(key, video, row.text("caption"), times, None, row.clocks("timestamp"))


def _moment(
    key: str, video: str, sentence: str, times: tuple[float, float], duration: float | None, clock: bool
) -> Item:
    ref = VideoRef(video.removesuffix(".mp4"))
    item = Item(f"{ref.name}#{key}", ref, "grounding", sentence.strip(), windows=(times,), duration=duration)
    return windowed(item, clock)


CHARADES = TestSet(
    name="charades",
    title="Charades-STA",
    task="grounding",
    patterns=("*charades_sta_test.txt", "*sta_test*.txt", "*.txt", "test-*.parquet", "*.parquet"),
    read=read,
    beside=LENGTHS,
    download="charades_sta_test.txt, Charades_v1_test.csv, Charades_v1_480.zip",
    forms={"official": PAIR, "lmms": WORKED, "timeviper": COUNTED, "bare": BARE},
    policies={"official": Policy(), "lmms": Policy(), "timeviper": Policy(strict=True)},
    counts=Counts(videos=1334, questions=3720, others={"the training split": 12408}),
    defects={BEYOND_END: 0},
    licence="Charades: non-commercial",
)
