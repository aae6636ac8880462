"""Intervals of time as text: how "when" is asked, written and read. Seconds, as a player counts them."""

from __future__ import annotations

import re

from timeviper.datamodules.shards.schema import SchemaError

WHEN = "when"  # the question type whose answer is an interval


_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def parse_interval(text: str) -> tuple[float, float] | None:
    """The last two numbers of a text as (start, end) in seconds; None unless start < end."""
    numbers = [float(n) for n in _NUMBER.findall(text)][-2:]
    return (numbers[0], numbers[1]) if len(numbers) == 2 and numbers[0] < numbers[1] else None


def span(start: float, end: float) -> str:
    """ "from 2.0 to 5.0 seconds", with as many decimals as keep the two apart (at most three)."""
    return f"from {bounds(start, end)}"


def bounds(start: float, end: float) -> str:
    """The same without its "from". Behind a name the first number then follows at once, so that the last word of the
    name asks for it by itself; a word between them must carry the name on first, and some tiny trainings never learned
    whose times they listed."""
    for decimals in (1, 2, 3):
        first, last = f"{start:.{decimals}f}", f"{end:.{decimals}f}"
        if float(first) < float(last):
            return f"{first} to {last} seconds"
    raise SchemaError(f"a segment from {start} to {end} is shorter than a millisecond", "segments")
