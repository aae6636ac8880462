"""Video-MME-v2: 800 videos, four questions each with up to eight options, that count as a group.

test.parquet; 40 zips with `<video_id>.mp4`; `subtitle/<id>.jsonl`, a word a line {text, start_time, end_time}.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from timeviper.benchmarking.defects import SHORT_GROUP, choice
from timeviper.benchmarking.forms import BARE, LETTER_FORM
from timeviper.benchmarking.item import Item, SubtitleRef
from timeviper.benchmarking.rows import Row, each, rows
from timeviper.benchmarking.testset import Counts, Form, Policy, TestSet, Unread
from timeviper.benchmarking.texts import lines_of

STRUCTURES = ("[1,2,3,4]", "[1,[2,3],4]", "[[1,2],3,4]")


def read(files: Sequence[Path]) -> Iterator[Item | Unread]:
    """Groups are those of a video id, wherever its rows stand: who counts by fours breaks on a filtered file."""
    found = [one for path in files for one in each(rows(path), _item)]
    sizes = Counter(one.group for one in found if isinstance(one, Item))
    last = {one.group: one for one in found if isinstance(one, Item)}
    for one in found:
        if isinstance(one, Item):
            of = last[one.group].labels
            short = (SHORT_GROUP,) if sizes[one.group] != 4 else ()
            one = replace(one, labels={**one.labels, **_of_group(of)}, notes=(*one.notes, *short))
        yield one


def _of_group(last: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Level and heads of a group, which are those of its last question."""
    return {f"group_{name}": last[name] for name in ("level", "second_head", "third_head") if name in last}


def _item(row: Row) -> Item:
    video, key = row.text("video_id"), row.text("question_id")
    kind, structure = row.text("group_type"), row.text("group_structure").replace(" ", "")
    if kind not in ("relevance", "logic") or structure not in STRUCTURES:
        raise ValueError(f"has group_type {kind!r} and group_structure {structure!r}: relevance or logic, {STRUCTURES}")
    place = key.rpartition("-")[2]
    labels = {
        "level": str(row.get("level")),
        "second_head": row.get("second_head"),
        "third_head": row.get("third_head"),
    }
    return choice(
        key,
        video,
        row.text("question"),
        lines_of(row.text("options")),
        row.text("answer"),
        task="group",
        group=video,
        group_rule="relevance" if kind == "relevance" else structure,
        place=int(place) if place.isdigit() else 0,
        labels={"group_type": (kind,), **{n: (str(v),) for n, v in labels.items() if v}},
        subtitles=SubtitleRef(f"subtitle/{video}.jsonl"),
    )


VIDEOMME_V2 = TestSet(
    name="videomme_v2",
    title="Video-MME-v2",
    task="group",
    patterns=("test.parquet", "test-*.parquet", "*.parquet"),
    read=read,
    download="test.parquet, 40 zips of videos, subtitle.zip",
    forms={
        "official": Form(
            "These are frames of a video.\n{subtitles}\nChoose the best option and reply with its letter alone.\n"
            "{question}\n{options}",
            subtitles="These are subtitles of the video:\n{cues}",
            cue="The best answer is:",
        ),
        "lmms": LETTER_FORM,
        "bare": BARE,
    },
    policies={
        "official": Policy(average="group"),
        "lmms": Policy(average="group"),
        "vlmeval": Policy(average="group"),
    },
    counts=Counts(videos=800, questions=3200, groups=800),
    remarks=(
        "The official scorer takes an answer that cannot be read as -1, which is true in groups of logic: four empty "
        "answers score 100 there. `official` does the same; under `lmms` and all other rules they are wrong.",
        "Level and heads of a group are those of its last question.",
    ),
    licence="academic research",
)
