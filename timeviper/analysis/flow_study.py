"""The figures behind `timeviper analyse flow`: all passes over all samples, put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from timeviper.analysis.flow import WHOLE, Curve, Cut, curves, measure, passes, vision_share
from timeviper.analysis.flow_options import FlowOptions
from timeviper.analysis.parts import Parts, digest_of_settings
from timeviper.analysis.samples import Samples
from timeviper.analysis.scores import MEASURES, Band, Scores, band, videos
from timeviper.analysis.subject import Subject
from timeviper.datamodules.cost import Item


@dataclass
class Flow:
    """What was found, by sample; all that pages and files show is made from it."""

    options: FlowOptions
    layout: str
    curves: list[Curve]
    scores: dict[str, Scores]
    """Of every pass by its name, and of `WHOLE`, `BLIND` and `TEXT`; `[n]` each."""
    null_vision: dict[str, list[float]]
    """Share of vision in the random sets, by edge, `[n]`."""
    keys: list[str]
    skipped: list[str]
    stages: dict[str, dict[str, Any]]
    """TransV of the run."""

    @cached_property
    def clusters(self) -> np.ndarray:
        return videos(self.keys)

    def of(self, curve: Curve, place: int) -> Scores:
        cut = curve.cuts[place]
        return self.scores[cut.name if cut.blocks or cut.transfers else WHOLE]

    @cached_property
    def bands(self) -> dict[tuple[str, str], Band]:
        """By pass and measure."""
        return {
            (name, measure): band(getattr(scores, measure), self.clusters)
            for name, scores in self.scores.items()
            for measure in MEASURES
        }

    def band(self, curve: Curve, place: int, measure: str) -> Band:
        cut = curve.cuts[place]
        return self.bands[cut.name if cut.blocks or cut.transfers else WHOLE, measure]

    def difference(self, a: Scores, b: Scores, measure: str) -> Band:
        """b - a, paired by sample."""
        return band(np.subtract(getattr(b, measure), getattr(a, measure)), self.clusters)  # pyright: ignore[reportArgumentType]

    def curve(self, edge: str, roads: str, null: bool = False) -> Curve | None:
        return next((c for c in self.curves if (c.edge, c.roads, c.null) == (edge, roads, null)), None)


def study(subject: Subject, options: FlowOptions, kept: Path, tell: Callable[[int, int], None]) -> Flow:
    """Measure all that is asked. kept: where figures of packs are kept until all are there. tell: passes that are
    done, and all. AnalysisError where no held-out sample has frames, or can be read."""
    decoder = subject.model.decoder
    made = curves(decoder, options.edges, options.roads, options.sweep, options.at)
    samples, cuts = Samples(subject, options.samples), passes(made)
    names, each = [cut.name for cut in cuts], len(cuts) + 3
    parts = Parts(kept, digest_of_settings(subject, options.samples, options.edges, names))
    total = each * len(samples.bins)
    for number, items in enumerate(samples.bins):
        if number not in parts.found:
            told = partial(_tell, tell, number * each, total)
            parts.add(number, _figures(subject, samples, items, options, cuts, told))
    flow = _joined(subject, options, made, [parts.found[i] for i in range(len(samples.bins))])
    if not flow.keys:
        samples.skipped = flow.skipped
        raise samples.none_read()
    return flow


def _tell(tell: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    tell(before + done, total)


def _figures(
    subject: Subject,
    samples: Samples,
    items: Sequence[Item],
    options: FlowOptions,
    cuts: Sequence[Cut],
    tell: Callable[[int], None],
) -> dict[str, Any]:
    """Of the samples of one pack."""
    figures: dict[str, Any] = {"keys": [], "scores": {}, "null": {}}
    before = len(samples.skipped)
    if (pack := samples.pack(items)) is not None:
        figures["keys"] = pack.keys
        for done, (cut, scores) in enumerate(measure(subject.model, pack, cuts), 1):
            name = cut if isinstance(cut, str) else cut.name
            figures["scores"][name] = [getattr(scores, m) for m in MEASURES]
            tell(done)
        figures["null"] = {edge: vision_share(pack, edge) for edge in options.edges}
    return figures | {"skipped": samples.skipped[before:]}


def _joined(subject: Subject, options: FlowOptions, made: list[Curve], parts: Sequence[dict[str, Any]]) -> Flow:
    there = [part for part in parts if part["keys"]]
    names = there[0]["scores"] if there else {}
    scores = {name: Scores.join([Scores(*part["scores"][name]) for part in there]) for name in names}
    null = {edge: [v for part in there for v in part["null"][edge]] for edge in options.edges}
    keys = [key for part in there for key in part["keys"]]
    skipped = [reason for part in parts for reason in part["skipped"]]
    stages = {s.name: vars(s.stage) for s in subject.model.decoder.segments if s.stage is not None}
    return Flow(options, subject.layout, made, scores, null, keys, skipped, stages)
