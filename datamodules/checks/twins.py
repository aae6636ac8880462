"""Media that were there before, in any shard of a folder: the same bytes, or the same look.

All media are rows of one table in the order of shards and samples, some 100 bytes each; names are looked up where
there is something to say. Looks are gathered in a file, of which the search (`lookalikes.py`) maps what it needs.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from timeviper.datamodules.checks.defects import MENDED, PROBLEMS
from timeviper.datamodules.checks.kept import COLUMNS, Entry, Shelf
from timeviper.datamodules.checks.lookalikes import lookalikes
from timeviper.datamodules.checks.perceptual import LOOKS, SAME_CELL, SAME_RMS

Column = NDArray[Any]
DETAILS = {
    "duplicate": "{} has the same bytes as a file of {}",
    "stored-again": "{} has the same bytes as a file of {}, for other texts",
    "near-duplicate": "{} looks like a file of {} (they differ by {:.1f} of 255)",
}
NOTHING, *KINDS = "", *DETAILS


def is_usable(entry: Entry, accept: Collection[str]) -> bool:
    """Of what is not used there can be no second use."""
    return not any(kind in PROBLEMS and kind not in (*MENDED, *accept) for kind, _ in entry.findings)


@dataclass
class Twins:
    """Of each medium `[M]`: its place, what is said of it, and of which other one (-1: of none)."""

    shard: Column
    entry: Column
    kind: Column  # number of DETAILS, from 1 on
    other: Column  # row
    rms: Column

    def of_shard(self, number: int) -> Iterator[tuple[int, str, int, int, float]]:
        """Entry, kind, shard and entry of the other medium, difference; and where among its media, first."""
        first, end = np.searchsorted(self.shard, [number, number + 1])
        for row in first + np.flatnonzero(self.kind[first:end]):
            other = self.other[row]
            place = int(row - first)
            yield place, KINDS[self.kind[row] - 1], int(self.shard[other]), int(self.entry[other]), float(self.rms[row])

    @property
    def named(self) -> set[tuple[int, int]]:
        """Shards and entries of all the others."""
        others = self.other[self.kind > 0]
        return set(zip(self.shard[others].tolist(), self.entry[others].tolist()))


def find_twins(kept: Shelf, tars: list[Path], usable: list[NDArray[np.bool_]]) -> Twins:
    """Among the media of all shards. usable: of each shard, which entries are (see `is_usable`)."""
    table = table_of(kept, tars)
    before = np.cumsum([0, *map(len, usable)])  # entries of the shards before
    table["usable"] = (
        np.concatenate(usable)[before[table["shard"]] + table["entry"]] if before[-1] else np.zeros(0, bool)
    )
    folders = {folder: i for i, folder in enumerate(dict.fromkeys(tar.parent for tar in tars))}
    table["folder"] = np.array([folders[tar.parent] for tar in tars], np.int32)[table["shard"]]  # shards lie in several
    kind, other, again = _same_bytes(table)
    rms = np.zeros(len(kind), np.float32)
    for still in LOOKS:
        rows = np.flatnonzero((table["look"] >= 0) & (table["still"] == still) & ~again & table["usable"])
        if len(rows) < 2:
            continue
        with TemporaryDirectory(prefix=".looks-", dir=kept.place) as scratch:
            path = Path(scratch) / "looks"
            with path.open("wb") as file:
                write_looks(kept, tars, table, rows, still, file)
            looks = np.memmap(path, np.uint8, "r", shape=(len(rows), *LOOKS[still][1]))
            first, differ = lookalikes(looks, SAME_RMS, SAME_CELL)
            del looks
        found = np.flatnonzero(first >= 0)
        a, b = rows[found], rows[first[found]]
        apart = (table["shard"][a] != table["shard"][b]) | (table["entry"][a] != table["entry"][b])
        kind[a[apart]], other[a[apart]], rms[a] = 1 + KINDS.index("near-duplicate"), b[apart], differ[found]
    return Twins(table["shard"], table["entry"], kind, other, rms)


def table_of(kept: Shelf, tars: list[Path]) -> dict[str, Column]:
    """Columns of all media (`kept.COLUMNS`), and the number of the `shard` of each."""
    parts: dict[str, list[Column]] = {name: [] for name in (*COLUMNS, "shard")}
    for number, tar in enumerate(tars):
        columns = kept.columns(tar)
        columns["shard"] = np.full(len(columns["entry"]), number, np.int32)
        for name, column in columns.items():
            parts[name].append(column)
    return {name: np.concatenate(columns) for name, columns in parts.items()}


def _same_bytes(table: dict[str, Column]) -> tuple[Column, Column, Column]:
    """Kind, other row, and whether the bytes were there in an earlier sample."""
    count = len(table["entry"])
    kind, other, again = np.zeros(count, np.int8), np.full(count, -1), np.zeros(count, bool)
    used = np.flatnonzero(table["usable"])
    digests = np.ascontiguousarray(table["digest"]).view("V16").reshape(-1)[used]
    order = np.argsort(digests, kind="stable")
    rows = used[order]
    starts = np.flatnonzero(np.r_[True, digests[order][1:] != digests[order][:-1]]) if len(rows) else rows
    for first, end in zip(starts, [*starts[1:], len(rows)]):
        if end - first > 1:
            uses = _Uses()
            for row in rows[first:end].tolist():
                said, at = uses.add(row, table)
                again[row] = said is not None
                if said:
                    kind[row], other[row] = 1 + KINDS.index(said), at
    return kind, other, again


class _Firsts:
    """By what they have in common: the first row of it, and the first of another sample than that one's."""

    def __init__(self) -> None:
        self._rows: dict[Hashable, list[tuple[int, Hashable]]] = {}

    def add(self, what: Hashable, row: int, sample: Hashable) -> None:
        known = self._rows.setdefault(what, [])
        if not known or (len(known) == 1 and known[0][1] != sample):
            known.append((row, sample))

    def of(self, what: Hashable, sample: Hashable) -> int | None:
        """The first row of another sample than this one."""
        return next((row for row, theirs in self._rows.get(what, ()) if theirs != sample), None)

    def all(self) -> list[Hashable]:
        return [*self._rows]


