"""The memory of a run's heads as a page and as a table on a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from rich.table import Table

from timeviper.analysis.draw import Level, Line, lines
from timeviper.analysis.memory import BlockMemory, Memory, middle
from timeviper.analysis.page import Figure, Grid, Page, Section
from timeviper.analysis.strips import Strip, timeline
from timeviper.analysis.subject import Subject
from timeviper.console import table

ROWS = 4096  # of the table of all heads
STRETCHES = 60  # of the horizon, in the picture of what is left
NOTES = (
    "A long half-life is not memory: it says how slowly a head forgets, not that it wrote anything worth reading. Pair "
    "it with needles (`timeviper needles`).",
    "Half-lives are at the mean rate of a head. Rates are heavy-tailed: a few tokens forget much, so the exact "
    "half-life of one token can be far from it; its median stands beside it.",
    "Attention blocks forget nothing and are not here; a fact that no state holds any more may still be read there.",
    "Behind a TransV stage the same rate lasts longer in seconds, because fewer tokens stand for a second. That is "
    "arithmetic, not a better memory.",
)


def page(subject: Subject, memory: Memory) -> Page:
    best = max(memory.blocks, key=lambda block: block.best)
    heads = sum(len(block.tokens) for block in memory.blocks)
    lead = (
        f"{heads} heads in {len(memory.blocks)} Mamba blocks, measured on {memory.samples} held-out samples. "
        f"After {memory.at:g} s of video the head that forgets least (block {best.block}) keeps {best.best:.3g} of "
        "what it wrote."
    )
    facts = [
        *subject.facts,
        ("samples", memory.samples),
        ("horizon", f"{memory.at:g} s, {memory.frames:,} frames"),
        ("frames in training", f"{memory.trained_frames:,} at most"),
    ]
    sections = [_half_lives(subject, memory), _left(memory), _kinds(memory)]
    return Page(f"What the state remembers: {subject.recipe.name}", lead, sections, facts, NOTES)


def _half_lives(subject: Subject, memory: Memory) -> Section:
    blocks = memory.blocks
    x = [float(one.block) for one in blocks]
    shown = [
        Line(name, x, [pick(one.tokens) for one in blocks], n=memory.samples)
        for name, pick in (("longest head", max), ("head in the middle", middle), ("shortest head", min))
    ]
    seconds = [
        Line(name, x, [pick(one.seconds) for one in blocks], n=memory.samples)
        for name, pick in (("longest head", max), ("head in the middle", middle), ("shortest head", min))
    ]
    layout = subject.layout
    at = [Level(memory.at, f"{memory.at:g} s")]
    return Section(
        "Half-life by depth",
        ["Half of what a head wrote is gone after so many tokens, at its mean rate ln 2 / mean(step |A|)."],
        [
            Figure(
                lines("Half-life in tokens", shown, "block", "tokens (log)", layout=layout, log_y=True),
                "Longest, middle and shortest head of every Mamba block.",
                _table(memory),
            ),
            Figure(
                lines("Half-life in seconds", seconds, "block", "seconds (log)", layout=layout, log_y=True, levels=at),
                f"The same in seconds of video, at {memory.frames / memory.at:.3g} frames a second and the vision "
                "tokens and time text that the block sees of each. Dashed: the horizon.",
            ),
        ],
        warnings=memory.warnings,
    )


def _left(memory: Memory) -> Section:
    """What is left of each second when the video ends, best head of each block."""
    edges = [memory.at * k / STRETCHES for k in range(STRETCHES + 1)]
    ages = [memory.at - (a + b) / 2 for a, b in pairwise(edges)]
    strips = []
    for one in memory.blocks:
        longest = max(one.seconds)
        strips.append(Strip(f"block {one.block}", [2 ** (-age / longest) for age in ages], "mamba"))
    drawing = timeline(
        "What is left of each second",
        strips,
        edges,
        "share left in the head that forgets least",
        by_row=False,
        desc=f"Share left at the end of {memory.at:g} s of video of what was written in its first second: "
        + "; ".join(f"block {one.block} {one.best:.2g}" for one in memory.blocks),
    )
    rows = [
        [one.block, one.behind or "-", one.best, middle(one.survival), max(one.survival_at_answer)]
        for one in memory.blocks
    ]
    columns = ["block", "behind stage", "best head", "head in the middle", "best head, behind the question"]
    return Section(
        f"What is left after {memory.at:g} s",
        [
            "Survival exp(-sum of the rates) of what was written that long ago. The last column counts the question, "
            "too: text often forgets more a token than video does."
        ],
        [Figure(drawing, "Dark: still there at the end of the video; light: gone.", Grid("Survival", columns, rows))],
    )


def _kinds(memory: Memory) -> Section:
    names = [name for name in memory.blocks[0].by_kind]
    rows = [
        [one.block, one.behind or "-", *(middle(one.by_kind.get(name, [])) for name in names)] for one in memory.blocks
    ]
    x = [float(one.block) for one in memory.blocks]
    curves = [Line(name, x, [middle(one.by_kind.get(name, [math.nan])) for one in memory.blocks]) for name in names]
    drawing = lines("Half-life by kind of token", curves, "block", "tokens (log), head in the middle", log_y=True)
    return Section(
        "By kind of token",
        ["The half-life if all tokens were of one kind: which text makes a head forget the video, and which does not."],
        [
            Figure(
                drawing,
                "Where the line of a kind lies low, such tokens wipe the state.",
                Grid("Half-life in tokens by kind, head in the middle", ["block", "behind stage", *names], rows),
            )
        ],
    )


COLUMNS = ("block", "behind", "tokens", "median", "censored", "seconds", "left", "best left")


def _table(memory: Memory) -> Grid:
    names = ["block", "behind stage", "head", "tokens", "exact median", "censored", "seconds", "left", "left at answer"]
    rows = [
        [one.block, one.behind or "-", head, *values]
        for one in memory.blocks
        for head, values in enumerate(
            zip(one.tokens, one.median, one.censored, one.seconds, one.survival, one.survival_at_answer)
        )
    ]
    more = f" (the first {ROWS:,} of {len(rows):,}; all of them are in memory.json)" if len(rows) > ROWS else ""
    return Grid(f"Every head{more}", names, rows[:ROWS], folded=True)


def terminal(memory: Memory) -> Table:
    """A line a block: the head in the middle, and the best at the horizon."""
    made = table(*COLUMNS[:2], title=f"half-life of the head in the middle; left after {memory.at:g} s")
    for name in COLUMNS[2:]:
        made.add_column(name, justify="right", no_wrap=True)
    for one in memory.blocks:
        made.add_row(str(one.block), one.behind or "-", *_row(one))
    return made


def _row(one: BlockMemory) -> Sequence[str]:
    half = (f"{middle(values):,.3g}" for values in (one.tokens, one.median))
    return (
        *half,
        f"{middle(one.censored):.0%}",
        f"{middle(one.seconds):,.3g}",
        f"{middle(one.survival):.2g}",
        f"{one.best:.2g}",
    )
