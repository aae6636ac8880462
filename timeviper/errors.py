"""The errors that a person is meant to read: what is wrong, where, what is allowed, what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one setting."""

    key: str
    """Dotted key, such as `optim.lr`."""
    value: object
    """What the key was set to."""
    message: str
    """What is wrong, what is allowed and what to do, as sentences."""
    origin: str = ""
    """Where the value was written: file:line, `command line`, `preset tiny`, `default`."""

    def __str__(self) -> str:
        where = f"  [{self.origin}]" if self.origin else ""
        return f"{self.key} = {show(self.value)}{where}\n      {self.message}"


class ConfigError(ValueError):
    """Every problem of a recipe, raised together."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = list(problems)
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        lines = "\n".join(f"  {i}. {problem}" for i, problem in enumerate(self.problems, 1))
        super().__init__(f"{source}: {count}\n{lines}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence with the nearest known name and a space before it; empty if none is near."""
    near = get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]}?" if near else ""


def one_of(names: Iterable[str]) -> str:
    """Names as a choice: "a, b or c"."""
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


def show(value: object) -> str:
    """A value as one would write it in a recipe, cut to one readable line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        text = f"[{', '.join(map(show, value))}]"
    elif isinstance(value, dict):
        text = f"{{{', '.join(f'{k}: {show(v)}' for k, v in value.items())}}}"
    else:
        text = str(value) if value != "" else '""'
    return text if len(text) <= 80 else f"{text[:77]}..."
