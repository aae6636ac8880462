"""Which unit is read in which pack, by which rank, at which step: a pure function of the recipe.

Nothing here opens a file: the shard indexes say all that is needed. Because the global step alone decides
what is read, no loader state is ever stored, a run continues exactly where it stopped, and another number
of ranks or workers reads the same global batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import compress, islice
from typing import NamedTuple

import numpy as np

from timeviper.config import DataConfig, FramesConfig, PhaseConfig
from timeviper.config.curriculum import phase_at
from timeviper.datamodules.frames.share import frame_counts
from timeviper.datamodules.mixture import Mixture, Source, Unit, UsedUp
from timeviper.datamodules.shards.index_file import Turn


@dataclass(frozen=True)
class Item:
    """A unit with the frames that this step wants of it and what it costs."""

    unit: Unit
    num_frames: int
    """Of all its sequences."""
    tokens: int
    """Decoder tokens at the input."""
    cost: float
    """Tokens a block sees on average, after every transfer: what activations grow with, so what fills a pack."""
    work: float
    """Computation, in text tokens that cost as much: what ranks are balanced by."""
    spares: tuple[Item, ...] = ()
    """No dearer units of the same source that take its place, the first that can be read, if it cannot be."""
    sequences: tuple[SequenceShape, ...] = ()
    """What it is in a pack: one, or one for each turn."""

    @property
    def read(self) -> int:
        """Frames that are decoded for it: turns share them."""
        return max((sum(s.groups) for s in self.sequences), default=self.num_frames)


class SequenceShape(NamedTuple):
    """One sequence of a pack."""

    text: int
    """Text tokens."""
    groups: tuple[int, ...]
    """Frames of the media of each turn that has any (see `timeviper.pack.vision_groups`)."""


@dataclass(frozen=True)
class StepPlan:
    """One optimizer step, or one rank's share of it."""

    step: int
    frames: FramesConfig
    packs: tuple[tuple[Item, ...], ...]
    too_long: tuple[Item, ...] = ()
    """Units that no pack can hold; reported as skipped."""

    def share(self, rank: int, world: int) -> StepPlan:
        """The packs of one rank: dealt from the most work down, back and forth, so that sums are close."""
        order = sorted(range(len(self.packs)), key=lambda i: -sum(x.work for x in self.packs[i]))
        rounds = [order[i : i + world] for i in range(0, len(order), world)]
        seats = [(r, rank if k % 2 == 0 else world - 1 - rank) for k, r in enumerate(rounds)]
        packs = tuple(self.packs[r[seat]] for r, seat in seats if seat < len(r))
        return replace(self, packs=packs, too_long=self.too_long if rank == 0 else ())


@dataclass(frozen=True)
class CostModel:
    """Tokens of a unit, from the index alone."""

    tokens_per_frame: int
    vision_share: float
    """Share of the vision tokens that a block sees on average (see `config.shape.kept_share`)."""
    frame_work: float
    """Computation of a frame, tower included, in text tokens that cost as much."""
    estimate: Callable[[int, tuple[int, ...], int], int]
    """Text tokens of a conversation from its bytes, the frames of each of its videos, and its turns."""
    split: bool = False
    """Each turn is a sequence of its own, with all that comes before it."""
    share_at: Callable[[int], float] | None = None
    """The vision share of every step, where the curriculum changes it. A frame's work is not counted anew: it only
    balances ranks, and most of it does not depend on what TransV keeps."""

    def at(self, step: int) -> CostModel:
        """The costs that hold at a step."""
        return replace(self, vision_share=self.share_at(step)) if self.share_at else self

    def item(self, unit: Unit, frames: FramesConfig) -> Item:
        sequences = tuple(self._sequences(unit, frame_counts(unit.record.each, frames)))
        num_frames, text = sum(sum(s.groups) for s in sequences), sum(s.text for s in sequences)
        vision = num_frames * self.tokens_per_frame
        work = text + num_frames * self.frame_work
        cost = text + vision * self.vision_share
        return Item(unit, num_frames, text + vision, cost, work, sequences=sequences)

    def _sequences(self, unit: Unit, counts: tuple[int, ...]) -> Iterator[SequenceShape]:
        """What a unit becomes in a pack, given the frames of each of its media."""
        spec = unit.spec
        turns = spec.turns or (Turn(spec.text_bytes, spec.answer_bytes, len(counts)),)
        lasting = [medium.duration > 0 for medium in unit.record.each]
        size, media, groups = 0, 0, ()
        for number, turn in enumerate(turns, 1):
            new = counts[media : media + turn.media]
            size, media, groups = size + turn.text_bytes, media + turn.media, (*groups, *([sum(new)] if new else []))
            if self.split or number == len(turns):
                videos = tuple(compress(counts[:media], lasting))
                yield SequenceShape(self.estimate(size, videos, number), groups)


