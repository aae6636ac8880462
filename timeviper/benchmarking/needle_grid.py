"""Needles by length and depth (or type), and samples that count only if every rotation of them is right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Row = TypeVar("Row", bound=Hashable)
Column = TypeVar("Column", bound=Hashable)


@dataclass(frozen=True)
class Grid:
    """Shares of right answers, 0 to 1."""

    rows: tuple[Hashable, ...]
    """Such as lengths in frames."""
    columns: tuple[Hashable, ...]
    """Such as depths, 0 to 1, or types."""
    shares: tuple[tuple[float | None, ...], ...]
    """`[rows][columns]`; None where nothing was asked."""
    counts: tuple[tuple[int, ...], ...]

    @property
    def mean(self) -> float:
        """Of the cells, as maps of needles are summed up."""
        cells = [value for row in self.shares for value in row if value is not None]
        return sum(cells) / len(cells) if cells else 0.0


def grid(answers: Iterable[tuple[Row, Column, float]]) -> Grid:
    """(row, column, how right) of each answer; rows and columns sorted."""
    cells: dict[tuple[Hashable, Hashable], list[float]] = defaultdict(list)
    for row, column, right in answers:
        cells[row, column].append(right)
    rows, columns = _sorted({r for r, _ in cells}), _sorted({c for _, c in cells})
    at = [[cells.get((r, c), []) for c in columns] for r in rows]
    shares = tuple(tuple(sum(cell) / len(cell) if cell else None for cell in row) for row in at)
    return Grid(rows, columns, shares, tuple(tuple(len(cell) for cell in row) for row in at))


def all_rotations(rights: Iterable[tuple[str, bool]], rotations: int = 4) -> dict[str, bool]:
    """(sample, right) of each rotation to whether all of them are right, as VNBench counts; a sample of which fewer
    rotations were answered is not."""
    found: dict[str, list[bool]] = defaultdict(list)
    for sample, right in rights:
        found[sample].append(right)
    return {sample: len(values) >= rotations and all(values) for sample, values in found.items()}


def matched_count(said: Sequence[object], true: Sequence[object]) -> float:
    """MM-NIAH's of counting: places that agree, of those of the truth."""
    return sum(a == b for a, b in zip(said, true)) / len(true) if true else float(not said)


def needle_frames(depth: float, frames: int) -> int:
    """Where V-NIAH inserts a needle among `frames` frames."""
    return int(depth * frames)


def _sorted(values: set) -> tuple:
    try:
        return tuple(sorted(values))
    except TypeError:  # of several kinds
        return tuple(sorted(values, key=str))
