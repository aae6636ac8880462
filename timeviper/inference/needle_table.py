"""Maps of needles on a terminal of 80 columns: a length a line, ten depths, then all of them with an interval."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from rich.table import Table
from rich.text import Text

from timeviper.console import console, table
from timeviper.inference.needle_map import Cell, Comparison, Map, Row, Score

COLUMNS = 10  # of depths at most; of more each column is the mean of several
NOTHING = "-"


def print_maps(comparison: Comparison) -> None:
    out = console()
    for one in comparison.maps:
        out.print(_table(one))
    if comparison.changes:
        out.print(_changes(comparison))
    for note in comparison.notes:
        out.print(Text(f"note: {note}"), soft_wrap=True)


def _table(one: Map) -> Table:
    cells = one.rows[0].cells
    columns = min(len(cells), COLUMNS)
    made = table("frames", title=f"{one.title}: % right by depth (0: the start)")
    made.padding = 0
    for column in range(columns):
        made.add_column(f" {100 * cells[column * len(cells) // columns].depth[0]:.0f}", justify="right", no_wrap=True)
    for name in ("  all", "  95 %", "  mIoU"):
        made.add_column(name, justify="right", no_wrap=True)
    for row in one.rows:
        made.add_row(f"{row.frames:,}", *_depths(row, columns), *_all(row))
    return made


def _depths(row: Row, columns: int) -> list[str]:
    n = len(row.cells)
    edges = [column * n // columns for column in range(columns + 1)]
    return [f" {_mean(row.cells[a:b])}" for a, b in pairwise(edges)]


def _mean(cells: Sequence[Cell]) -> str:
    asked = [(cell.accuracy.value, cell.questions) for cell in cells if cell.accuracy]
    total = sum(n for _, n in asked)
    return f"{100 * sum(value * n for value, n in asked) / total:.0f}" if total else NOTHING


def _all(row: Row) -> list[str]:
    if row.accuracy is None:
        return [NOTHING, "", ""]
    found = row.accuracy
    share, interval = f"{100 * found.value:.0f}", f"  {100 * found.low:.0f}-{100 * found.high:.0f}"
    return [share, interval, NOTHING if row.miou is None else f"{row.miou.value:.2f}"]


def _changes(comparison: Comparison) -> Table:
    first = comparison.maps[0]
    made = table("map", "frames", title=f"points more than {first.title}, with 95 % intervals")
    for name in ("% right", "100 x mIoU"):
        made.add_column(name, justify="right", no_wrap=True)
    found = {(c.map, c.frames, c.score): c.difference for c in comparison.changes}
    for number, one in enumerate(comparison.maps[1:], 1):
        for i, row in enumerate(one.rows):
            scores = [_change(found.get((number, row.frames, score))) for score in ("accuracy", "miou")]
            made.add_row("" if i else one.title, f"{row.frames:,}", *scores, end_section=i == len(one.rows) - 1)
    return made


def _change(found: Score | None) -> str:
    if found is None:
        return NOTHING
    return f"{100 * found.value:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
