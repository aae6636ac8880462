"""V-NIAH: a picture put into an hour of video at a length and a depth, and a question about it (LongVA, 2406.16852).

A table of five needles: question, answer, and the picture. The video is any of an hour or more, which is not given:
long_video.mp4, or what `--names` says. Asked are 15 lengths x 6 depths of each needle; `extra` says where it comes:
before frame int(depth * frames) of the haystack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from timeviper.benchmarking.item import Item, VideoRef
from timeviper.benchmarking.rows import Row, each, rows
from timeviper.benchmarking.testset import Counts, Form, Policy, TestSet, Unread

LENGTHS = range(200, 3001, 200)  # frames of the haystack
DEPTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
HAYSTACK = "long_video"


def read(files: Sequence[Path]) -> Iterator[Item | Unread]:
    for path in files:
        yield from each(rows(path), _items)


def _items(row: Row) -> Iterator[Item]:
    needle = int(row.where.rpartition(" ")[2]) - 1
    question, answer = row.text("question"), row.text("answer")
    for frames in LENGTHS:
        for depth in DEPTHS:
            yield Item(
                f"needle{needle}#{frames}#{depth:g}",
                VideoRef(HAYSTACK),
                "open",
                question,
                answers=(answer,),
                labels={"frames": (str(frames),), "depth": (f"{depth:g}",), "needle": (str(needle),)},
                extra={
                    "needle": {"file": row.where.partition(", ")[0], "row": needle, "image": row.get("image_path")},
                    "frames": frames,
                    "depth": depth,
                    "at": int(depth * frames),
                    "match": "prefix",
                },
            )


VNIAH = TestSet(
    name="vniah",
    title="V-NIAH",
    task="open",
    patterns=("test-*.parquet", "*.parquet", "*.jsonl"),
    read=read,
    download=f"the table of lmms-lab/v_niah_needles, and any video of an hour as {HAYSTACK}.mp4",
    forms={"official": Form("{question}", max_new_tokens=32)},
    policies={"official": Policy()},
    counts=Counts(videos=1, questions=5 * len(LENGTHS) * len(DEPTHS)),
    remarks=(
        "The official score does not generate: right is what teacher-forced argmax hits in all tokens of the answer. A "
        "greedy reply that begins with the answer is the same where its tokens are, as here.",
        "Needles are put into the first 200 to 3,000 frames at the rate of --frames first:1:3000, and no other rule.",
        "`timeviper needles` makes and scores such maps from your own videos and pictures.",
    ),
    licence="not stated where it was looked for",
)
