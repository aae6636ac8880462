"""Times and sizes as people write them: 37:00, 1:02:03.5, 90 seconds; 800MB, 2 GiB."""

from __future__ import annotations

import re
from math import isfinite

from timeviper.errors import ConfigError, Problem

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
# Numbers that an answer calls seconds; of "from 2.0 to 5.0 seconds" both.
_SECONDS = re.compile(r"(\d+(?:\.\d+)?)(?:\s*(?:-|–|to|and)\s*(\d+(?:\.\d+)?))?\s*(?:s|sec|secs|second|seconds)\b")


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any: 0:05, 37:00, 1:02:03; fractions are cut."""
    whole = int(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def clocks_in(text: str) -> str:
    """The times that an answer names in seconds, as a clock shows them: "0:02 to 0:05"; empty if it names none."""
    spans = (" to ".join(clock(float(part)) for part in found if part) for found in _SECONDS.findall(text))
    return ", ".join(spans)


def read_clock(text: str, option: str) -> float:
    """Seconds of `37:00`, `1:02:03`, `90` or `90s`. ConfigError for anything else."""
    parts = text.strip().removesuffix("s").split(":")
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = []
    fine = 1 <= len(values) <= 3 and all(isfinite(v) and v >= 0 for v in values)
    if not fine or any(v >= 60 for v in values[1:]):
        problem = Problem(option, text, "must be a time such as 37:00, 1:02:03 or 90 (seconds).")
        raise ConfigError("a time", [problem])
    seconds = 0.0
    for value in values:
        seconds = seconds * 60 + value
    return seconds


def read_size(text: str, option: str) -> int:
    """Bytes of `800MB`, `2GiB` or `1000000`. ConfigError for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B?)\s*", text, re.IGNORECASE)
    unit = "" if found is None else found[2].upper()
    unit = unit if unit in UNITS else f"{unit}B"
    if found is None or unit not in {**UNITS, "B": 1} or float(found[1]) == 0:
        raise ConfigError("a size", [Problem(option, text, "must be a size above 0 such as 800MB, 2GB or 1.5GiB.")])
    return int(float(found[1]) * UNITS.get(unit, 1))
