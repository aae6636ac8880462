"""TimeLens-Bench: Charades-STA, ActivityNet Captions and QVHighlights with truth that was checked again.

{charades,activitynet,qvhighlights}-timelens.json: {video: {duration, spans, queries}}; videos in tar.gz shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from timeviper.benchmarking.defects import windowed
from timeviper.benchmarking.forms import BARE, PAIR
from timeviper.benchmarking.item import Item, VideoRef
from timeviper.benchmarking.rows import Row, each, moments, window
from timeviper.benchmarking.testset import Policy, TestSet, Unread

ENDING = "-timelens"


def read(files: Sequence[Path]) -> Iterator[Item | Unread]:
    for path in files:
        source = path.stem.removesuffix(ENDING)
        yield from each(moments(path, "spans", "queries"), partial(_item, source=source))


def _item(row: Row, source: str) -> Item:
    video, span = row.text("video"), row.need("spans")
    several = bool(span) and isinstance(span[0], list)
    item = Item(
        f"{source}#{video}#{row.text('number')}",
        VideoRef(f"{source}/{video}"),
        "grounding",
        " ".join(row.text("queries").split()).strip(" ."),
        windows=tuple(window(one, "spans") for one in (span if several else [span])),
        labels={"source": (source,)},
        duration=row.maybe("duration"),
    )
    return windowed(item, row.clocks("spans"))


TIMELENS = TestSet(
    name="timelens",
    title="TimeLens-Bench",
    task="grounding",
    patterns=(f"*{ENDING}.json",),
    read=read,
    download="charades-timelens.json, activitynet-timelens.json, qvhighlights-timelens.json, videos/*.tar.gz",
    forms={"official": PAIR, "lmms": PAIR, "bare": BARE},
    policies={"official": Policy(average="macro", by="source"), "lmms": Policy(average="macro", by="source")},
    remarks=(
        "The official scorer rounds answers to whole seconds, so exact ones can lose by it; lmms-eval's does not, and "
        "leaves out malformed truth.",
        "How many questions there are was not found published: nothing is compared.",
    ),
    licence="not stated where it was looked for",
)
