"""`timeviper explain`: settings for a person at a terminal of any width, or as plain lines for a file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.padding import Padding
from rich.text import Text

from timeviper.config.load import Row
from timeviper.config.load import explain as rows_of
from timeviper.console import console
from timeviper.errors import ConfigError, Problem, did_you_mean, show


def explain(recipe: Path, words: Sequence[str]) -> None:
    """Print the settings of a recipe, or of the parts of it that `words` without a = name.

    Raises ConfigError for overrides that do not fit, and a part that there is not.
    """
    parts = [word for word in words if "=" not in word]
    rows = rows_of(recipe, [word for word in words if "=" in word])
    known = {row.key[:end] for row in rows for end, c in enumerate(f"{row.key}.") if c == "."}
    for part in parts:
        if part not in known:
            raise ConfigError(str(recipe), [Problem(part, "", f"is no setting or part.{did_you_mean(part, known)}")])
    chosen = [row for row in rows if not parts or any(f"{row.key}.".startswith(f"{part}.") for part in parts)]
    if not sys.stdout.isatty():
        for row in chosen:
            print(f"{row.key} = {show(row.value)}  # {_said(row)}{_origin(row, ' [{}]')}")
        return
    out = console()
    for row in chosen:
        style = "dim" if row.origin == "default" else "bold"
        out.print(Text.assemble((f"{row.key} = {show(row.value)}", style), (_origin(row, "  {}"), "cyan")))
        if row.doc:
            out.print(Padding(Text(_said(row), "dim"), (0, 0, 0, 4)))


def _origin(row: Row, form: str) -> str:
    return "" if row.origin == "default" else form.format(row.origin)


def _said(row: Row) -> str:
    return " ".join(row.doc.split())
