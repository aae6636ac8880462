"""The part of a video that an entry is about, as other people write it: start and end, in many words and forms."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from timeviper.datamodules.formats.fields import plain
from timeviper.datamodules.shards.schema import MAX_NUMBER, SchemaError

# Plain names (`fields.plain`). A pair, the list of both, and what is in other units than seconds.
PAIRS = tuple(
    (f"{before}{start}{after}", f"{before}{end}{after}")
    for start, end in (("start", "end"), ("begin", "end"), ("starttime", "endtime"), ("timestart", "timeend"))
    for before in ("", "clip", "video", "segment", "t")
    for after in ("", "s", "sec", "secs", "second", "seconds", "timestamp", "time")
)
BOTH = ("timestamp", "timestamps", "time", "times", "timespan", "timerange", "span", "clip", "segment", "interval")
BOTH += ("bounds", "clipbounds", "videoclip", "range", "startend")
FRAMES = ("startframe", "endframe", "beginframe", "framestart", "frameend", "clipstartframe", "clipendframe")
CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d+(?:[.,]\d+)?)")
PLAIN = re.compile(r"(\d+(?:[.,]\d+)?)\s*(?:s|sec|secs|seconds?)?", re.IGNORECASE)
NOTHING = ("", "nan", "null", "none", "n/a", "na", "<na>", "\\n")  # in a cell of a table: that there is no such time
UNIT = {"ms": 1e-3, "millis": 1e-3, "milliseconds": 1e-3}

Bounds = list[tuple[float, float | None]]  # seconds; of one video, or of each of several


def take_bounds(fields: dict[str, Any]) -> tuple[Bounds, str]:
    """Bounds that an entry states, taken out of it, and the names that they had there; without any, an empty list.

    SchemaError if they cannot be understood: an entry about a part must not become one about the whole.
    """
    names = {plain(name): name for name in fields if not _is_nothing(fields[name])}
    if frames := [names[name] for name in FRAMES if name in names]:
        raise SchemaError(f"has {frames[0]}; a part is told in seconds, start and end (frame / frame rate)", "segments")
    found: list[tuple[str, str | None, str | None, float]] = []
    for first, last in PAIRS:
        for ending, unit in (("", 1.0), *UNIT.items()):
            start, end = names.get(first + ending), names.get(last + ending)
            if start is not None or end is not None:
                found.append((" and ".join(n for n in (start, end) if n), start, end, unit))
    named = [{start, end} - {None} for _, start, end, _ in found]  # "end" belongs to "start" and to "begin"
    found = list({e[0]: e for e, mine in zip(found, named) if not any(mine < other for other in named)}.values())
    both = [names[name] for name in BOTH if name in names and _is_pair(fields[names[name]])]
    if len(found) + len(both) > 1:
        told = ", ".join([*(name for name, *_ in found), *both])
        raise SchemaError(f"tells the part of its video in several ways ({told}); keep one of them", "segments")
    if both:
        start, end = _pair(fields.pop(both[0]))
        return _bounds(start, end, 1.0, both[0]), both[0]
    if not found:
        return [], ""
    name, start, end, unit = found[0]
    if end is None and (length := names.get("duration")) is not None:
        raise SchemaError(f"has {start} and {length}, but no end; write start and end of the part", "segments")
    return _bounds(fields.pop(start) if start else 0.0, fields.pop(end) if end else None, unit, name), name


def _bounds(start: Any, end: Any, unit: float, name: str) -> Bounds:
    starts, ends = (start if isinstance(start, list) else [start]), (end if isinstance(end, list) else [end])
    if isinstance(start, list) != isinstance(end, list) or len(starts) != len(ends):
        raise SchemaError(f"{name} must be two numbers, or two lists of one length", "segments")
    found: Bounds = [
        (_seconds(a, name) * unit, None if b is None else _seconds(b, name) * unit) for a, b in zip(starts, ends)
    ]
    for a, b in found:
        if b is not None and a >= b:
            raise SchemaError(
                f"its part of the video ({name}) runs from {a:g} to {b:g} s; needs start < end", "segments"
            )
    return found


def _is_nothing(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lower() in NOTHING


def _is_pair(value: Any) -> bool:
    try:
        return bool(_pair(value))
    except SchemaError:
        return False


def _pair(value: Any) -> list[Any]:
    """[start, end], also as text: "[0, 4]", "0-4", "00:01 - 00:04"."""
    if isinstance(value, str) and value.strip().startswith(("[", "(")):
        try:
            value = json.loads(f"[{value.strip()[1:-1]}]")
        except ValueError:
            value = value.strip()[1:-1].split(",")
    elif isinstance(value, str):
        value = re.split(r"\s*(?:-->|-|–|,|~|\bto\b)\s*", value.strip())
    if not isinstance(value, list) or len(value) != 2 or isinstance(value[0], list):
        raise SchemaError(f"must be [start, end], got {value!r}", "segments")
    return [_seconds(value[0], "start"), _seconds(value[1], "end")]


def _seconds(value: Any, name: str) -> float:
    """A number, or text with one: 7, "7.5", "7 s", "1:02:03.5", "02:03,5"."""
    found = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        found = float(value)
    elif isinstance(value, str) and (clock := CLOCK.fullmatch(value.strip())):
        hours, minutes, seconds = clock.groups()
        found = int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds.replace(",", "."))
    elif isinstance(value, str) and (number := PLAIN.fullmatch(value.strip())):
        found = float(number[1].replace(",", "."))
    if not 0 <= found < MAX_NUMBER:
        raise SchemaError(f"{name} is {value!r}; it must be seconds from 0 on, or h:mm:ss", "segments")
    return found
