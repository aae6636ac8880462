"""Maps of one sample as a page: who reads whom, block by block, and how far from rows that know nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from timeviper.analysis.draw import Line, lines
from timeviper.analysis.halflife import NAMES
from timeviper.analysis.maps import PARTS, BlockMap, Curve
from timeviper.analysis.page import Figure, Grid, Page, Section
from timeviper.analysis.strips import heat
from timeviper.analysis.subject import Subject
from timeviper.console import table
from timeviper.files import whole_file
from timeviper.pack import Kind, Pack

FLOOR = 1e-4  # share of a row: below it all looks alike
NOTES = (
    "Most of a curve is geometry: how long the parts are, where they stand, how far a row reaches. Only the distance "
    "from the dashed lines says anything about content.",
    "Rows of a scan are sizes |M| brought to sum 1, and hide that signs cancel; rows of attention are shares by "
    "nature. Compare ranks and shares within a block, not darkness between the two.",
    "M is not all that a Mamba block does: its convolution lets a token speak in four columns, and D, gate and norm "
    "stand behind it.",
    "What is read is not what is used: later blocks may ignore it, or repair its loss. `timeviper analyse flow` cuts.",
    "One sample of one run. Heads, layers and sinks differ between seeds.",
)


def page(subject: Subject, pack: Pack, maps: Sequence[BlockMap], curves: Sequence[Curve], without_dt: bool) -> Page:
    first = maps[0]
    counts = {name: int((first.kinds == k).sum()) for k, name in enumerate(NAMES)}
    facts = [
        *subject.facts,
        ("sample", pack.keys[0]),
        ("question", subject.question(pack)),
        ("right answer", pack.answers[0]),
        ("tokens", ", ".join(f"{n} {name}" for name, n in counts.items() if n)),
        ("scan's entries", "without the step, as in the paper's notebook" if without_dt else "with the step dt"),
    ]
    far = max(curves, key=lambda one: abs(one.to["vision"]["measured"] - one.to["vision"]["same reach"]))
    vision = far.to["vision"]
    lead = (
        f"Attention to vision is farthest from a content-free kernel of the same reach in block {far.block} "
        f"({far.kind}): {vision['measured']:.2f} against {vision['same reach']:.2f}."
    )
    return Page(
        f"Who reads whom: {subject.recipe.name}",
        lead,
        [_shares(subject, curves), *(_block(one) for one in maps), _kinds(curves)],
        facts,
        NOTES,
    )


def _shares(subject: Subject, curves: Sequence[Curve]) -> Section:
    figures = []
    for part in PARTS:
        series = []
        for kind in ("mamba", "attention"):
            those = [one for one in curves if one.kind == kind]
            if those:
                series.append(
                    Line(kind, [one.block for one in those], [one.to[part]["measured"] for one in those], n=1)
                )
        for null in ("same reach", "same sink", "uniform"):
            series.append(Line(null, [one.block for one in curves], [one.to[part][null] for one in curves], null=True))
        rows = [[one.block, one.kind, one.behind or "-", *one.to[part].values(), one.reach, one.half] for one in curves]
        columns = [
            "block",
            "mixer",
            "behind stage",
            *curves[0].to[part],
            "mean distance",
            "half distance of the kernel",
        ]
        drawing = lines(
            f"Attention to {part}",
            series,
            "block",
            "share",
            layout=subject.layout,
            y_range=(0, 1),
            desc=_told(part, curves),
        )
        caption = (
            "Solid: measured (mean over the parts that read, as in the paper's figure 10). Dashed: content-free rows: "
            "a kernel that halves with distance and reaches as far as this block; the same share on the first token "
            "and the rest alike; all alike."
        )
        figures.append(Figure(drawing, caption, Grid(f"Attention to {part}, and null lines", columns, rows)))
    text = "Instruction is all text that is not the answer, with what stands before the video, as in the paper."
    return Section("Shares by part", [text], figures)


def _told(part: str, curves: Sequence[Curve]) -> str:
    each = (
        f"block {one.block} ({one.kind}) {one.to[part]['measured']:.2f}, same reach {one.to[part]['same reach']:.2f}, "
        f"uniform {one.to[part]['uniform']:.2f}"
        for one in curves
    )
    return f"Share of attention to {part}, measured and of content-free rows: {'; '.join(each)}."


def _block(one: BlockMap) -> Section:
    behind = f", behind stage {one.behind}" if one.behind else ""
    figures = []
    for name, cells, reach in pictures(one):
        drawing = heat(
            f"Block {one.block}, {name}",
            cells,
            "share of a row (log)",
            floor=FLOOR,
            ceiling=1.0,
            borders=borders(one),
            desc=f"Rows read {reach:.3g} tokens back on the mean, of {one.tokens}. {_hot(one, cells)}",
        )
        figures.append(Figure(drawing, f"Mean distance {reach:.3g} tokens."))
    return Section(f"Block {one.block}: {one.kind}{behind}", [], figures)


def pictures(one: BlockMap) -> list[tuple[str, np.ndarray, float]]:
    """Name, cells `[P, P]` (NaN where nothing can be read) and reach: the mean over heads, the local and the global
    one."""
    chosen = {"the most local head": min, "the farthest head": max}
    heads = one.heads.double()
    found = [("mean over heads", heads.mean(0), sum(one.reach) / len(one.reach))]
    if len(one.reach) > 1:
        for name, pick in chosen.items():
            head = pick(range(len(one.reach)), key=one.reach.__getitem__)
            found.append((f"{name} ({head})", heads[head], one.reach[head]))
    return [
        (name, np.where(np.tri(len(cells), dtype=bool), cells.numpy(), np.nan), reach) for name, cells, reach in found
    ]


def borders(one: BlockMap) -> list[tuple[int, str]]:
    """Where the parts of the sequence begin, in cells; text between frames belongs to the video."""
    P, kind = one.heads.shape[-1], one.kinds.tolist()
    vision = [i for i, k in enumerate(kind) if k == Kind.VISION]
    places = [(0, "context")] if not vision or vision[0] else []
    if vision:
        places += [(vision[0], "video"), (vision[-1] + 1, "question")]
    answer = [i for i, k in enumerate(kind) if k == Kind.ANSWER]
    places += [(answer[0], "answer")] if answer else []
    return [(place * P // len(kind), name) for place, name in places]


def _hot(one: BlockMap, cells: np.ndarray) -> str:
    """Where the last row's mass lies, in words."""
    last, kinds = one.mean[-1], one.kinds
    each = {name: float(last[kinds == k].sum()) for k, name in enumerate(NAMES) if bool((kinds == k).any())}
    return "The last row, mean over heads: " + ", ".join(f"{share:.0%} {name}" for name, share in each.items()) + "."


