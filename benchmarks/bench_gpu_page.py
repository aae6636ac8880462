"""What `bench_gpu.py` keeps and writes: cases and their parts, the record of a run, and the page made from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What all cases run with."""

    device: str = "cuda"
    divide: int = 1
    """Lengths and widths are divided by it: above 1 a trial of the script, not a measurement."""


@dataclass(frozen=True)
class Case:
    """One thing to measure; its rows are kept as they come."""

    key: str
    """Unique in its part."""
    rows: Callable[[], Iterator[Row]]


@dataclass(frozen=True)
class Part:
    """Cases of one table, which run in one process as long as that lives."""

    letter: str
    title: str
    about: str
    seconds: int
    """That all its cases together may take."""
    columns: dict[str, str]
    """Format of each column's numbers (text is taken as it is); `note` is added."""
    cases: Callable[[Setting], list[Case]]


@dataclass
class Found:
    """What is known of one case."""

    rows: list[Row] = field(default_factory=list)
    state: str = ""
    """started, done or failed; empty: never begun."""
    why: str = ""


class Records:
    """One line of JSON for all that happens, added at once: what is measured stays, whoever is killed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[dict[str, Any]]:
        """All records; a last line that was cut by a kill is left out."""
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return found

    def add(self, **record: Any) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a") as file:
            file.write("\n" * (torn and self.path.stat().st_size > 0) + json.dumps(record) + "\n")

    def begin(self, setting: Setting, again: bool) -> None:
        """Start anew, or go on where the setting is the one that the records are of. Raises ValueError where not."""
        lines = [] if again else self.lines()
        if not lines:
            self.path.unlink(missing_ok=True)
            self.add(setting=asdict(setting))
        elif lines[0].get("setting") != asdict(setting):
            raise ValueError(
                f"{self.path} holds results of {lines[0].get('setting')}, this run is {asdict(setting)}: "
                "start anew with --again, or name another --out"
            )

    def found(self, part: str) -> dict[str, Found]:
        """The cases of a part; of one that ran several times, the last time."""
        cases: dict[str, Found] = {}
        for record in self.lines():
            if record.get("part") != part or "case" not in record:
                continue
            if record["state"] == "started":
                cases[record["case"]] = Found(state="started", why="it ended without a word")
            elif record["state"] == "row":
                cases[record["case"]].rows.append(record["row"])
            else:
                found = cases.setdefault(record["case"], Found())
                found.state, found.why = record["state"], record.get("why", "")
        return cases

    def stopped(self, part: str) -> str:
        """Why the last start of a part did not come to all of its cases."""
        whys = [r["why"] for r in self.lines() if r.get("part") == part and r.get("state") == "stopped"]
        return whys[-1] if whys else "it was not asked for"

    def seconds(self, part: str) -> float:
        return sum(r["seconds"] for r in self.lines() if r.get("part") == part and r.get("state") == "ended")


def cell(value: Any, form: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value.replace("|", "/").replace("\n", " ")
    return format(value, form)


def table(columns: Mapping[str, str], rows: Sequence[Row]) -> list[str]:
    """Markdown; columns that no row has a value in are left out."""
    if strange := {name for row in rows for name in row} - {*columns, "note"}:
        raise KeyError(f"columns that the part does not name: {sorted(strange)}")
    used = [
        (name, form)
        for name, form in (*columns.items(), ("note", ""))
        if any(r.get(name) not in (None, "") for r in rows)
    ]
    lines = ["| " + " | ".join(name for name, _ in used) + " |", "|" + "---|" * len(used)]
    return lines + ["| " + " | ".join(cell(row.get(name), form) for name, form in used) + " |" for row in rows]


def section(part: Part, setting: Setting, records: Records) -> tuple[list[str], list[str]]:
    """The lines of a part, and what of it was not run and why."""
    found, rows, absent = records.found(part.letter), [], []
    first = next(iter(part.columns))
    missing: list[str] = []
    for case in part.cases(setting):
        one = found.get(case.key, Found())
        rows += one.rows
        if one.state in ("failed", "started"):
            rows.append({first: case.key, "note": f"**failed**: {one.why}"})
            absent.append(f"{part.title}, {case.key}: {one.why}")
        elif not one.state:
            missing.append(case.key)
    if missing:
        which = "all" if len(missing) == len(part.cases(setting)) else "; ".join(missing)
        absent.append(f"{part.title}, {which}: not run, {records.stopped(part.letter)}")
    lines = [f"## {part.title}", "", part.about, ""]
    lines += [*(table(part.columns, rows) if rows else ["Not run."]), ""]
    if rows:
        lines += [f"Took {records.seconds(part.letter):.0f} s.", ""]
    return lines, absent


def page(
    parts: Sequence[Part], setting: Setting, records: Records, head: Sequence[str], lacking: Sequence[str] = ()
) -> str:
    """The whole page: head, what was not run (`lacking`: for want of a package), a section a part."""
    sections = [section(part, setting, records) for part in parts]
    absent = [f"- {line}" for line in (*lacking, *(line for _, lines in sections for line in lines))]
    lines = [*head, "", "## Not run", "", *(absent or ["Nothing: every case has its figures."]), ""]
    return "\n".join([*lines, *(line for lines, _ in sections for line in lines)])
