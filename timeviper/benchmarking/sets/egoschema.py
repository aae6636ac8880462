"""EgoSchema: one question with five options for each three minutes of a camera that somebody wears (arXiv 2308.09126).

questions.json {q_uid, question, "option 0" ... "option 4"} and subset_answers.json {q_uid: 0 to 4}, the answers of 500:
those of all 5,031 are hidden. `<q_uid>.mp4`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from timeviper.benchmarking.defects import HIDDEN, choice
from timeviper.benchmarking.forms import BARE, LETTER_FORM
from timeviper.benchmarking.item import Item
from timeviper.benchmarking.rows import Row, each, json_of, rows
from timeviper.benchmarking.testset import Counts, Policy, TestSet, Unread
from timeviper.benchmarking.texts import unmarked

ANSWERS = "subset_answers.json"


def read(files: Sequence[Path], subset: bool) -> Iterator[Item | Unread]:
    for path in files:
        known = _answers(path.parent / ANSWERS)
        if subset and path.suffix == ".json" and not known:
            raise ValueError(f"{path.parent} has no {ANSWERS}, which says which 500 are asked, and their answers")
        for one in each(rows(path), partial(_item, known=known)):
            if not subset or isinstance(one, Unread) or not known or one.key in known:
                yield one


def _answers(path: Path) -> Mapping[str, int]:
    if not path.is_file():
        return {}
    content = json_of(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} must be an object from q_uid to 0 ... 4")
    return content


def _item(row: Row, known: Mapping[str, int]) -> Item:
    if "option 0" in row:
        options = tuple(row.text(f"option {i}") for i in range(5))
        key = row.text("q_uid")
        return choice(key, key, row.text("question"), options, known.get(key))
    key = row.text("video_idx", "q_uid")
    answer = "" if row.get("answer") is None else str(row["answer"])
    told = int(answer) if answer.isdigit() else answer
    return choice(key, key, row.text("question"), unmarked(row.texts("option")), told)


def _set(name: str, title: str, subset: bool) -> TestSet:
    return TestSet(
        name=name,
        title=title,
        task="mcq",
        patterns=("questions.json", "*.parquet"),
        read=partial(read, subset=subset),
        beside=(ANSWERS,),
        download="questions.json, subset_answers.json, the videos (Ego4D)",
        forms={"official": LETTER_FORM, "lmms": LETTER_FORM, "bare": BARE},
        policies={"official": Policy(), "lmms": Policy(unparsed="random"), "timeviper": Policy(unparsed="random")},
        counts=Counts(
            videos=500 if subset else 5031,
            questions=500 if subset else 5031,
            others={"all of EgoSchema, whose answers are hidden": 5031} if subset else {"the subset": 500},
        ),
        defects={} if subset else {HIDDEN: 4531},
        remarks=("TimeViper's and lmms-eval's scorers put a random letter where they read none.",),
        licence="Ego4D's",
        gated=True,
    )


EGOSCHEMA = _set("egoschema", "EgoSchema subset", True)
EGOSCHEMA_FULL = _set("egoschema_full", "EgoSchema", False)