class Plan:
    """The whole order of a stage; `steps` replays it from the beginning, which costs microseconds a unit."""

    PATIENCE = 8  # units a pack that may find no room anywhere before the packs of a step count as full
    SPARES = 2  # replacements that are chosen for each unit ...
    TRIES = 8  # ... from this many candidates

    def __init__(
        self,
        sources: dict[str, Source],
        data: DataConfig,
        phases: dict[str, PhaseConfig],
        cost: CostModel,
        seed: int,
    ) -> None:
        self.sources = sources
        self.data = data
        self.phases = phases
        self.cost = cost
        self.seed = seed

    def steps(self, start: int = 0, begin: int = 0) -> Iterator[StepPlan]:
        """Global steps from `start` on, for ever. begin: where the replay begins; other than 0, it gives steps like
        those of the run, and not the same ones."""
        epochs = {name: source.epochs for name, source in self.data.sources.items()}
        mixture = Mixture(self.sources, self.seed, self.data.shuffle_window, epochs)
        waiting: list[Unit] = []
        step = begin
        while True:
            phase, cost = phase_at(step, self.data, self.phases), self.cost.at(step)
            mixture.set_weights(phase.weights)
            plan, waiting = self._fill(step, phase.frames, cost, mixture, waiting)
            if step >= start:
                packs = tuple(tuple(self._with_spares(item, phase.frames, cost) for item in p) for p in plan.packs)
                yield replace(plan, packs=packs)
            step += 1

    def check(self, steps: int) -> None:
        """Raises ValueError if the epochs that sources may be gone through do not last for `steps` steps."""
        if any(source.epochs is not None for source in self.data.sources.values()):
            next(self.steps(steps - 1))

    def _with_spares(self, item: Item, frames: FramesConfig, cost: CostModel) -> Item:
        source = self.sources[item.unit.source]
        found = (cost.item(source.stand_in(item.unit, i), frames) for i in range(self.TRIES))
        fitting = (spare for spare in found if spare.cost <= item.cost and spare.unit.key != item.unit.key)
        return replace(item, spares=tuple(islice(fitting, self.SPARES)))

    def _fill(
        self, step: int, frames: FramesConfig, cost: CostModel, mixture: Mixture, waiting: list[Unit]
    ) -> tuple[StepPlan, list[Unit]]:
        """Give each unit to the pack with the least work that has room; what fits nowhere opens the next step."""
        room = [float(self.data.tokens_per_pack)] * self.data.packs_per_step
        work = [0.0] * len(room)
        packs: list[list[Item]] = [[] for _ in room]
        too_long: list[Item] = []
        left: list[Unit] = []
        queue = iter(waiting)
        by_tokens = self.data.mixture == "tokens"

        def worth(unit: Unit) -> float:
            return cost.item(unit, frames).tokens if by_tokens else 1.0

        while len(left) < self.PATIENCE * len(packs):
            try:
                item = cost.item(next(queue, None) or mixture.draw(worth), frames)
            except UsedUp as error:
                if any(packs) or left or too_long:
                    break
                raise UsedUp(f"step {step}: {error}; raise data.sources.<name>.epochs or lower train.steps") from error
            if item.cost > self.data.tokens_per_pack:
                too_long.append(item)
                if len(too_long) > 1000:
                    raise ValueError(
                        f"step {step}: 1000 samples in a row need more than data.tokens_per_pack="
                        f"{self.data.tokens_per_pack} tokens (the last one {item.cost:.0f} with {item.num_frames} "
                        "frames); raise it or lower data.frames.max_frames"
                    )
                continue
            pack = min((i for i in range(len(packs)) if item.cost <= room[i]), key=work.__getitem__, default=None)
            if pack is None:
                left.append(item.unit)
                continue
            packs[pack].append(item)
            room[pack] -= item.cost
            work[pack] += item.work
        left.extend(queue)
        return StepPlan(step, frames, tuple(map(tuple, packs)), tuple(too_long)), left


def held_out(sources: dict[str, Source], data: DataConfig, cost: CostModel, samples: int, world: int) -> list[StepPlan]:
    """Held-out units in a fixed order, one pack a step and rank; the last steps may lack packs for some ranks.

    `samples` units as `drawn` does it.
    """
    packs: list[list[Item]] = []
    room = 0.0
    for unit in drawn(sources, samples):
        item = cost.item(unit, data.frames)
        if item.cost > room or not packs:
            packs.append([])
            room = float(data.tokens_per_pack)
        packs[-1].append(item)
        room -= item.cost
    groups = [packs[i : i + world] for i in range(0, len(packs), world)]
    return [StepPlan(i, data.frames, tuple(map(tuple, g))) for i, g in enumerate(groups)]


def drawn(sources: dict[str, Source], samples: int) -> list[Unit]:
    """`samples` units of all sources (0: all), always the same ones, in a fixed order."""
    units = [source[i] for source in sources.values() for i in range(len(source))]
    if 0 < samples < len(units):  # drawn, because every n-th may have something in common
        units = [units[i] for i in sorted(np.random.default_rng(0).permutation(len(units))[:samples])]
    return units
