"""Which unit is read in which pack, by which rank, at which step: a pure function of the recipe.

Nothing here opens a shard: the indexes say all that is needed. Because the global step alone decides what is read, no
loader state is needed, a run continues exactly where it stopped, and another number of ranks or workers reads the same
global batches. States of the plan (`plan_state.py`) are shortcuts on the way to a step.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from itertools import accumulate
from typing import Protocol

import numpy as np

from timeviper.config import DataConfig, FramesConfig, PhaseConfig
from timeviper.config.curriculum import Phase, phase_at
from timeviper.datamodules.cost import CostModel, Item, SequenceShape
from timeviper.datamodules.mixture import UNIT, Mixture, Units, UsedUp
from timeviper.datamodules.order import Former, Listing, digest, listing_name
from timeviper.datamodules.packing import PATIENCE, fill
from timeviper.datamodules.plan_state import PlanState, canonical
from timeviper.datamodules.source import Source, Unit
from timeviper.datamodules.spares import chosen
from timeviper.datamodules.step_plan import LazyPacks, StepPlan

__all__ = ["CostModel", "Item", "Plan", "PlanState", "SequenceShape", "StepPlan", "drawn", "held_out"]

ORDER = 1  # raised whenever the same recipe and data come to give other steps
HOPELESS = 1000  # units too long for a pack in a step: the settings are wrong


class States(Protocol):
    """Keeps states of plans."""

    every: int
    """Units between two of them."""

    def nearest(self, step: int, plan: str) -> PlanState | None:
        """The last state of this plan that is not behind `step`."""
        ...

    def keep(self, state: PlanState, plan: str) -> None: ...


class Plan:
    """The whole order of a stage; `steps` begins at any of them, at a microsecond or two for each unit that lies
    between it and the nearest known state before it."""

    def __init__(
        self,
        sources: dict[str, Source],
        data: DataConfig,
        phases: dict[str, PhaseConfig],
        cost: CostModel,
        seed: int,
        *,
        states: States | None = None,
    ) -> None:
        """states: where states are looked for and kept."""
        self.sources, self.data, self.phases, self.cost, self.seed = sources, data, phases, cost, seed
        self.states = states
        self.go_on_from(None, {})
        self._names = sorted(sources)

    def go_on_from(self, origin: PlanState | None, formers: Mapping[str, Listing]) -> None:
        """Where the data have changed (`on_change.py`): what steps from `origin.step` on follow from.

        formers: listings of before, by name, that states speak of.
        """
        self.origin, self.formers = origin, dict(formers)

    def steps(self, start: int = 0, begin: int = 0) -> Iterator[StepPlan]:
        """Global steps from `start` on, for ever. begin: where the replay begins; other than 0, it gives steps like
        those of the run, and not the same ones."""
        return self._from(PlanState(begin), start, "") if begin else self._from(*self._nearest(start))

    def check(self, steps: int) -> None:
        """Raises ValueError if the epochs that sources may be gone through do not last for `steps` steps."""
        if any(source.epochs is not None for source in self.data.sources.values()):
            next(self.steps(steps - 1))

    def state(self, step: int) -> PlanState:
        """Where the plan stands before a step."""
        first = self._origin(step) or PlanState(0)
        if step == first.step:
            return first
        after = next(self.steps(step - 1)).after
        assert after is not None
        return after()

    def identity(self, step: int) -> str:
        """A digest of all that decides on `step`: what states of the way there must be of."""
        data, origin = self.data, self._origin(step)
        sources = {n: (data.sources[n].weight, data.sources[n].epochs, self._listings[n]) for n in self.sources}
        edges = sorted({0, *(p.start + p.ramp * i // 3 for p in self.phases.values() for i in range(4))})
        decides = {
            "order": (ORDER, PATIENCE, self.seed, origin.name if origin else ""),
            "data": (data.mixture, data.tokens_per_pack, data.packs_per_step, data.shuffle_window),
            "frames": asdict(data.frames),
            "sources": sources,
            "phases": {name: asdict(phase) for name, phase in self.phases.items()},
            "cost": self.cost.identity(),
            "shares": [self.cost.at(edge).vision_share for edge in edges],
        }
        return digest(canonical(decides))

    @cached_property
    def _listings(self) -> dict[str, str]:
        return {name: listing_name(source.listing) for name, source in self.sources.items()}

    # ---- the way to a step ------------------------------------------------------------------------------

    def _origin(self, step: int) -> PlanState | None:
        return self.origin if self.origin and step >= self.origin.step else None

    def _nearest(self, start: int) -> tuple[PlanState, int, str]:
        """The state to begin with, the step to come to, and the plan's identity if states are kept."""
        first = self._origin(start) or PlanState(0)
        if not self.states:
            return first, start, ""
        plan = self.identity(start)
        found = self.states.nearest(start, plan)
        return (found if found and found.step > first.step else first), start, plan

    def _from(self, state: PlanState, start: int, plan: str) -> Iterator[StepPlan]:
        mixture = self._mixture(state)
        waiting = self._waiting(state)
        step, frames, passed = state.step, None, 0
        while True:
            phase, cost = phase_at(step, self.data, self.phases), self.cost.at(step)
            mixture.set_weights(phase.weights)
            if phase.frames != frames:
                waiting = self._measure(mixture, waiting, cost, phase.frames)
                frames = phase.frames
            one = _Step(self, step, phase, cost, mixture, waiting)
            waiting = one.waiting
            passed += one.filled.seen
            due = plan and self.states and passed >= self.states.every
            if step >= start or due:
                after = self._state(step + 1, mixture, waiting)
                if due and self.states:
                    self.states.keep(after(), plan)
                    passed = 0
                if step >= start:
                    yield one.plan(after)
            step += 1

    def _mixture(self, state: PlanState) -> Mixture:
        data = self.data
        epochs = {name: source.epochs for name, source in data.sources.items()}
        formers = {
            name: Former(self.sources[name], self.formers[place.former])
            for name, place in state.standing.places.items()
            if place.former
        }
        return Mixture(self.sources, self.seed, data.shuffle_window, epochs, state.standing, formers)

    def _measure(self, mixture: Mixture, waiting: Units, cost: CostModel, frames: FramesConfig) -> Units:
        """What units measure in a phase, in the mixture and of those that wait."""
        sources = [self.sources[name] for name in self._names]
        by_tokens = (
            (lambda units: cost.of(units["frames"], units["text"])[0]) if self.data.mixture == "tokens" else None
        )
        mixture.set_measure(lambda source, rows: cost.measure(sources[source], rows, frames), by_tokens)
        waiting = waiting.copy()
        for number, source in enumerate(sources):
            (mine,) = np.nonzero(waiting["source"] == number)
            if len(mine):
                measured = cost.measure(source, waiting["row"][mine], frames)
                waiting["frames"][mine], waiting["text"][mine] = measured
        return waiting

    def _waiting(self, state: PlanState) -> Units:
        units = np.zeros(len(state.waiting), UNIT)
        units["source"] = [self._names.index(name) for name, _ in state.waiting]
        units["row"] = [row for _, row in state.waiting]
        return units

    def _state(self, step: int, mixture: Mixture, waiting: Units) -> Callable[[], PlanState]:
        standing = mixture.standing

        def state() -> PlanState:
            names = [self._names[number] for number in waiting["source"].tolist()]
            return PlanState(step, standing, tuple(zip(names, waiting["row"].tolist())))

        return state


