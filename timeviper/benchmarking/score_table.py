"""A rescored capsule on a terminal: the official number first, every other rule below it, then what explains it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.table import Table
from rich.text import Text

from timeviper.benchmarking.scores import Rescored, Score
from timeviper.console import console, table

UNREAD = 10  # replies that are shown; `--json` has all
LABELS = 14  # values of a label that are shown


def print_scores(made: Rescored) -> None:
    out = console()
    for line in headlines(made):
        out.print(Text(line), soft_wrap=True)
    out.print(scores_table(made.scores, f"{made.title}: every rule on the same replies (* official)"))
    if made.answered:
        out.print(scores_table(made.answered, "only what has a reply"))
    if made.baselines:
        out.print(scores_table(made.baselines, "baselines, under the official rule"))
    for name, values in made.by_label.items():
        if len(values) <= LABELS:
            parts = [f"{value} {score:.1f} ({n:,})" for value, (score, n) in values.items()]
            out.print(Text(f"by {name}: {', '.join(parts)}"), soft_wrap=True)
    if made.letters:
        parts = [f"{letter or 'none'} {said:,}/{true:,}" for letter, (said, true) in made.letters.items()]
        out.print(Text(f"letters, said/right: {', '.join(parts)}"), soft_wrap=True)
    if made.finish.get("length"):
        out.print(Text(f"{made.finish['length']:,} replies were cut at the longest answer"), soft_wrap=True)
    for key, reply in made.unparsed[:UNREAD]:
        out.print(Text(f"unread  {key}: {reply[:100]!r}"), soft_wrap=True)
    if len(made.unparsed) > UNREAD:
        out.print(Text(f"unread  and {len(made.unparsed) - UNREAD:,} more (--json lists them)"))
    for error, n in sorted(made.errors.items(), key=lambda one: -one[1])[:UNREAD]:
        out.print(Text(f"{n:,} without a reply: {error}"), soft_wrap=True)
    for note in made.notes:
        out.print(Text(f"note: {note}"), soft_wrap=True)


def headlines(made: Rescored) -> list[str]:
    """The official numbers, a line each."""
    about = f"{made.questions:,} questions about {made.videos:,} videos"
    if made.asked < made.questions:
        about += f", {made.questions - made.asked:,} of them without a reply (they count as wrong)"
    return [f"{made.title}: {s.measure} {shown(s)}  {interval(s)}  ({about})" for s in made.official[:6]]


def scores_table(scores: Sequence[Score], title: str) -> Table:
    made = table("", "rule", title=title)
    for name in ("score", "95 %", "n"):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("how", overflow="fold")
    for kind, group in groupby(scores, key=lambda s: (s.kind, s.rule)):
        rows = list(group)
        for i, s in enumerate(rows):
            name = f"{'*' if s.official else ' '} {kind[1]}" if i == 0 else ""
            how = s.said if i == 0 or s.said != rows[i - 1].said else ""
            made.add_row(s.measure, name, shown(s), interval(s), f"{s.n:,}", how)
    return made


def shown(score: Score) -> str:
    return f"{score.value:.2f}"


def interval(score: Score) -> str:
    return f"{score.low:.2f}-{score.high:.2f}"
