"""`timeviper analyse redundancy` as a page, as numbers, and as tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.table import Table as Shown

from timeviper.analysis.draw import Level, Line, lines
from timeviper.analysis.drop import OWN, OWN_DROP, RULES, WHOLE
from timeviper.analysis.page import Figure, Grid, Page, Section
from timeviper.analysis.redundancy_findings import findings, warnings
from timeviper.analysis.redundancy_study import Redundancy
from timeviper.analysis.schedule import Schedule
from timeviper.analysis.schedule_cost import BUDGETS
from timeviper.analysis.scores import MEASURES
from timeviper.analysis.subject import Subject
from timeviper.console import table

RULE_NAMES = {
    "uniform": "evenly spaced",
    "random": "chance",
    "last": "last prompt token, attention",
    "question": "question, attention",
    "mamba": "question, Mamba-2",
}
Y_NAMES = {"right": "answers right", "kl": "KL from the model without stages, nats a token"}
OWN_NAMES = {OWN: "this run's stages", OWN_DROP: "this run's stages, pure drop"}
MOST_POINTS = 300  # of a frontier that is drawn
NOTES = (
    "A low cost is no proof that tokens hold nothing: what others hold, too, can be dropped, until they go as well.",
    "A pure drop understates TransV, most of all where times are asked: what is dropped could have been handed on.",
    "A drop before a late block is no forgetting: in a hybrid the states of the Mamba-2 blocks before it have read "
    "every token.",
    "A rule is only as good as its curve against chance: below the dashed line it knows something, on it nothing.",
    "Costs of several drops are taken to add up; that orders schedules, and the best are measured as a whole.",
    "A model is measured off what it was trained with. Train the winner before trusting its accuracy.",
    "FLOPs are no latency, and short answers hide losses that long ones would show.",
)


def page(subject: Subject, found: Redundancy, words: Sequence[str] = ()) -> Page:
    """Everything; the first finding leads. words: for `eval` of what is chosen."""
    told = findings(found)
    sections = [Section("What is found", told[1:], warnings=warnings(found))]
    sections += [_keep(found, keep) for keep in found.options.keeps]
    sections += [_schedules(found, words)] if len(found.schedules.loss) > 1 else []
    facts = [
        *subject.facts,
        *found.facts,
        ("rules", ", ".join(found.options.rules)),
    ]
    lead = told[0] if told else "What it costs to lose vision tokens, by depth."
    return Page(f"How redundant vision tokens are, by depth: {subject.recipe.name}", lead, sections, facts, NOTES)


def _keep(found: Redundancy, keep: float) -> Section:
    title = f"Keep {keep:g} of the vision tokens"
    return Section(title, (), [_figure(found, keep, measure) for measure in ("right", "kl")])


def _figure(found: Redundancy, keep: float, measure: str) -> Figure:
    series, rows = [], []
    for rule in found.options.rules:
        bands = [(p, b) for p in found.options.places if (b := found.band(p, keep, rule, measure)) is not None]
        places, values = [p for p, _ in bands], [b.mean for _, b in bands]
        low, high = [b.low for _, b in bands], [b.high for _, b in bands]
        series.append(Line(RULE_NAMES[rule], places, values, low, high, len(found.keys), rule == "random"))
        rows += [[RULE_NAMES[rule], p, b.mean, b.low, b.high] for p, b in bands]
    drawn = lines(
        f"Keep {keep:g}: {Y_NAMES[measure]}",
        series,
        "tokens are dropped before block",
        Y_NAMES[measure],
        levels=[Level(found.bands[WHOLE, measure].mean, "no drop")],
        layout=found.layout,
        y_range=(-0.03, 1.03) if measure == "right" else None,
    )
    caption = (
        "One drop before the block on the axis, nothing transferred. A rule that ranks with a kind of block stands "
        "before such blocks alone. Bands: 95 %, videos drawn with replacement."
    )
    columns = ("rule", "before block", "mean", "low", "high")
    return Figure(drawn, caption, Grid(f"Keep {keep:g}: {Y_NAMES[measure]}, every number", columns, rows, folded=True))


def frontier(found: Redundancy, name: str) -> list[Schedule]:
    """What nothing beats in this cost and in predicted loss, thinned out to what can be seen."""
    front = found.schedules.frontier(name)
    return front[:: -(-len(front) // MOST_POINTS)]


def _budget(found: Redundancy) -> str:
    return next(iter(found.options.budgets), "flops")


def _schedules(found: Redundancy, words: Sequence[str]) -> Section:
    name = _budget(found)
    front = frontier(found, name)
    series = [Line("predicted, best of all", [s.costs[name] for s in front], [s.loss for s in front])]
    if (best := found.winner) is not None:
        at, kl = found.chosen[best].costs[name], _kl(found, str(best))
        series.append(Line("the best, measured as a whole", [at], [kl], n=len(found.keys)))
    for own in (OWN, OWN_DROP):
        if own in found.joint:
            series.append(Line(OWN_NAMES[own], [found.own_costs[name]], [_kl(found, own)], n=len(found.keys)))
    drawn = lines(
        "What a schedule costs and what it loses",
        series,
        f"share of {BUDGETS[name]} without stages",
        Y_NAMES["kl"],
    )
    rows = [[str(s), s.loss, *(s.costs[m] for m in BUDGETS)] for s in front]
    behind = Grid("Schedules that nothing beats", ("schedule", "predicted KL", *BUDGETS), rows, folded=True)
    caption = (
        f"Every schedule of up to {found.options.stages} stages out of the table above, {len(found.schedules.loss):,} "
        "of them: those that no other beats in both."
    )
    text, commands = [], []
    if words and found.winner is not None:
        text = [
            "schedule.yaml beside this page trains the stage anew with the best schedule, transfers included. The "
            "second command evaluates the run as it is, with pure drops."
        ]
        commands = ["timeviper train schedule.yaml", f"timeviper eval RUN {' '.join(words)}"]
    tables = [_chosen(found)] if found.chosen else []
    return Section("Schedules", text, [Figure(drawn, caption, behind)], tables, commands=commands)


def _kl(found: Redundancy, name: str) -> float:
    return float(np.mean(found.joint[name].kl))


def _chosen(found: Redundancy) -> Grid:
    rows = []
    for i, schedule in enumerate(found.chosen):
        kl, right = (found.joint_band(str(i), measure) for measure in ("kl", "right"))
        best = "best" if i == found.winner else ""
        rows.append(
            [str(schedule), schedule.loss, kl.mean, kl.low, kl.high, right.mean, *schedule.costs.values(), best]
        )
    columns = ("schedule", "predicted KL", "measured KL", "low", "high", "right", *BUDGETS, "")
    return Grid("The best by prediction, measured as a whole", columns, rows)


def numbers(found: Redundancy, words: Sequence[str] = ()) -> dict[str, Any]:
    """Every number that is drawn, and what is behind it."""
    options = found.options
    entries = [
        {"block": place, "keep": keep, "rule": rule} | {m: found.band(place, keep, rule, m) for m in MEASURES}
        for place in options.places
        for keep in options.keeps
        for rule in options.rules
        if found.of(place, keep, rule) is not None
    ]
    return {
        "layout": found.layout,
        "stages": found.stages,
        "rules": {rule: asdict(RULES[rule]) for rule in options.rules},
        "budgets": options.budgets,
        "samples": found.keys,
        "skipped": found.skipped,
        "whole": {m: found.bands[WHOLE, m] for m in MEASURES},
        "drops": entries,
        "frontier": {name: [_plain(s) for s in frontier(found, name)] for name in BUDGETS},
        "schedules": [
            _plain(s) | {"measured": {m: found.joint_band(str(i), m) for m in MEASURES}, "best": i == found.winner}
            for i, s in enumerate(found.chosen)
        ],
        "own": {
            name: {"costs": found.own_costs, **{m: found.joint_band(name, m) for m in MEASURES}}
            for name in (OWN, OWN_DROP)
            if name in found.joint
        },
        "eval": list(words),
        "findings": findings(found),
        "warnings": warnings(found),
    }


def _plain(schedule: Schedule) -> dict[str, Any]:
    return {"stages": [asdict(step) for step in schedule.steps], "predicted": schedule.loss, "costs": schedule.costs}


def terminal(found: Redundancy) -> list[Shown]:
    """A table a share, and the schedules."""
    tables = []
    for keep in found.options.keeps:
        title = f"keep {keep:g}, the rest dropped before a block: answers right (KL, nats a token)"
        shown = table("block", *found.options.rules, title=title)
        for place in found.options.places:
            cells = [_pair(found, place, keep, rule) for rule in found.options.rules]
            shown.add_row(f"{place} {found.layout[place]}", *cells)
        tables.append(shown)
    return [*tables, _best(found)] if found.chosen else tables


def _best(found: Redundancy) -> Shown:
    shown = table(
        "block: keep, rule", "predicted", "measured", "right", *BUDGETS, "", title="KL of the best by prediction"
    )
    for i, schedule in enumerate(found.chosen):
        steps = "; ".join(f"{step.layer}: {step.keep:g} {step.rule}" for step in schedule.steps) or "no stage"
        right, costs = found.joint_band(str(i), "right").mean, (f"{cost:.3f}" for cost in schedule.costs.values())
        best = "best" if i == found.winner else ""
        shown.add_row(steps, f"{schedule.loss:.4f}", f"{_kl(found, str(i)):.4f}", f"{right:.3f}", *costs, best)
    return shown


def _pair(found: Redundancy, place: int, keep: float, rule: str) -> str:
    right, kl = (found.band(place, keep, rule, measure) for measure in ("right", "kl"))
    return "-" if right is None or kl is None else f"{right.mean:.2f} ({kl.mean:.3f})"
