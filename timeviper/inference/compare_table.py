"""A comparison for people: what was compared, then the table, then what it means."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from timeviper.console import console
from timeviper.console import table as narrow
from timeviper.errors import show
from timeviper.inference.compare import OVERALL, Comparison

ABSENT = "not noted"  # in exports of earlier versions
METHOD = """\
Interval: {} of whole videos, because the questions of one are not independent.
p: McNemar's exact test, which takes them as independent. Of 20 rows without a true difference,
one misses zero by chance.
All of it is about these two checkpoints on videos of this kind; another seed of the same recipe is another one."""


def print_comparison(comparison: Comparison) -> None:
    out = console()
    out.print(_lineages(comparison))
    out.print(_recipes(comparison))
    for line in _left_out(comparison):
        out.print(Text(line, "bold red"))
    out.print(_scores(comparison))
    for line in (*comparison.verdict, *comparison.notes):
        out.print(Text(line, "bold"))
    shape = comparison.interval
    resampled = f"{100 * shape.level:.0f} % of {shape.resamples:,} bootstrap resamples (seed {shape.seed})"
    out.print(Text(METHOD.format(resampled), "dim"))


def _lineages(comparison: Comparison) -> Table:
    """Each run and its ancestors, newest first."""
    table = narrow("", "run", "stage", "step", "seed", "recipe", "weights", "data", title="what is compared")
    for name, side in (("A", comparison.a), ("B", comparison.b)):
        for age, stage in enumerate(side.lineage):
            data = stage.get("data")
            cells = (
                "" if age else name,
                "  from" if age else side.run,
                stage["name"],
                str(stage["step"]),
                str(stage["seed"]),
                (stage.get("recipe") or ABSENT)[:9],
                (stage.get("weights") or ABSENT)[:9],
                ABSENT if data is None else "\n".join(f"{k} {v[:8]}" for k, v in data.items()),
            )
            table.add_row(*map(Text, cells), end_section=age == len(side.lineage) - 1)
    return table


def _recipes(comparison: Comparison) -> Table | Text:
    if not comparison.recipes:
        return Text("The recipes are the same, setting by setting.")
    table = narrow("setting", "A", "B", title="where the recipes differ")
    for key, (a, b) in comparison.recipes.items():
        table.add_row(*map(Text, (key, show(a), show(b))))
    return table


def _left_out(comparison: Comparison) -> list[str]:
    """Loud, because a table over part of the questions looks like one over all."""
    lines, left_out = [], comparison.left_out
    n = comparison.rows[0].found.n
    for side, other, counts in (("A", "B", left_out.a), ("B", "A", left_out.b)):
        if counts:
            listed = ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items()))
            total = sum(counts.values())
            lines.append(
                f"LEFT OUT: {total} of the {total + n} questions that {side} answered are not among those of "
                f"{other} ({listed})"
            )
    if left_out.other_bytes:
        lines.append(f"of these, {left_out.other_bytes} have the same name on both sides, but other contents")
    if comparison.other_prompts:
        lines.append(f"{comparison.other_prompts} of {n} prompts differ in words or frame times (data.frames, chat)")
    return lines


def _scores(comparison: Comparison) -> Table:
    table = narrow("question", title="the same held-out questions; right in one run alone: only A, only B")
    table.padding = 0  # ten columns: what stands between them is the space that the box has
    level = f"{100 * comparison.interval.level:.0f} % interval"
    for name in ("n", "videos", "A", "B", "B - A", level, "only\nA", "only\nB", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in comparison.rows:
        found, flips = row.found, row.flips
        table.add_row(
            Text(row.question if flips else f"{row.question}: mean IoU"),
            str(found.n),
            str(found.clusters),
            f"{found.a:.3f}",
            f"{found.b:.3f}",
            f"{found.difference:+.3f}",
            f"{found.low:+.3f} {found.high:+.3f}",
            *((str(flips.only_a), str(flips.only_b), f"{flips.p:.3g}") if flips else ("", "", "")),
            end_section=row.question == OVERALL,
        )
    return table
