"""Options as sets write them: with their letters, inside the question, as lines of one text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from timeviper.benchmarking.item import LETTERS

MARK = re.compile(r"\s*(?:\(([A-Za-z])\)|([A-Za-z])[.):])\s*(.*)", re.DOTALL)


def unmarked(options: Sequence[str]) -> tuple[str, ...]:
    """Options without their letters, if these are A, B, C ... in order; else as they are."""
    found = [MARK.fullmatch(option) for option in options]
    letters = "".join((m[1] or m[2]).upper() if m else " " for m in found)
    if letters != LETTERS[: len(options)]:
        return tuple(option.strip() for option in options)
    return tuple(m[3].strip() for m in found if m)


def apart(text: str) -> tuple[str, tuple[str, ...]]:
    """Question and options of a text in which the options are its last lines, lettered from A; none if there are none.

    Lines that follow an option belong to it.
    """
    lines = text.strip().split("\n")
    found: list[int] = []
    for number, line in enumerate(lines):
        mark = MARK.fullmatch(line)
        if mark and (mark[1] or mark[2]).upper() == LETTERS[len(found)] and number:
            found.append(number)
    if len(found) < 2:
        return text.strip(), ()
    pieces = ["\n".join(lines[a:b]) for a, b in zip(found, [*found[1:], len(lines)])]
    return "\n".join(lines[: found[0]]).strip(), unmarked(pieces)


def lines_of(text: str) -> tuple[str, ...]:
    """Options that are the lines of one text, `A. ...`."""
    return unmarked([line for line in text.strip().split("\n") if line.strip()])
