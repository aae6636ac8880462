"""Captions that roll up the screen: what stays while something new comes was said once.

Live and automatic captions show a line for two cues or more, between them cues of 10 ms in which nothing changes
(YouTube), or one cue a word (CEA-608); converters join the lines of a cue. Taken as they stand, each line would be said
two or three times.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

HOLD = 0.05  # s: no one reads a cue this short; it only holds what is on the screen
TOGETHER = 0.1  # s between two cues that are one picture to the eye
WORDS = 3  # that one cue ends with and the next begins with: more than chance


class Cue(NamedTuple):
    """Lines on the screen from `start` to `end`, in seconds."""

    start: float
    end: float
    lines: tuple[str, ...]
    fresh: tuple[bool, ...] = ()
    """For each line whether its words have times of their own, as only new ones have."""


@dataclass
class _Said:
    start: float
    end: float
    lines: list[str]


def said_once(cues: Sequence[Cue]) -> tuple[list[Cue], bool]:
    """The cues with each line where it first appears, and whether they roll up; else they are as they were.

    They roll up if most cues carry on what the one before them shows, or if one only holds it; where words have times,
    one line that stays without them is enough.
    """
    if all(len(cue.lines) == 1 for cue in cues):
        words = [cue._replace(lines=tuple(cue.lines[0].split())) for cue in cues]
        carried = [_words_carried(*pair) for pair in pairwise(words)]
        # Words that only come to those before them are a line that grows, not lines that were joined.
        gone = any(0 < kept < len(cue.lines) for kept, cue in zip(carried, words))
        if gone and _roll_up(words, carried):
            return [cue._replace(lines=(" ".join(cue.lines),)) for cue in _taken_once(words, carried)], True
    carried = [_lines_carried(*pair) for pair in pairwise(cues)]
    rolls = _roll_up(cues, carried)
    return (_taken_once(cues, carried) if rolls else list(cues)), rolls


def _roll_up(cues: Sequence[Cue], carried: list[int]) -> bool:
    held = any(kept == len(cue.lines) and cue.end - cue.start < HOLD for kept, cue in zip(carried, cues[1:]))
    rolling = sum(kept > 0 for kept in carried)
    stays = rolling > 0 and any(any(cue.fresh) for cue in cues)
    return held or stays or (rolling >= 2 and rolling > len(carried) / 2)


def _taken_once(cues: Sequence[Cue], carried: list[int]) -> list[Cue]:
    """`carried`: for each cue but the first, how many of its lines were on the screen already."""
    said: list[_Said] = []
    screen: list[tuple[_Said, int]] = []
    for cue, kept in zip(cues, [0, *carried]):
        screen = screen[len(screen) - kept :]
        for (was, at), line in zip(screen, cue.lines):
            was.lines[at] = line  # which may have grown
        if kept == len(cue.lines):  # the last line is still being said, or held
            screen[-1][0].end = max(screen[-1][0].end, cue.end)
        if new := list(cue.lines[kept:]):
            said.append(_Said(cue.start, cue.end, new))
            screen += [(said[-1], at) for at in range(len(new))]
    return [Cue(s.start, s.end, tuple(s.lines)) for s in said]


def _lines_carried(before: Cue, cue: Cue) -> int:
    """How many of the last lines before are the first of this cue; the last of them may have grown by words.

    Where nothing is new, only at once after it: later, the same words are said again.
    """
    for kept in range(min(len(before.lines), len(cue.lines)), 0, -1):
        *old, last = map(_heard, before.lines[-kept:])
        *now, this = map(_heard, cue.lines[:kept])
        if old == now and (this == last or this.startswith(f"{last} ")) and not any(cue.fresh[:kept]):
            new = len(cue.lines) > kept or this != last
            return kept if new or cue.start - before.end <= TOGETHER else 0
    return 0


def _words_carried(before: Cue, cue: Cue) -> int:
    """The same for words: of one of the cues all, or several."""
    shorter = min(len(before.lines), len(cue.lines))
    for kept in range(shorter, min(WORDS, shorter) - 1, -1):
        if [*map(_heard, before.lines[-kept:])] == [*map(_heard, cue.lines[:kept])]:
            return kept if len(cue.lines) > kept or cue.start - before.end <= TOGETHER else 0
    return 0


@lru_cache(maxsize=4096)
def _heard(text: str) -> str:
    """Words without capitals and punctuation, which live captions correct when a line moves up."""
    return " ".join(re.findall(r"[^\W_]+", text.casefold())) or text
