"""`timeviper analyse flow` as a page, as numbers, and as tables in the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from timeviper.analysis.draw import Bar, Level, Line, bars, lines
from timeviper.analysis.flow import BLIND, ROADS, SWEEPS, TEXT, WHOLE, Curve
from timeviper.analysis.flow_findings import findings, named, warnings
from timeviper.analysis.flow_study import Flow
from timeviper.analysis.page import Figure, Grid, Page, Section
from timeviper.analysis.scores import MEASURES, Band
from timeviper.analysis.subject import Subject
from timeviper.console import table

EDGE_NAMES = {
    "V-I": "vision to instruction",
    "V-A": "vision to answer",
    "V-IA": "vision to instruction and answer",
}
LEVELS = {WHOLE: "no cut", BLIND: "blind", TEXT: "text alone"}
X_NAMES = {
    "from": "cut from this block on",
    "until": "cut up to this block",
    "only": "cut in this block alone",
    "window": "cut in {} mixers around this block",
}
Y_NAMES = {"right": "answers right", "kl": "KL from the uncut model, nats a token"}
NOTES = (
    "The dashed curve hides as many tokens drawn at random, most of which may be vision where a prompt has little "
    "other text (the share stands in the findings): it tells what is hidden from how much.",
    "A flat part is no proof that an edge is not used there: later blocks repair what one block lacks (the Hydra "
    "effect), and what two edges both carry is missed by neither cut alone.",
    "The first word of an answer is predicted by the last token of the instruction. Cut vision to answer alone, and "
    "that token still sees.",
    "A curve is of teacher-forced answers of one checkpoint on these samples. Written answers can differ, and so can "
    "the next seed.",
    "Text between frames is instruction, too: frames behind it see it as it is after the cut.",
    "TransV hands vision to the instruction on its own: without T it keeps doing so, and a stage that ranks is asked "
    "by tokens that may be cut.",
)


def page(subject: Subject, flow: Flow) -> Page:
    """Everything; the first finding leads."""
    told = findings(flow)
    sweep = flow.options.sweep
    start = [_start(flow)] if _bars(flow) else []
    sections = [Section("What is found", told[1:], figures=start, warnings=warnings(flow))]
    sections += [_edge(flow, edge) for edge in flow.options.edges]
    facts = [
        *subject.facts,
        *flow.facts,
        ("cut", f"layers={sweep}: {SWEEPS[sweep.kind]}"),
    ]
    return Page(f"Where vision flows into text: {subject.recipe.name}", told[0], sections, facts, NOTES)


def _edge(flow: Flow, edge: str) -> Section:
    made = [curve for curve in flow.curves if curve.edge == edge]
    text = f"What is lost when {EDGE_NAMES[edge].split(' to ')[1]} tokens do not know the vision tokens."
    return Section(f"{edge}: {EDGE_NAMES[edge]}", [text], [_figure(flow, edge, made, m) for m in ("right", "kl")])


def _figure(flow: Flow, edge: str, made: list[Curve], measure: str) -> Figure:
    drawn = lines(
        f"{edge}: {Y_NAMES[measure]}",
        [_line(flow, curve, measure) for curve in made],
        _where(flow),
        Y_NAMES[measure],
        levels=[Level(flow.bands[name, measure].mean, told) for name, told in LEVELS.items()],
        layout=flow.layout,
        y_range=(-0.03, 1.03) if measure == "right" else None,
    )
    columns = ["block", *(f"{_name(curve)}{end}" for curve in made for end in ("", " low", " high"))]
    rows = []
    for place in sorted(made[0].cuts):
        found = [flow.band(curve, place, measure) for curve in made]
        rows.append([f"{place} {flow.layout[place]}", *(v for b in found for v in (b.mean, b.low, b.high))])
    caption = (
        f"Cut {SWEEPS[flow.options.sweep.kind]}: what each block on the axis gives. Bands: 95 %, videos drawn with "
        "replacement. Dashed grey: random sets of the same size."
    )
    return Figure(drawn, caption, Grid(f"{edge}: {Y_NAMES[measure]}, every number", columns, rows, folded=True))


def _where(flow: Flow) -> str:
    """What a place along the depth stands for."""
    return X_NAMES[flow.options.sweep.kind].format(flow.options.sweep.width)


def _line(flow: Flow, curve: Curve, measure: str) -> Line:
    places = sorted(curve.cuts)
    found = [flow.band(curve, place, measure) for place in places]
    low, high = [b.low for b in found], [b.high for b in found]
    return Line(_name(curve), places, [b.mean for b in found], low, high, len(flow.keys), curve.null)


def _name(curve: Curve) -> str:
    return f"random, {named(curve.roads)}" if curve.null else named(curve.roads)


def _bars(flow: Flow) -> list[Bar]:
    """KL at the first place of every curve of vision."""
    found = []
    for curve in (c for c in flow.curves if not c.null):
        b = flow.band(curve, min(curve.cuts), "kl")
        found.append(
            Bar(f"{curve.edge}, {named(curve.roads)}", b.mean, b.low, b.high, flow.options.edges.index(curve.edge))
        )
    return found


def _start(flow: Flow) -> Figure:
    place = min(place for curve in flow.curves for place in curve.cuts)
    title = f"What each cut costs at block {place} (layers={flow.options.sweep})"
    drawn = bars(title, _bars(flow), Y_NAMES["kl"])
    return Figure(drawn, "An edge whose bar is short for attention and long for both is carried by Mamba-2 blocks.")


def numbers(flow: Flow) -> dict[str, Any]:
    """Every number that is drawn, and what is behind it."""
    return {
        "layout": flow.layout,
        "stages": flow.stages,
        "edges": list(flow.options.edges),
        "layers": str(flow.options.sweep),
        "mixers": list(flow.options.roads),
        "samples": flow.keys,
        "skipped": flow.skipped,
        "levels": {name: {m: flow.bands[name, m] for m in MEASURES} for name in LEVELS},
        "curves": [
            {
                "edge": curve.edge,
                "mixers": curve.roads,
                "null": curve.null,
                "points": [
                    {"block": place, "cut": list(cut.blocks), "transfers": list(cut.transfers)}
                    | {m: flow.band(curve, place, m) for m in MEASURES}
                    for place, cut in sorted(curve.cuts.items())
                ],
            }
            for curve in flow.curves
        ],
        "null_vision_share": {edge: sum(v) / len(v) for edge, v in flow.null_vision.items()},
        "findings": findings(flow),
        "warnings": warnings(flow),
    }


def terminal(flow: Flow) -> list[Table]:
    """A table an edge: accuracy and KL by block."""
    tables = [_table(flow, edge) for edge in flow.options.edges]
    legend = ", ".join(f"{letter} {name}" for letter, name in ROADS.items())
    tables[-1].caption_justify = "left"
    tables[-1].caption = (
        f"Answers right, and in brackets KL from the uncut model, nats a token. Cut are: {legend}. random: as many "
        "tokens are hidden by chance."
    )
    return tables


def _table(flow: Flow, edge: str) -> Table:
    made = [curve for curve in flow.curves if curve.edge == edge]
    found = table("block", *(_letters(curve) for curve in made), title=f"{edge}: {EDGE_NAMES[edge]}, {_where(flow)}")
    for place in sorted(made[0].cuts):
        cells = (_pair(flow.band(curve, place, "right"), flow.band(curve, place, "kl")) for curve in made)
        found.add_row(f"{place} {flow.layout[place]}", *cells)
    return found


def _letters(curve: Curve) -> str:
    return f"random {curve.roads}" if curve.null else curve.roads


def _pair(right: Band, kl: Band) -> str:
    return f"{right.mean:.2f} ({kl.mean:.3f})"