class _Uses:
    """Of one file's bytes, by samples."""

    def __init__(self) -> None:
        self._any, self._at = _Firsts(), _Firsts()
        self._folders: dict[int, tuple[_Firsts, _Firsts]] = {}
        """By what is said of which part, and by part."""

    def add(self, row: int, table: dict[str, Column]) -> tuple[str | None, int]:
        """What there is to say of a use beside those before it, and which one of these; None: it is the first."""
        folder, shard = int(table["folder"][row]), int(table["shard"][row])
        sample, at = (shard, int(table["entry"][row])), (shard, int(table["offset"][row]))
        start, end = map(float, table["part"][row])
        said = ((start, end), table["said"][row].tobytes())
        mine = self._folders.setdefault(folder, (_Firsts(), _Firsts()))
        # The same said of the same part; or, in another folder, where held-out data may lie, anything of it.
        repeated = [mine[0].of(said, sample)]
        for there, (_, parts) in self._folders.items():
            if there != folder:
                repeated += [parts.of(p, sample) for p in parts.all() if start < p[1] and p[0] < end]  # pyright: ignore
        before, same_place = self._any.of(None, sample), self._at.of(at, sample)
        for firsts, what in ((self._any, None), (self._at, at), (mine[0], said), (mine[1], (start, end))):
            firsts.add(what, row, sample)
        if rows := [r for r in repeated if r is not None]:
            return "duplicate", min(rows)
        if before is None:
            return None, -1
        return ("stored-again", before) if same_place is None else ("", -1)


def write_looks(
    kept: Shelf, tars: list[Path], table: dict[str, Column], rows: Column, still: bool, file: IO[bytes]
) -> None:
    """The looks of some media, one after the other."""
    for number in np.unique(table["shard"][rows]):
        mine = rows[table["shard"][rows] == number]
        file.write(kept.looks(tars[number], still)[table["look"][mine]].tobytes())
