"""The report of `compare` for people: what was compared, then the table, then what it means."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from timeviper.console import console
from timeviper.errors import show

ABSENT = "not noted"  # in exports of earlier versions
METHOD = """\
Interval: {} of whole videos, because the questions of one are not independent.
p: McNemar's exact test, which takes them as independent. Of 20 rows without a true difference,
one misses zero by chance.
All of it is about these two checkpoints on videos of this kind; another seed of the same recipe is another one."""


def print_comparison(report: dict[str, Any]) -> None:
    out = console()
    out.print(_lineages(report))
    out.print(_recipes(report))
    for line in _left_out(report):
        out.print(Text(line, "bold red"))
    out.print(_scores(report))
    for line in (*report["verdict"], *report["notes"]):
        out.print(Text(line, "bold"))
    shape = report["interval"]
    resampled = f"{100 * shape['level']:.0f} % of {shape['resamples']:,} bootstrap resamples (seed {shape['seed']})"
    out.print(Text(METHOD.format(resampled), "dim"))


def _lineages(report: dict[str, Any]) -> Table:
    """Each run and its ancestors, newest first."""
    table = Table("", "run", "stage", "step", "seed", "recipe", "weights", "data", title="what is compared")
    for side in ("a", "b"):
        entry = report[side]
        for age, stage in enumerate(entry["lineage"]):
            last = age == len(entry["lineage"]) - 1
            name = entry["run"] if not age else "  from"
            data = stage.get("data")
            cells = (
                "" if age else side.upper(),
                name,
                stage["name"],
                str(stage["step"]),
                str(stage["seed"]),
                stage.get("recipe") or ABSENT,
                stage.get("weights") or ABSENT,
                ABSENT if data is None else ", ".join(f"{k} {v[:8]}" for k, v in data.items()),
            )
            table.add_row(*map(Text, cells), end_section=last)
    return table


def _recipes(report: dict[str, Any]) -> Table | Text:
    if not report["recipes"]:
        return Text("The recipes are the same, setting by setting.")
    table = Table("setting", "A", "B", title="where the recipes differ")
    for key, (a, b) in report["recipes"].items():
        table.add_row(*map(Text, (key, show(a), show(b))))
    return table


def _left_out(report: dict[str, Any]) -> list[str]:
    """Loud, because a table over part of the questions looks like one over all."""
    lines, left_out = [], report["left_out"]
    n = report["rows"][0]["n"]
    for side, other in (("a", "b"), ("b", "a")):
        if counts := left_out[side]:
            listed = ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items()))
            total = sum(counts.values())
            lines.append(
                f"LEFT OUT: {total} of the {total + n} questions that {side.upper()} answered are not among those of "
                f"{other.upper()} ({listed})"
            )
    if left_out["other_bytes"]:
        lines.append(f"of these, {left_out['other_bytes']} have the same name on both sides, but other contents")
    if report["other_prompts"]:
        lines.append(f"{report['other_prompts']} of {n} prompts differ in words or frame times (data.frames, chat)")
    return lines


def _scores(report: dict[str, Any]) -> Table:
    table = Table(title="the same held-out questions")
    table.add_column("question")
    level = f"{100 * report['interval']['level']:.0f} % interval"
    for name in ("n", "videos", "A", "B", "B - A", level, "only A right", "only B right", "p"):
        table.add_column(name, justify="right")
    for row in report["rows"]:
        timed = row["score"] == "iou"
        flips = ("", "", "") if timed else (str(row["only_a"]), str(row["only_b"]), f"{row['p']:.3g}")
        table.add_row(
            Text(f"{row['question']}: mean IoU" if timed else row["question"]),
            str(row["n"]),
            str(row["clusters"]),
            f"{row['a']:.3f}",
            f"{row['b']:.3f}",
            f"{row['difference']:+.3f}",
            f"{row['low']:+.3f} to {row['high']:+.3f}",
            *flips,
            end_section=row["question"] == "overall",
        )
    return table
