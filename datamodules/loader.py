"""Whole steps of one rank in the plan's order, read here or ahead in loader processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from timeviper.datamodules.ahead import Ahead, Bounds
from timeviper.datamodules.coming import Coming
from timeviper.datamodules.plan import StepPlan
from timeviper.datamodules.processes import Processes
from timeviper.datamodules.reader import PackReader
from timeviper.pack import StepBatch


class Loader:
    """One rank's share of each step, any number of times.

    `coming` gives steps that need not be there yet. Each of `workers` processes reads up to `prefetch` steps ahead of
    the one that was asked for last, and all of them together hold at most `prefetch_gb` of those, and a pack that is
    being put together; 0 workers: read here, when a step is asked for.
    """

    def __init__(
        self,
        reader: PackReader,
        plans: Callable[[], Iterable[StepPlan]],
        rank: int = 0,
        world: int = 1,
        *,
        workers: int = 0,
        prefetch: int = 2,
        prefetch_gb: float = 2.0,
        pin: bool = False,
        processes: Processes | None = None,
    ) -> None:
        """processes: that were started beforehand, with this reader; the first to go through the steps has them."""
        self.processes = processes
        self.reader, self.plans, self.rank, self.world, self.pin = reader, plans, rank, world, pin
        self.bounds = Bounds(prefetch * workers, prefetch_gb, workers)

    def __iter__(self) -> Iterator[StepBatch]:
        return (coming.read() for coming in self.coming())

    def coming(self) -> Iterator[Coming]:
        shares = (plan.share(self.rank, self.world) for plan in self.plans())
        if not self.bounds.workers:
            yield from (Coming(partial(self._here, share)) for share in shares)
            return
        ahead = Ahead(self.reader, shares, self.bounds, self.pin, self.processes)
        self.processes = None
        try:
            yield from ahead
        except GeneratorExit:  # nobody wants the rest; behind the last step, that one may still be on its way
            ahead.close()
            raise

    def _here(self, share: StepPlan) -> StepBatch:
        batch = self.reader[share]
        return batch.pin_memory() if self.pin else batch


class ComingSteps:
    """`Loader.coming` for Lightning; without a length, so that it counts steps and not epochs."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Coming]:
        return self.loader.coming()
