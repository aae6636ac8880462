"""What the phases of a curriculum mean together with the recipe that they change. Part of `checks/recipe.py`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from timeviper.config.checks.finding import Finding
from timeviper.config.curriculum import keep_at
from timeviper.config.settings import PhaseConfig, Recipe
from timeviper.errors import did_you_mean


def phase_problems(recipe: Recipe) -> Iterator[Finding]:
    """What cannot work, in the order of the file."""
    phases = {f"train.phases.{name}": phase for name, phase in recipe.train.phases.items()}
    for key, phase in phases.items():
        if not 0 <= phase.start < recipe.train.steps:
            yield Finding(f"{key}.start", f"must be a step of the stage: 0 to {recipe.train.steps - 1}.")
        if phase.max_frames is not None and phase.max_frames < recipe.data.frames.min_frames:
            message = f"must be at least data.frames.min_frames = {recipe.data.frames.min_frames}."
            yield Finding(f"{key}.max_frames", message)
        yield from _phase_weights(f"{key}.weights", phase.weights, recipe)
        yield from _phase_keep(key, phase, recipe)
        for part in phase.trainable or ():
            if part not in recipe.train.trainable:
                yield Finding(f"{key}.trainable", f"names {part}, which is not in train.trainable: add it there.")
        if phase.trainable is not None and not phase.trainable:
            yield Finding(f"{key}.trainable", "is empty: name a part of train.trainable, or null for all of them.")
    for (_, a), (key, b) in pairwise(phases.items()):
        if b.start <= a.start:
            message = f"phases stand in order of strictly rising start, and the one before starts at {a.start}."
            yield Finding(f"{key}.start", message)
    ends = [*(phase.start for phase in list(phases.values())[1:]), recipe.train.steps]
    for (key, phase), end in zip(phases.items(), ends):
        if phase.ramp and phase.start + phase.ramp > end:
            message = f"is longer than the phase, which ends before step {end}: at most {end - phase.start}."
            yield Finding(f"{key}.ramp", message)


def _phase_keep(key: str, phase: PhaseConfig, recipe: Recipe) -> Iterator[Finding]:
    """What a phase keeps follows the rules of the stages: neither endpoint of a ramp may break them."""
    stages = recipe.model.transv.stages
    for name, keep in phase.keep.items():
        if name not in stages:
            known = ", ".join(stages) or "none"
            yield Finding(
                f"{key}.keep.{name}", f"is no stage; model.transv.stages has {known}.{did_you_mean(name, stages)}"
            )
        elif not 0 < keep <= 1:
            yield Finding(f"{key}.keep.{name}", "must be above 0 and at most 1.")
        elif stages[name].keep == 1.0:
            message = (
                f"changes a stage that model.transv.stages.{name}.keep = 1 leaves out of the model: set that to "
                "what the stage ends with."
            )
            yield Finding(f"{key}.keep.{name}", message)
    merged = {name: phase.keep.get(name, stage.keep) for name, stage in stages.items()}
    for (a, before), (b, after) in pairwise(merged.items()):
        if phase.keep and after > before:
            yield Finding(f"{key}.keep", f"never rises from stage to stage: {b} would keep {after:g}, {a} {before:g}.")
    if phase.ramp < 0 or (phase.ramp and not phase.keep):
        yield Finding(f"{key}.ramp", "must be 0 or more." if phase.keep else "has nothing to move: name `keep`.")


def _phase_weights(key: str, weights: dict[str, float], recipe: Recipe) -> Iterator[Finding]:
    sources = {name: source.weight for name, source in recipe.data.sources.items()}
    for name, weight in weights.items():
        if name not in sources:
            yield Finding(
                f"{key}.{name}",
                f"is no source; data.sources has {', '.join(sources) or 'none'}.{did_you_mean(name, sources)}",
            )
        elif not (math.isfinite(weight) and weight >= 0):
            yield Finding(f"{key}.{name}", "must be 0 or more.")
    if sources and weights and max({**sources, **weights}.values()) <= 0:
        yield Finding(key, "pauses every source: leave at least one weight above 0.")


def phase_warnings(recipe: Recipe) -> Iterator[Finding]:
    """A curriculum that does not end where the export begins."""
    last = keep_at(recipe.train.steps - 1, recipe.model.transv, recipe.train.phases)
    for name, keep in last.items():
        if (stage := recipe.model.transv.stages[name]).keep != keep:
            message = f"ends the training at {keep:g}, but validation and the export keep {stage.keep:g}."
            yield Finding(f"model.transv.stages.{name}.keep", message)
