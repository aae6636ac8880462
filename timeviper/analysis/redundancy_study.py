"""The figures behind `timeviper analyse redundancy`: the table of drops, and schedules measured as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from timeviper.analysis.cut import mixers
from timeviper.analysis.drop import OWN, OWN_DROP, RULES, SEEDS, WHOLE, Drop, drops, measure, measure_jointly, stage
from timeviper.analysis.options import Words, whole
from timeviper.analysis.parts import Measured, Tell, gather
from timeviper.analysis.samples import Samples
from timeviper.analysis.schedule import MOST, Schedule, Schedules, Table, all_schedules
from timeviper.analysis.schedule_cost import BUDGETS, block_costs
from timeviper.analysis.scores import MEASURES, Band, Scores
from timeviper.analysis.subject import Subject
from timeviper.config import TransVConfig, TransVStage
from timeviper.config.shape import PackShape
from timeviper.model.decoder import Decoder
from timeviper.pack import Pack

SETTINGS = ("select", "keep", "at", "stages", "samples", *(f"budget.{name}" for name in BUDGETS))
CANDIDATES = 5  # schedules that are measured as a whole


@dataclass(frozen=True)
class Options:
    """What is asked; see `read_options`."""

    rules: tuple[str, ...]
    keeps: tuple[float, ...]
    """Falling."""
    places: tuple[int, ...]
    budgets: dict[str, float]
    stages: int
    samples: int
    notes: tuple[str, ...] = ()


def read_options(words: Words, decoder: Decoder) -> Options:
    """From what was typed. Raises ConfigError with all that is wrong."""
    layout = decoder.cfg.layout
    rules = words.names("select", RULES, [*RULES])
    keeps = words.numbers("keep", lambda v: 0 <= v <= 1, "shares from 0 to 1", (0.5, 0.25, 0.1))
    places = words.blocks("at", layout) or mixers(layout)
    stages = words.number("stages", lambda v: whole(1)(v) and v <= MOST, f"a whole number from 1 to {MOST}", MOST)
    samples = words.number("samples", whole(1), "a whole number, 1 or more", 100)
    asked = [name for name in BUDGETS if f"budget.{name}" in words.own]
    share = "a share above 0 and at most 1 of what it takes without TransV"
    budgets = {name: words.number(f"budget.{name}", lambda v: 0 < v <= 1, share, 1.0) for name in asked}
    there = [rule for rule in rules if any(RULES[rule].block in ("", layout[place]) for place in places)]
    if asked and not any(rule != "random" and 0 < keep < 1 for rule in there for keep in keeps):
        words.wrong(
            "select", ",".join(rules), "leaves nothing that a recipe can do: a budget needs uniform or a ranked rule."
        )
    words.check()
    lost = [rule for rule in rules if rule not in there]
    notes = tuple(f"No block that is looked at can rank by {rule}: it is left out." for rule in lost)
    keeps = tuple(sorted(keeps, reverse=True))
    return Options(tuple(there), keeps, tuple(places), budgets, int(stages), int(samples), notes)


@dataclass
class Redundancy(Measured):
    """Scores of every drop by its name, and of `WHOLE`."""

    options: Options
    table: Table
    schedules: Schedules
    chosen: list[Schedule]
    """The best five within the budget, by what is predicted; none without a budget."""
    joint: dict[str, Scores] = field(default_factory=dict)
    """Of `chosen` by number, and of the run's own stages."""
    own_costs: dict[str, float] = field(default_factory=dict)

    def of(self, place: int, keep: float, rule: str) -> Scores | None:
        """Of one entry of the table: of the random rule the mean of its draws. None: not measured."""
        found = [self.scores.get(Drop(place, keep, rule, s).name) for s in range(SEEDS if rule == "random" else 1)]
        there = [scores for scores in found if scores is not None]
        if len(there) < 2:
            return there[0] if there else None
        return Scores(*(np.mean([getattr(s, m) for s in there], axis=0).tolist() for m in MEASURES))

    def band(self, place: int, keep: float, rule: str, measure: str) -> Band | None:
        key = (place, keep, rule, measure)
        if key not in self._bands:
            scores = self.of(place, keep, rule)
            self._bands[key] = None if scores is None else self.band_of(scores, measure)
        return self._bands[key]

    @cached_property
    def _bands(self) -> dict[tuple[int, float, str, str], Band | None]:
        return {}

    def joint_band(self, name: str, measure: str) -> Band:
        return self.band_of(self.joint[name], measure)

    @property
    def winner(self) -> int | None:
        """Number of the schedule in `chosen` that loses least when it is measured as a whole."""
        if not self.chosen:
            return None
        return min(range(len(self.chosen)), key=lambda i: float(np.mean(self.joint[str(i)].kl)))