def _kinds(curves: Sequence[Curve]) -> Section:
    tables = []
    for one in curves:
        names = list(dict.fromkeys(name for row in one.by_kind.values() for name in row))
        rows = [[name, *(row.get(to) for to in names)] for name, row in one.by_kind.items()]
        tables.append(Grid(f"Block {one.block} ({one.kind})", ["from \\ to", *names], rows, folded=len(curves) > 6))
    text = (
        "Each row: what share of their attention tokens of one kind give to those of another. The first token stands "
        "by itself (sink): in the shares above it counts as instruction."
    )
    return Section("By kind of token", [text], tables=tables)


def write_cells(path: Path, maps: Sequence[BlockMap]) -> Path:
    """Every cell that is drawn, as arrays `block<i>/<picture>` of a numpy archive."""
    arrays = {f"block{one.block}/{name}": cells.astype(np.float32) for one in maps for name, cells, _ in pictures(one)}
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
    return path


def terminal(curves: Sequence[Curve]) -> Table:
    """A line a block: attention to vision beside its null lines."""
    made = table("block", "mixer", "behind", title="share of attention to vision; content-free rows beside it")
    for name in ("measured", "same reach", "same sink", "uniform", "reach"):
        made.add_column(name, justify="right", no_wrap=True)
    for one in curves:
        values = [f"{one.to['vision'][name]:.2f}" for name in ("measured", "same reach", "same sink", "uniform")]
        made.add_row(str(one.block), one.kind, one.behind or "-", *values, f"{one.reach:.3g}")
    return made