class _Step:
    """One step as it is filled, in columns."""

    def __init__(self, plan: Plan, step: int, phase: Phase, cost: CostModel, mixture: Mixture, waiting: Units) -> None:
        """Draws from `mixture` what the packs take and what finds no room."""
        self.of, self.step, self.frames, self.cost, data = plan, step, phase.frames, cost, plan.data
        first = len(waiting)
        self.units: Units = np.concatenate([waiting, mixture.upcoming])
        _, costs, work = cost.of(self.units["frames"], self.units["text"])
        costs, self.work = costs.tolist(), work.tolist()

        def more() -> bool:
            known = len(mixture.upcoming)
            if not mixture.extend():
                return False
            new = mixture.upcoming[known:]
            _, added, work = cost.of(new["frames"], new["text"])
            costs.extend(added.tolist())
            self.work.extend(work.tolist())
            self.units = np.concatenate([self.units, new])
            return True

        too_long = 0

        def refuse(number: int) -> None:
            nonlocal too_long
            too_long += 1
            if too_long > HOPELESS:
                raise ValueError(
                    f"step {step}: {HOPELESS} samples in a row need more than data.tokens_per_pack="
                    f"{data.tokens_per_pack} tokens (the last one {costs[number]:.0f} with "
                    f"{self.units['frames'][number]} frames); raise it or lower data.frames.max_frames"
                )

        self.filled = filled = fill(costs, self.work, data.packs_per_step, float(data.tokens_per_pack), more, refuse)
        if filled.ended and not filled.seen:
            raise UsedUp(f"step {step}: {mixture.used_up()}; raise data.sources.<name>.epochs or lower train.steps")
        behind = np.arange(filled.seen, max(first, filled.seen))  # of those that waited: not even looked at
        self.waiting: Units = self.units[np.concatenate([np.array(filled.left, dtype=np.int64), behind])]
        mixture.draw(max(filled.seen - first, 0))

    def plan(self, after: Callable[[], PlanState]) -> StepPlan:
        work = tuple(sum(self.work[number] for number in pack) for pack in self.filled.packs)
        too_long = tuple(self._items(self.filled.too_long))
        numbers = self.units["source"][[number for pack in self.filled.packs for number in pack]]
        drawn = dict(zip(self.of._names, np.bincount(numbers, minlength=len(self.of._names)).tolist()))
        packs = LazyPacks(self.filled.packs, self._pack)
        return StepPlan(self.step, self.frames, packs, too_long, work, after, drawn)

    def _items(self, numbers: Sequence[int]) -> list[Item]:
        found: dict[int, Item] = {}
        for name, mine in self._by_source(numbers).items():
            units = self.of.sources[name].planned(self.units["row"][mine])
            sizes = self.units[["frames", "text"]][mine].tolist()
            found |= zip(mine, self.cost.items(units, self.frames, sizes))
        return [found[number] for number in numbers]

    def _by_source(self, numbers: Sequence[int]) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for number, source in zip(numbers, self.units["source"][[*numbers]].tolist()):
            found.setdefault(self.of._names[source], []).append(number)
        return found

    def _pack(self, numbers: list[int]) -> tuple[Item, ...]:
        items = dict(zip(numbers, self._items(numbers)))
        for name, mine in self._by_source(numbers).items():
            rows, those = self.units["row"][mine].tolist(), [items[number] for number in mine]
            found = chosen(self.of.sources[name], rows, those, self.cost, self.frames)
            items |= {number: replace(items[number], spares=spares) for number, spares in zip(mine, found)}
        return tuple(items.values())


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
    total = sum(map(len, sources.values()))
    numbers: Iterable[int] = range(total)
    if 0 < samples < total:  # drawn, because every n-th may have something in common
        numbers = sorted(np.random.default_rng(0).permutation(total)[:samples].tolist())
    return [*numbered(sources, numbers)]


def numbered(sources: Mapping[str, Source], numbers: Iterable[int]) -> Iterator[Unit]:
    """Units by their numbers through all sources; no others are made, of which there may be millions."""
    each = [*sources.values()]
    ends = [*accumulate(map(len, each))]
    for number in numbers:
        source = bisect_right(ends, number)
        yield each[source][number - ends[source] + len(each[source])]
