"""Two capsules beside each other on a terminal."""

from __future__ import annotations

from rich.text import Text

from timeviper.benchmarking.compare_capsules import CapsuleComparison, Compared
from timeviper.console import console, table


def print_capsules(made: CapsuleComparison) -> None:
    out = console()
    out.print(Text(f"A  {made.a}\nB  {made.b}"), soft_wrap=True)
    shown = table("score", "rule", title=f"{made.set}: B against A on the same questions, frames and prompts")
    for name in ("n", "A", "B", "B - A", "95 %", "only A", "only B", "p"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in made.rows:
        flips = ("", "", "") if row.p is None else (str(row.only_a), str(row.only_b), f"{row.p:.3g}")
        ends = f"{row.low:+.2f} {row.high:+.2f}"
        shown.add_row(
            row.measure,
            row.rule,
            f"{row.n:,}",
            f"{row.a:.2f}",
            f"{row.b:.2f}",
            f"{row.difference:+.2f}",
            ends,
            *flips,
        )
    out.print(shown)
    for row in made.rows[:1]:
        out.print(Text(_verdict(row)), soft_wrap=True)
    for note in made.notes:
        out.print(Text(f"note: {note}"), soft_wrap=True)


def _verdict(row: Compared) -> str:
    if row.low > 0 or row.high < 0:
        better, ends = ("B", (row.low, row.high)) if row.low > 0 else ("A", (-row.high, -row.low))
        return f"{better} is better by {ends[0]:.1f} to {ends[1]:.1f} points in {row.measure}."
    most = [max(0.0, end) for end in (-row.low, row.high)]
    return f"No difference is shown in {row.measure}: A may be up to {most[0]:.1f} points better, or B {most[1]:.1f}."
