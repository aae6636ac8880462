"""MVBench: 20 tasks of 200 questions on short clips of eleven collections (arXiv 2311.17005).

`json/<task>.json`; some tasks ask about a part of a video, one about folders of frames at 3 a second. Copies that
have cut clips (lmms-eval's revision `video`) must not be cut again: `bench check` says so by their lengths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from timeviper.benchmarking.defects import ONE_OPTION, choice
from timeviper.benchmarking.forms import BARE, PREFIXED
from timeviper.benchmarking.item import Item, VideoRef
from timeviper.benchmarking.rows import Row, each, rows
from timeviper.benchmarking.testset import Counts, Form, Policy, TestSet, Unread

STAR, CLEVRER, PERCEPTION = "star/Charades_v1_480", "clevrer/video_validation", "perception/videos"
FOLDERS = {
    "action_sequence": STAR,
    "action_prediction": STAR,
    "action_antonym": "ssv2_video",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "object_existence": CLEVRER,
    "object_interaction": STAR,
    "object_shuffle": PERCEPTION,
    "moving_direction": CLEVRER,
    "action_localization": "sta/sta_video",
    "scene_transition": "scene_qa/video",
    "action_count": PERCEPTION,
    "moving_count": CLEVRER,
    "moving_attribute": CLEVRER,
    "state_change": PERCEPTION,
    "fine_grained_pose": "nturgbd",
    "character_order": PERCEPTION,
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    "counterfactual_inference": CLEVRER,
}
CUT = ("action_sequence", "action_prediction", "object_interaction", "action_localization", "episodic_reasoning")
FRAMES, RATE = "episodic_reasoning", 3.0


def read(files: Sequence[Path]) -> Iterator[Item | Unread]:
    for path in files:
        if path.stem not in FOLDERS:
            raise ValueError(f"{path.name} is named after no task of MVBench: {', '.join(sorted(FOLDERS))}")
        yield from each(rows(path), partial(_item, task=path.stem))


def _item(row: Row, task: str) -> Item:
    start, end = (row.maybe("start"), row.maybe("end")) if task in CUT else (None, None)
    if start is not None and end is not None and start >= end:
        raise ValueError(f"its clip starts at {start:g} and ends at {end:g} s")
    name = f"{FOLDERS[task]}/{row.text('video')}"
    return choice(
        f"{task}#{row.where.rpartition(' ')[2]}",
        VideoRef(name.rstrip("/"), start=start, end=end, fps=row.maybe("fps") or RATE if task == FRAMES else None),
        row.text("question"),
        row.texts("candidates"),
        row.text("answer"),
        labels={"task": (task,)},
        duration=row.maybe("video_length", "duration"),
    )


MVBENCH = TestSet(
    name="mvbench",
    title="MVBench",
    task="mcq",
    patterns=("json/*.json", "*.json"),
    read=read,
    download="json/*.json, video/*.zip; the NTU RGB+D clips by their own form",
    forms={
        "official": PREFIXED,
        "lmms": Form(
            "Question: {question}\nOptions:\n{options}\nGive only the best option.", option="({letter}) {text}"
        ),
        "bare": BARE,
    },
    policies={
        "official": Policy(unparsed="right", average="macro", by="task"),
        "lmms": Policy(unparsed="dropped", average="macro", by="task"),
        "vlmeval": Policy(),
    },
    counts=Counts(questions=4000, by={"task": {task: 200 for task in FOLDERS}}),
    defects={ONE_OPTION: 5},
    remarks=(
        "The official check finds the first word of either text in the other: an empty answer is right.",
        "lmms-eval lower-cases replies, so the article a is option A.",
        "Headline is the mean of the 20 tasks; each has 200 questions, so the mean of all is the same.",
    ),
    licence="MIT for the questions; videos by their collections",
)
