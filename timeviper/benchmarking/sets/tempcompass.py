"""TempCompass: speed, direction, order and change in 410 short videos, asked in four ways (arXiv 2403.00476).

multi-choice.json, yes_no.json, caption_matching.json, captioning.json: {video: {aspect: [{question, answer}]}}.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from timeviper.benchmarking.defects import choice
from timeviper.benchmarking.forms import BARE
from timeviper.benchmarking.item import LETTERS, Item, VideoRef
from timeviper.benchmarking.rows import Row, each, keyed
from timeviper.benchmarking.testset import Counts, Form, Policy, TestSet, Unread
from timeviper.benchmarking.texts import apart

ASPECTS = {"action": 338, "direction": 335, "speed": 317, "order": 302, "attribute_change": 288}
PAIR = re.compile(r"^(?:caption|option|sentence)\s+([A-Z]|\d)\s*[:.]\s*(.+)$", re.IGNORECASE | re.MULTILINE)
Make = Callable[[Row, str, str, str], Item]


def read(files: Sequence[Path], make: Make, wants: str) -> Iterator[Item | Unread]:
    for path in files:
        yield from each(_rows(path), partial(_made, make=make, wants=wants))


def _rows(path: Path) -> Iterator[Row | Unread]:
    for video, aspects in keyed(path).items():
        if not isinstance(aspects, dict):
            yield Unread(f"{path.name}, {video}", "must hold a list of questions for each aspect")
            continue
        for aspect, asked in aspects.items():
            for number, fields in enumerate(asked if isinstance(asked, list) else [asked], 1):
                if not isinstance(fields, dict):
                    yield Unread(f"{path.name}, {video}, {aspect}", "must be a list of objects")
                    continue
                yield Row({**fields, "video": video, "aspect": aspect, "number": number}, f"{path.name}, {video}")


def _made(row: Row, make: Make, wants: str) -> Item:
    if wants not in row:
        raise ValueError(f"has no {wants}: it is another of the four files")
    video, aspect = row.text("video"), row.text("aspect")
    return make(row, f"{video}#{aspect}#{row.text('number')}", video, aspect)


def _letters(row: Row, key: str, video: str, aspect: str) -> Item:
    question, options = apart(row.text("question"))
    if not options:
        raise ValueError(f"its question has no options A., B. ...: {question[:60]!r}")
    return choice(key, video, question, options, _bare(row.text("answer")), labels={"aspect": (aspect,)})


def _bare(answer: str) -> str:
    """ "A. walking" -> "A"."""
    return answer[0] if len(answer) > 1 and answer[0] in LETTERS and answer[1] in ".):" else answer


def _yes_no(row: Row, key: str, video: str, aspect: str) -> Item:
    answer = row.text("answer").lower()
    if answer not in ("yes", "no"):
        raise ValueError(f"its answer must be yes or no, got {answer!r}")
    labels = {"aspect": (aspect,)}
    question = row.text("question")
    return Item(key, VideoRef(video), "open", question, answers=(answer,), labels=labels, extra={"match": "prefix"})


def _matching(row: Row, key: str, video: str, aspect: str) -> Item:
    text, answer = row.text("question"), row.text("answer")
    found = list(PAIR.finditer(text))
    if len(found) < 2:
        raise ValueError(f"its question has no two captions to choose from: {text[-60:]!r}")
    options = [mark[2].strip() for mark in found]
    marks = {mark[0].strip().lower(): place for place, mark in enumerate(found)}
    right = marks.get(answer.strip().lower(), answer)
    return choice(key, video, text[: found[0].start()].strip(), options, right, labels={"aspect": (aspect,)})


def _captioning(row: Row, key: str, video: str, aspect: str) -> Item:
    asked = {name: row[name] for name in ("mc_question", "mc_answer") if name in row}
    labels = {"aspect": (aspect,)}
    answers = (str(row.get("answer") or row.get("mc_answer")),)
    return Item(key, VideoRef(video), "caption", row.text("question"), answers=answers, labels=labels, extra=asked)


DIRECTLY = "Answer with the best option directly."


def _set(name: str, title: str, file: str, make: Make, questions: int, form: Form, **more: object) -> TestSet:
    task = "caption" if make is _captioning else "open" if make is _yes_no else "mcq"
    by = {"aspect": ASPECTS} if make is _letters else {}
    return TestSet(
        name=name,
        title=title,
        task=task,
        patterns=(file,),
        read=partial(read, make=make, wants="mc_question" if make is _captioning else "answer"),
        download=f"questions/{file}, videos/*.mp4",
        forms={"official": form, "lmms": form, "bare": BARE},
        policies={"official": Policy(), "lmms": Policy()},
        counts=Counts(videos=410, questions=questions, by=by),
        remarks=(
            "Officially a rule reads the reply, else gpt-3.5 at temperature 1 does: here the rule alone.",
            "The README of the set warns of lmms-eval's numbers by aspect.",
        ),
        licence="CC-BY-NC-4.0",
    )


CHOICE_FORM = Form(f"{{question}}\n{{options}}\n{DIRECTLY}", max_new_tokens=64)
TEMPCOMPASS = _set("tempcompass", "TempCompass", "multi-choice.json", _letters, 1580, CHOICE_FORM)
TEMPCOMPASS_YESNO = _set(
    "tempcompass_yesno", "TempCompass yes-no", "yes_no.json", _yes_no, 2453, Form("{question}\nAnswer yes or no.")
)
TEMPCOMPASS_MATCHING = _set(
    "tempcompass_matching", "TempCompass caption matching", "caption_matching.json", _matching, 1503, CHOICE_FORM
)
TEMPCOMPASS_CAPTION = _set(
    "tempcompass_caption",
    "TempCompass captioning",
    "captioning.json",
    _captioning,
    2004,
    Form("{question}", max_new_tokens=256),
)
