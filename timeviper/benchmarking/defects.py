"""Defects of items: what is odd about a question or its truth. They are noted and counted, and nothing is dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from timeviper.benchmarking.item import LETTERS, Item, VideoRef, plain, right_option

REPEATS = "repeated option"
NO_OPTION = "answer is no option"
BEYOND_OPTIONS = "letter beyond the options"
ONE_OPTION = "one option"
HIDDEN = "hidden answer"
TWICE = "asked twice"
SAME_KEY = "key used twice"
BEYOND_END = "window beyond the end"
TURNED = "window turned around"
CLOCK = "time as MM:SS"
NO_WINDOW = "no window"
SHORT_GROUP = "group that is not whole"

SAYS = {
    REPEATS: "two of the options are the same text",
    NO_OPTION: "the answer is none of the options: no reply can be right",
    BEYOND_OPTIONS: "the answer's letter or number has no option: no reply can be right",
    ONE_OPTION: "there is nothing to choose from",
    HIDDEN: "the answer is not published: send replies to the set's server",
    TWICE: "video and question are those of another item",
    SAME_KEY: "two items have one key",
    BEYOND_END: "the true window ends after the video",
    TURNED: "the true window starts after it ends, or has no length",
    CLOCK: "times are written as MM:SS where the set has seconds; they were read as minutes and seconds",
    SHORT_GROUP: "of the four questions that count together some are missing, or there are more",
    NO_WINDOW: "no true window is given",
}
SLACK = 1.0  # seconds that a window may reach beyond a length that was rounded


def choice(
    key: str,
    video: VideoRef | str,
    question: str,
    options: Sequence[str],
    answer: str | int | None,
    **more: Any,
) -> Item:
    """A question with options, with its defects; answer: as the set writes it, None or -1 where it is hidden."""
    notes = list(more.pop("notes", ()))
    right, answers = None, ()
    if answer is None or answer in (-1, "-1", ""):
        notes.append(HIDDEN)
    else:
        right, answers = right_option(answer, options), (str(answer),)
        if right is None:
            notes.append(BEYOND_OPTIONS if _names_one(answer) else NO_OPTION)
    if len({plain(option) for option in options}) < len(options):
        notes.append(REPEATS)
    if len(options) == 1:
        notes.append(ONE_OPTION)
    ref = VideoRef(video) if isinstance(video, str) else video
    task = more.pop("task", "mcq")
    return Item(key, ref, task, question, tuple(options), right, answers, notes=tuple(notes), **more)


def _names_one(answer: str | int) -> bool:
    """Whether an answer is a letter or a number, not a text."""
    letter = str(answer).strip("(). ").upper()
    return isinstance(answer, int) or (len(letter) == 1 and letter in LETTERS)


def windowed(item: Item, clock: bool = False) -> Item:
    """The item with the defects of its windows. clock: its times were written as MM:SS."""
    notes = list(item.notes)
    if not item.windows:
        notes.append(NO_WINDOW)
    if any(start >= end for start, end in item.windows):
        notes.append(TURNED)
    clip = item.video
    lasts = item.duration if clip.end is None else clip.end - (clip.start or 0.0)
    if lasts and any(end > lasts + SLACK for _, end in item.windows):
        notes.append(BEYOND_END)
    if clock:
        notes.append(CLOCK)
    return replace(item, notes=tuple(notes))


def mark_repeats(items: Sequence[Item]) -> list[Item]:
    """All items, with what can only be seen among them: those asked twice, and keys used twice, which become unique.

    The later ones of a key get `~2`, `~3` ..., so that each can be answered and counted.
    """
    asked: Counter[tuple[object, ...]] = Counter()
    keys: Counter[str] = Counter()
    made = []
    for item in items:
        notes = list(item.notes)
        turned = item.options if item.task == "group" else ()  # rotations of a question are not the same one
        depth = item.label("frames"), item.label("depth")  # of a needle
        about = (item.video, item.task, plain(item.question), turned, depth)
        asked[about] += 1
        keys[item.key] += 1
        if asked[about] > 1:
            notes.append(TWICE)
        if keys[item.key] > 1:
            notes.append(SAME_KEY)
        key = item.key if keys[item.key] == 1 else f"{item.key}~{keys[item.key]}"
        made.append(replace(item, key=key, notes=tuple(notes)))
    return made


def counted(items: Iterable[Item]) -> Counter[str]:
    """Items with each defect."""
    return Counter(note for item in items for note in set(item.notes))