def study(subject: Subject, options: Options, kept: Path, tell: Tell) -> Redundancy:
    """Measure the table, solve for the budget, and measure the best five as a whole.

    kept: where figures of packs are kept until all are there. AnalysisError where no held-out sample has frames, or can
    be read; BudgetError where no schedule is as cheap as asked.
    """
    asked = drops(subject.layout, options.places, options.keeps, options.rules)
    samples = Samples(subject, options.samples)
    settings = options.samples, [drop.name for drop in asked]
    run = partial(measure, subject.model, asked=asked)
    there, parts = gather(samples, kept, settings, run, _shapes, len(asked) + 1, tell, "drops")
    shapes = [PackShape((frames,), (text,), 0) for part in parts for frames, text in part["shapes"]]
    table = table_of(subject.layout, options, there.scores)
    every = all_schedules(table, block_costs(subject.recipe.model, shapes, table.ratios), options.stages)
    found = Redundancy(
        **vars(there),
        options=options,
        table=table,
        schedules=every,
        chosen=every.best(options.budgets, CANDIDATES) if options.budgets else [],
        own_costs=own_costs(subject, shapes),
    )
    _measure_jointly(subject, samples, found, tell)
    return found


def _shapes(pack: Pack) -> dict[str, list[list[int]]]:
    """Frames and text tokens of each sequence."""
    shape = PackShape.of(pack)
    return {"shapes": [[*pair] for pair in zip(shape.frames, shape.text)]}


def table_of(layout: str, options: Options, scores: dict[str, Scores]) -> Table:
    """The best rule of a recipe at every place and ratio. Where numbers alone decide, a stage stands right behind the
    mixer before, so that the MLP between them is spared, too."""
    there = mixers(layout)
    ratios = tuple(keep for keep in options.keeps if 0 < keep < 1)
    rules = [rule for rule in options.rules if rule != "random"]
    loss, layer = np.full((len(options.places), len(ratios)), np.inf), np.zeros((len(options.places), len(ratios)), int)
    chosen = [["" for _ in ratios] for _ in options.places]
    for p, place in enumerate(options.places):
        behind = there[there.index(place) - 1] + 1 if place != there[0] else 0
        layer[p] = place
        for r, keep in enumerate(ratios):
            for rule in rules:
                found = scores.get(Drop(place, keep, rule).name)
                if found is not None and (mean := float(np.mean(found.kl))) < loss[p, r]:
                    loss[p, r], chosen[p][r] = mean, rule
                    layer[p, r] = place if RULES[rule].block else behind
    return Table(ratios, loss, layer, tuple(map(tuple, chosen)))


def own_costs(subject: Subject, shapes: Sequence[PackShape]) -> dict[str, float]:
    """What the run's own stages take, as shares of none."""
    segments = subject.model.decoder.segments
    keeps = [s.stage.keep if s.stage is not None else 1.0 for s in segments]
    costs = block_costs(subject.recipe.model, shapes, keeps)
    rows = [i + 1 for i, segment in enumerate(segments) for _ in segment.blocks]
    return {name: float(cost[rows, range(len(rows))].sum()) for name, cost in costs.items()}


def stages_of(schedule: Schedule, taken: Iterable[str], transfer: bool = False) -> dict[str, TransVStage]:
    """Stages of a recipe by name; `taken`: names that they must not have."""
    found: dict[str, TransVStage] = {}
    for step in schedule.steps:
        name = f"at{step.layer}"
        while name in taken:
            name += "x"
        found[name] = stage(step.layer, step.keep, step.rule, transfer)
    return found


def _measure_jointly(subject: Subject, samples: Samples, found: Redundancy, tell: Tell) -> None:
    """Fills `joint`."""
    taken = [*subject.model.decoder.transv]
    schedules = {str(i): TransVConfig(stages=stages_of(s, taken)) for i, s in enumerate(found.chosen)}
    if not schedules and not found.stages:
        return
    parts: dict[str, list[Scores]] = {}
    total = len(samples.bins) * (len(schedules) + 2 * bool(found.stages))
    done, skipped = 0, len(samples.skipped)
    for items in samples.bins:
        if (pack := samples.pack(items)) is None:
            continue
        for name, scores in measure_jointly(subject.model, pack, schedules):
            parts.setdefault(name, []).append(scores)
            done += 1
            tell(done, total, "whole schedules")
    del samples.skipped[skipped:]  # they are told already
    found.joint = {name: Scores.join(scores) for name, scores in parts.items()}


__all__ = ["OWN", "OWN_DROP", "WHOLE", "Options", "Redundancy", "read_options", "study"]
