"""`key=value` words of an analysis: its own settings, and those of the recipe."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence

from timeviper.errors import ConfigError, Problem, did_you_mean, one_of

UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


class Words:
    """Settings of a verb by name, as typed; collects what is wrong with them, to be said together."""

    def __init__(self, verb: str, words: Iterable[str], known: Collection[str] = ()) -> None:
        """known: the verb's own settings. What has a dot and is none of them is a setting of the recipe."""
        has = f", which has {', '.join(known)}" if known else ""
        self.verb, self.problems = verb, list[Problem]()
        self.own: dict[str, str] = {}
        self.overrides: list[str] = []
        for word in words:
            key, equals, value = word.partition("=")
            if not equals or not key or key.startswith("-"):
                of = f"; those of {verb}: {', '.join(known)}" if known else ", such as data.frames.max_frames=512"
                self.wrong(word, "", f"a setting is key=value{of}.")
            elif key in known:
                self.own[key] = value
            elif "." in key and key.partition(".")[0] not in {k.partition(".")[0] for k in known if "." in k}:
                self.overrides.append(word)
            else:
                near = did_you_mean(key, known)
                self.wrong(key, value, f"is no setting of {verb}{has}, and those of the run have a dot in them.{near}")

    def wrong(self, key: str, value: object, message: str) -> None:
        self.problems.append(Problem(key, value, message, "command line"))

    def names(self, key: str, allowed: Collection[str], default: Sequence[str]) -> tuple[str, ...]:
        """A list of names, each once."""
        if key not in self.own:
            return tuple(default)
        found = [name.strip() for name in self.own[key].split(",") if name.strip()]
        for name in found:
            if name not in allowed:
                self.wrong(key, self.own[key], f"has no {name}: write {one_of(allowed)}.{did_you_mean(name, allowed)}")
        if not found:
            self.wrong(key, self.own[key], f"is empty: write {one_of(allowed)}, with commas between several.")
        return tuple(name for name in dict.fromkeys(found) if name in allowed)

    def numbers(self, key: str, fine: Callable[[float], bool], allowed: str, default: Sequence[float]) -> list[float]:
        """A list of numbers, each once, in the order given; allowed: in words."""
        if key not in self.own:
            return list(default)
        found = [_number(word) for word in self.own[key].split(",") if word.strip()]
        if not found or not all(map(fine, found)):
            self.wrong(key, self.own[key], f"must be {allowed}, with commas between several.")
        return list(dict.fromkeys(found))

    def number(self, key: str, fine: Callable[[float], bool], allowed: str, default: float) -> float:
        if key not in self.own:
            return default
        if not fine(found := _number(self.own[key])):
            self.wrong(key, self.own[key], f"must be {allowed}.")
        return found

    def seconds(self, key: str, default: float) -> float:
        """A time above 0: `600`, `600s`, `10m` or `2h`."""
        if key not in self.own:
            return default
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", self.own[key].strip().lower())
        if found and found[2] in UNITS and (seconds := float(found[1]) * UNITS[found[2]]) > 0:
            return seconds
        self.wrong(key, self.own[key], "must be a time above 0, such as 600s, 10m or 2h.")
        return default

    def blocks(self, key: str, layout: str) -> list[int] | None:
        """Blocks of a layout where tokens meet; None: not said."""
        if key not in self.own:
            return None
        there = [i for i, letter in enumerate(layout) if letter in "M*"]
        found = [int(v) if (v := _number(word)) == v // 1 else -1 for word in self.own[key].split(",") if word.strip()]
        if not found or not set(found) <= set(there):
            message = f"names blocks of {layout} where tokens meet, with commas between: {', '.join(map(str, there))}."
            self.wrong(key, self.own[key], message)
        return sorted(set(found) & set(there))

    def check(self) -> None:
        """Raises ConfigError with everything that is wrong."""
        if self.problems:
            raise ConfigError(self.verb, self.problems)


def whole(low: int) -> Callable[[float], bool]:
    """Whether a number is whole and at least `low`."""
    return lambda v: math.isfinite(v) and v >= low and v == int(v)


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan
