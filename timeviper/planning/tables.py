"""Figures as Markdown tables that no terminal cuts, so that they can go into a document as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

NAMES = 24  # characters that names of rows get at least before columns move into a table of their own
WALLS = 3  # characters between two columns


def print_figures(out: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A row is a name, which goes on in the next line where it is long, and a figure for each of `columns[1:]`.

    Figures are never cut or broken, names of columns only at spaces, and only where `out` is too narrow for them. If it
    is too narrow for all columns, they stand in several tables below each other.
    """
    parts = [*zip(*rows)]
    names = [columns[0], *(parts[0] if rows else ())]
    wide = [max(map(len, [name, *cells])) for name, cells in zip(columns[1:], parts[1:])]
    least = [max(map(len, [*name.split(), *cells])) for name, cells in zip(columns[1:], parts[1:])]
    longest = max(map(len, names))
    room = out.width - 1 - WALLS
    whole = longest + sum(wide) + WALLS * len(wide) <= room
    width = wide if whole else least
    word = max((len(word) for name in names for word in name.split()), default=1)
    for group in _groups(width, room - max(word, min(longest, NAMES))):
        taken = sum(width[i] + WALLS for i in group)
        made = Table(box=box.MARKDOWN)
        made.add_column(Text(columns[0]), width=min(longest, max(room - taken, word)))
        for i in group:
            made.add_column(Text(columns[1 + i]), width=width[i], justify="right", overflow="fold")
        for row in rows:
            made.add_row(Text(row[0]), *(Text(row[1 + i]) for i in group))
        out.print(made)


def _groups(width: Sequence[int], room: int) -> Iterator[list[int]]:
    """The columns cut into as few groups as fit into `room` each, of one size but for the last."""
    for count in range(1, len(width) + 1):
        size = -(-len(width) // count)
        groups = [[*range(i, min(i + size, len(width)))] for i in range(0, len(width), size)]
        if size == 1 or all(sum(width[i] + WALLS for i in group) <= room for group in groups):
            yield from groups
            return


def say(out: Console, *lines: str) -> None:
    """Text as it is: broken between words on a terminal, a line each where there is none."""
    for line in lines:
        out.print(Text(line), soft_wrap=not out.is_terminal)
