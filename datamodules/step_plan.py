"""What is read in one optimizer step, and which rank reads what of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

from timeviper.config import FramesConfig
from timeviper.datamodules.cost import Item
from timeviper.datamodules.plan_state import PlanState


@dataclass(frozen=True)
class StepPlan:
    """One optimizer step, or one rank's share of it."""

    step: int
    frames: FramesConfig
    packs: Sequence[tuple[Item, ...]]
    """Of a whole step each is made when it is asked for."""
    too_long: tuple[Item, ...] = ()
    """Units that no pack can hold; reported as skipped."""
    work: tuple[float, ...] = ()
    """Of each pack, where it is known; else it is added up from the items."""
    after: Callable[[], PlanState] | None = None
    """Where the plan stands then; of a whole step."""
    drawn: Mapping[str, int] = field(default_factory=dict)
    """Units in the packs, by source; of a whole step."""

    def share(self, rank: int, world: int) -> StepPlan:
        """The packs of one rank: dealt from the most work down, back and forth, so that sums are close."""
        work = self.work or [sum(item.work for item in pack) for pack in self.packs]
        order = sorted(range(len(work)), key=lambda i: -work[i])
        rounds = [order[i : i + world] for i in range(0, len(order), world)]
        seats = [(r, rank if k % 2 == 0 else world - 1 - rank) for k, r in enumerate(rounds)]
        packs = tuple(self.packs[r[seat]] for r, seat in seats if seat < len(r))
        return StepPlan(self.step, self.frames, packs, self.too_long if rank == 0 else ())


class LazyPacks(Sequence[tuple[Item, ...]]):
    """Packs that are made when they are asked for: a rank wants its own alone."""

    def __init__(self, packs: list[list[int]], make: Callable[[list[int]], tuple[Item, ...]]) -> None:
        self._packs, self._make = packs, make
        self._made: dict[int, tuple[Item, ...]] = {}

    def __len__(self) -> int:
        return len(self._packs)

    @overload
    def __getitem__(self, index: int) -> tuple[Item, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[tuple[Item, ...]]: ...
    def __getitem__(self, index: int | slice) -> tuple[Item, ...] | Sequence[tuple[Item, ...]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        if index not in self._made:
            self._made[index] = self._make(self._packs[index])
        return self._made[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)
