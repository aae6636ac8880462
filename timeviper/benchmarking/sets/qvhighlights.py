"""QVHighlights: moments of 150-second clips that a query means, often several (arXiv 2107.09609).

highlight_val_release.jsonl: qid, query, duration, vid "<YouTube id>_<start>_<end>", relevant_windows, saliency_scores.
Each video file is such a clip, so windows count from its start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from timeviper.benchmarking.defects import HIDDEN, windowed
from timeviper.benchmarking.forms import BARE, PAIR, WORKED
from timeviper.benchmarking.item import Item, VideoRef
from timeviper.benchmarking.rows import Row, each, rows, window
from timeviper.benchmarking.testset import Counts, Policy, TestSet, Unread


def read(files: Sequence[Path]) -> Iterator[Item | Unread]:
    for path in files:
        yield from each(rows(path), _item)


def _item(row: Row) -> Item:
    video = row.text("vid")
    windows = tuple(window(one, "relevant_windows") for one in row.get("relevant_windows") or ())
    kept = {name: row[name] for name in ("relevant_clip_ids", "saliency_scores") if row.get(name) is not None}
    item = Item(
        row.text("qid"),
        VideoRef(video),
        "grounding",
        row.text("query"),
        windows=windows,
        labels={"windows": ("one" if len(windows) == 1 else "several",)} if windows else {},
        duration=row.maybe("duration"),
        extra=kept,
        notes=() if windows else (HIDDEN,),
    )
    return windowed(item, row.clocks("relevant_windows")) if windows else item


QVHIGHLIGHTS = TestSet(
    name="qvhighlights",
    title="QVHighlights val",
    task="grounding",
    patterns=("highlight_val_release.jsonl", "*val*.jsonl", "*.jsonl"),
    read=read,
    download="highlight_val_release.jsonl, qvhilights_videos.tar.gz",
    forms={"official": PAIR, "lmms": WORKED, "bare": BARE},
    policies={"official": Policy(), "timeviper": Policy(strict=True)},
    counts=Counts(
        questions=1550,
        by={"windows": {"one": 1020, "several": 530}},
        others={"the test split": 1542, "the training split": 7218},
    ),
    remarks=(
        "R1 is against the best of the windows; mAP takes up to ten windows of a reply, in their order.",
        "HIT@1 and mAP of highlights need a score for every two seconds, which no reply has: they are not computed.",
    ),
    licence="that of the repository: data/LICENSE",
)
