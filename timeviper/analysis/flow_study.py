"""The figures behind `timeviper analyse flow`: all passes over all samples, put together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from timeviper.analysis.flow import WHOLE, Curve, curves, measure, passes, vision_share
from timeviper.analysis.flow_options import FlowOptions
from timeviper.analysis.parts import Measured, Tell, gather
from timeviper.analysis.samples import Samples
from timeviper.analysis.scores import Band, Scores
from timeviper.analysis.subject import Subject


@dataclass
class Flow(Measured):
    """Scores of every pass by its name, and of `WHOLE`, `BLIND` and `TEXT`."""

    options: FlowOptions
    curves: list[Curve]
    null_vision: dict[str, list[float]]
    """Share of vision in the random sets, by edge, `[n]`."""

    def of(self, curve: Curve, place: int) -> Scores:
        return self.scores[_name(curve, place)]

    def band(self, curve: Curve, place: int, measure: str) -> Band:
        return self.bands[_name(curve, place), measure]

    def curve(self, edge: str, roads: str, null: bool = False) -> Curve | None:
        return next((c for c in self.curves if (c.edge, c.roads, c.null) == (edge, roads, null)), None)


def _name(curve: Curve, place: int) -> str:
    """Of the scores behind a point: where nothing is cut, those of the whole model."""
    cut = curve.cuts[place]
    return cut.name if cut.blocks or cut.transfers else WHOLE


def study(subject: Subject, options: FlowOptions, kept: Path, tell: Tell) -> Flow:
    """Measure all that is asked. kept: where figures of packs are kept until all are there. AnalysisError where no
    held-out sample has frames, or can be read."""
    made = curves(subject.model.decoder, options.edges, options.roads, options.sweep, options.at)
    samples, cuts = Samples(subject, options.samples), passes(made)
    settings = options.samples, options.edges, [cut.name for cut in cuts]
    run = partial(measure, subject.model, cuts=cuts)
    found, parts = gather(
        samples,
        kept,
        settings,
        run,
        lambda pack: {"null": {edge: vision_share(pack, edge) for edge in options.edges}},
        len(cuts) + 3,
        tell,
        "passes",
    )
    null = {edge: [share for part in parts for share in part["null"][edge]] for edge in options.edges}
    return Flow(**vars(found), options=options, curves=made, null_vision=null)
