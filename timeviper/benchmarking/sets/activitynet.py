"""ActivityNet Captions as grounding: when in a video of minutes does a sentence happen? (arXiv 1705.00754)

{video: {duration, timestamps, sentences}}; videos `v_<id>.mp4`. There are two files of the validation videos, by other
people with other sentences: VTimeLLM tests on val_2.json, TimeViper on a val.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from timeviper.benchmarking.defects import windowed
from timeviper.benchmarking.forms import BARE, COUNTED, PAIR, WORKED
from timeviper.benchmarking.item import Item, VideoRef
from timeviper.benchmarking.rows import Row, each, moments, window
from timeviper.benchmarking.testset import Counts, Policy, TestSet, Unread


def read(files: Sequence[Path]) -> Iterator[Item | Unread]:
    for path in files:
        yield from each(moments(path, "timestamps", "sentences"), _item)


def _item(row: Row) -> Item:
    video = row.text("video")
    item = Item(
        f"{video}#{row.text('number')}",
        VideoRef(video),
        "grounding",
        row.text("sentences"),
        windows=(window(row.need("timestamps"), "timestamps"),),
        duration=row.maybe("duration"),
    )
    return windowed(item, row.clocks("timestamps"))


ACTIVITYNET = TestSet(
    name="activitynet",
    title="ActivityNet Captions, grounding",
    task="grounding",
    patterns=("val_2.json", "val_1.json", "val.json", "*.json"),
    read=read,
    download="val_2.json of captions.zip (or val_1.json: say which), the videos by their YouTube ids",
    forms={"official": PAIR, "lmms": WORKED, "timeviper": COUNTED, "bare": BARE},
    policies={"official": Policy(), "timeviper": Policy(strict=True)},
    counts=Counts(
        videos=4885,
        questions=17031,
        others={"val_1.json": 17505, "the training split": 37421, "both files of the validation videos": 34536},
    ),
    remarks=("ActivityNet is in TimeViper's training mixture: its number is not zero-shot.",),
    licence="MIT for the annotations; videos are YouTube's",
)
