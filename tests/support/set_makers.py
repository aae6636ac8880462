"""Miniature copies of test sets, in the files that people download: invented content, the documented fields."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from video_helpers import write_clip

from timeviper.benchmarking.registry import Loaded, load_set

FPS = 10


def as_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def as_lines(path: Path, rows: Sequence[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def as_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
    return path


def as_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)
    return path


_CLIPS: dict[float, bytes] = {}


def video(path: Path, seconds: float = 2.0) -> Path:
    """A clip of this length."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if seconds not in _CLIPS:
        whole = write_clip(path.parent / f"made_{path.name}.mp4", round(seconds * FPS), options={"crf": "40"})
        _CLIPS[seconds] = whole.read_bytes()
        whole.unlink()
    path.write_bytes(_CLIPS[seconds])
    return path


def videomme(folder: Path, **change: Any) -> list[dict[str, Any]]:
    """Three questions on each of two videos, written as its Parquet file; `change`: fields of the second row."""
    rows = []
    for number, name in enumerate(("kite_Video1", "-boat_Vid02"), 1):
        for place in (1, 2, 3):
            rows.append(
                {
                    "video_id": f"{number:03d}",
                    "duration": ("short", "long")[number - 1],
                    "domain": "Knowledge",
                    "sub_category": "Weather",
                    "url": f"https://example.org/watch?v={name}",
                    "videoID": name,
                    "question_id": f"{number:03d}-{place}",
                    "task_type": "Counting Problem",
                    "question": f"Which colour is kite {place}?",
                    "options": ["A. Red.", "B. Green.", "C. Blue.", "D. None of them."],
                    "answer": "ABC"[place - 1],
                }
            )
    rows[1] |= change
    as_parquet(folder / "videomme" / "test-00000-of-00001.parquet", rows)
    return rows


def video_of_two(folder: Path) -> None:
    for name in ("kite_Video1", "-boat_Vid02"):
        video(folder / "data" / f"{name}.mp4")


def load(name: str, folder: Path, videos: bool = False) -> Loaded:
    return load_set(name, folder, folder if videos else None)


def zipped(folder: Path, archive: Path) -> Path:
    """All of a folder as a zip that compresses; the folder is gone."""
    made = shutil.make_archive(str(archive.with_suffix("")), "zip", folder)
    shutil.rmtree(folder)
    return Path(made)
