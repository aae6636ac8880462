"""Captions that roll up the screen: a line that stays while the next one comes was said once.

Live and automatic captions show a line for two cues or more, between them cues of 10 ms in which nothing changes
(YouTube), or one cue a word (CEA-608). Taken as they stand, each line would be said two or three times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

HOLD = 0.05  # s: no one reads a cue this short; it only holds what is on the screen
TOGETHER = 0.1  # s between two cues that are one picture to the eye


class Cue(NamedTuple):
    """Lines on the screen from `start` to `end`, in seconds."""

    start: float
    end: float
    lines: tuple[str, ...]


@dataclass
class _Said:
    start: float
    end: float
    lines: list[str]


def said_once(cues: Sequence[Cue]) -> tuple[list[Cue], bool]:
    """The cues with each line where it first appears, and whether they roll up; else they are as they were.

    They roll up if most cues carry on what the one before them shows, or if one only holds it.
    """
    if not _roll_up(cues):
        return list(cues), False
    said: list[_Said] = []
    screen: list[tuple[_Said, int]] = []
    last: Cue | None = None
    for cue in cues:
        kept = _carried(last, cue) if last else 0
        screen = screen[len(screen) - kept :]
        for (was, at), line in zip(screen, cue.lines):
            was.lines[at] = line  # which may have grown
        if kept == len(cue.lines):  # the last line is still being said, or held
            screen[-1][0].end = max(screen[-1][0].end, cue.end)
        if new := list(cue.lines[kept:]):
            said.append(_Said(cue.start, cue.end, new))
            screen += [(said[-1], at) for at in range(len(new))]
        last = cue
    return [Cue(s.start, s.end, tuple(s.lines)) for s in said], True


def _roll_up(cues: Sequence[Cue]) -> bool:
    pairs = list(pairwise(cues))
    carried = [_carried(*pair) for pair in pairs]
    held = any(kept == len(cue.lines) and cue.end - cue.start < HOLD for kept, (_, cue) in zip(carried, pairs))
    rolling = sum(kept > 0 for kept in carried)
    return held or (rolling >= 2 and rolling > len(pairs) / 2)


def _carried(before: Cue, cue: Cue) -> int:
    """How many of the last lines before are the first of this cue; the last of them may have grown by words.

    Where nothing is new, only at once after it: later the same words are said again.
    """
    for kept in range(min(len(before.lines), len(cue.lines)), 0, -1):
        *old, last = before.lines[-kept:]
        *now, this = cue.lines[:kept]
        if old == now and (this == last or this.startswith(f"{last} ")):
            return kept if cue.lines != before.lines[-kept:] or cue.start - before.end <= TOGETHER else 0
    return 0
