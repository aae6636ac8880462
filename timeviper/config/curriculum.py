"""What holds at a step of a stage: frames, source weights, what TransV keeps, which parts learn.

All of it is a function of the recipe and the step, so that a run continues, and is replayed, without a stored state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from timeviper.config.model import TransVConfig
from timeviper.config.settings import DataConfig, FramesConfig, PhaseConfig, TrainConfig

Phases = Mapping[str, PhaseConfig]


@dataclass(frozen=True)
class Phase:
    """A phase of the data."""

    name: str
    """Empty before the first named phase."""
    frames: FramesConfig
    weights: dict[str, float]
    """Of every source."""


def phase_at(step: int, data: DataConfig, phases: Phases) -> Phase:
    """What is read at a step: the recipe's frames and weights, as the latest phase changes them."""
    weights = {name: source.weight for name, source in data.sources.items()}
    begun = _begun(step, phases)
    if not begun:
        return Phase("", data.frames, weights)
    name, phase = begun[-1]
    frames = replace(
        data.frames,
        max_frames=data.frames.max_frames if phase.max_frames is None else phase.max_frames,
        fps=data.frames.fps if phase.fps is None else phase.fps,
    )
    return Phase(name, frames, weights | phase.weights)


def keep_at(step: int, transv: TransVConfig, phases: Phases) -> dict[str, float]:
    """The fraction of vision tokens that each TransV stage keeps at a step.

    Where a phase ramps, it moves evenly from what held in the step before the phase to what the phase names, which
    it reaches `ramp` steps after the phase's first step.
    """
    own = {name: stage.keep for name, stage in transv.stages.items()}
    keep, begun = own, _begun(step, phases)
    for i, (_, phase) in enumerate(begun):
        now = step if i == len(begun) - 1 else begun[i + 1][1].start - 1
        share = min(1.0, (now - phase.start) / phase.ramp) if phase.ramp else 1.0
        goal = own | phase.keep
        keep = {name: goal[name] if share == 1.0 else k + share * (goal[name] - k) for name, k in keep.items()}
    return keep


def transv_at(step: int, transv: TransVConfig, phases: Phases) -> TransVConfig:
    """The TransV settings with the fractions that hold at a step."""
    keep = keep_at(step, transv, phases)
    return replace(transv, stages={name: replace(stage, keep=keep[name]) for name, stage in transv.stages.items()})


def trainable_at(step: int, train: TrainConfig) -> list[str]:
    """The parts that learn at a step."""
    begun = _begun(step, train.phases)
    named = begun[-1][1].trainable if begun else None
    return train.trainable if named is None else named


def ramps(phases: Phases) -> bool:
    """Whether any phase changes what TransV keeps."""
    return any(phase.keep for phase in phases.values())


def stretches(train: TrainConfig, pieces: int = 4) -> list[tuple[int, int]]:
    """The stage cut into `(first step, steps)`: at every phase, and every ramp into `pieces`."""
    starts = {phase.start for phase in train.phases.values()}
    cuts = {0}
    for phase in train.phases.values():
        if phase.start < train.steps:
            end = min([start for start in starts if start > phase.start] + [train.steps])
            ramp = [phase.start + phase.ramp * i // pieces for i in range(pieces + 1)] if phase.ramp else []
            cuts |= {phase.start, *(cut for cut in ramp if cut < end)}
    edges = [*sorted(cuts), train.steps]
    return [(a, b - a) for a, b in pairwise(edges)]


def _begun(step: int, phases: Phases) -> list[tuple[str, PhaseConfig]]:
    return [(name, phase) for name, phase in phases.items() if phase.start <= step]
