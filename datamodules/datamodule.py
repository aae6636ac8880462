"""The LightningDataModule: recipe and shard indexes in, one `StepBatch` per optimizer step out."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from pathlib import Path

import lightning.pytorch as pl

from timeviper.config import Recipe
from timeviper.datamodules.build import build_plan, class_datasets, cost_model, load_sources, pack_format
from timeviper.datamodules.left_out import plan_step, steps_without
from timeviper.datamodules.loader import ComingSteps, Loader
from timeviper.datamodules.on_change import FILE as DATA
from timeviper.datamodules.on_change import DataRecord, follow
from timeviper.datamodules.plan import StepPlan, held_out
from timeviper.datamodules.plan_files import FILE as STATE
from timeviper.datamodules.plan_files import PlanFiles
from timeviper.datamodules.plan_state import PlanState
from timeviper.datamodules.processes import Processes
from timeviper.datamodules.reader import PackReader, Reading
from timeviper.datamodules.remote.block_cache import BlockCache
from timeviper.datamodules.turns import turns_note
from timeviper.tokenizer import Tokenizer

log = logging.getLogger("timeviper")


class VideoDataModule(pl.LightningDataModule):
    """Training data that begins at `trainer.global_step`, and held-out data for validation."""

    def __init__(
        self,
        recipe: Recipe,
        tokenizer: Tokenizer,
        left_out: frozenset[int] = frozenset(),
        checkpoint: tuple[Path, int] | None = None,
    ) -> None:
        """left_out: steps of the plan that are not read (see `left_out.py`). checkpoint: what the run continues from,
        and its step. ValueError where the data have changed since and `data.on_change` refuses that."""
        super().__init__()
        self.recipe, self.left_out = recipe, left_out
        self.before_reading: Callable[[], None] = lambda: None  # called just before the first training data are read
        form = pack_format(recipe)
        self.reading = Reading(recipe.data.workers)
        cache = BlockCache.of(recipe.data)
        classes = class_datasets(recipe.data.sources)
        self.reader = PackReader(tokenizer, form, classes, reading=self.reading, cache=cache)
        self.val_reader = PackReader(tokenizer, form, class_datasets(recipe.data.val), cache=cache)
        first = os.environ.get("RANK", "0") == "0"
        self.plan = build_plan(recipe, tokenizer, PlanFiles(Path(recipe.run_dir), write=first))
        self.changes = self._follow(*checkpoint) if checkpoint else []
        """What to tell of data that have changed since the checkpoint."""
        self._after: dict[int, Callable[[], PlanState]] = {}  # by the step of the run that follows
        self.plan.check(plan_step(recipe.train.steps - 1, left_out) + 1)
        self.val_sources = load_sources(recipe.data.val, recipe.data.cache, recipe.data.patience)
        self.cost = cost_model(recipe, tokenizer)
        self._started: Processes | None = None

    def start(self) -> None:
        """Have loader processes start, which takes them seconds, while the model is built."""
        if self.recipe.data.workers:
            self._started = Processes(self.reader, self.recipe.data.workers)

    def _loader(self, reader: PackReader, plans: Callable[[], Iterable[StepPlan]], workers: int) -> Loader:
        assert self.trainer is not None
        data, trainer = self.recipe.data, self.trainer
        return Loader(
            reader,
            plans,
            trainer.global_rank,
            trainer.world_size,
            workers=workers,
            prefetch=data.prefetch,
            prefetch_gb=data.prefetch_gb,
            pin=trainer.strategy.root_device.type == "cuda",
            processes=self._started if workers else None,
        )

    def train_dataloader(self) -> ComingSteps:
        assert self.trainer is not None
        self.before_reading()
        if note := turns_note(self.recipe, self.plan.sources):
            log.warning("%s", note)
        plans = partial(self.steps, self.trainer.global_step)
        loader = self._loader(self.reader, plans, self.recipe.data.workers)
        self._started = None
        return ComingSteps(loader)

    def steps(self, start: int) -> Iterator[StepPlan]:
        """The steps of this run, from `start` on; where the plan stands after each is remembered until it is past."""
        for planned in steps_without(self.plan, start, self.left_out):
            assert planned.after is not None
            self._after[planned.step + 1] = planned.after
            now = self.trainer.global_step if self.trainer else start
            for past in [step for step in self._after if step < now]:
                del self._after[past]
            yield planned

    def _follow(self, checkpoint: Path, step: int) -> list[str]:
        return follow(self.plan, checkpoint, self._place(step), self.recipe.data.on_change)

    def _place(self, step: int) -> int:
        """The step of the plan before which a checkpoint stands."""
        return plan_step(step - 1, self.left_out) + 1 if step else 0

    def beside(self, step: int) -> dict[str, str]:
        """What a checkpoint of this step notes of the data: files by name."""
        files = {DATA: self._record}
        if after := self._after.get(step):
            state = after()
            files[STATE] = state.encode(self.plan.identity(state.step))
        return files

    @cached_property
    def _record(self) -> str:
        return DataRecord.of(self.plan).encode()

    def at_hand(self, step: int) -> str:
        """Which samples this rank is reading, or else which ones belong to its share of a step; for messages."""
        if reading := self.reading.now():
            return "Being read: " + ", ".join(f"{key} for {seconds:.0f} s" for key, seconds in reading)
        assert self.trainer is not None
        share = next(steps_without(self.plan, step, self.left_out)).share(
            self.trainer.global_rank, self.trainer.world_size
        )
        return "Samples of the step: " + ", ".join(item.unit.key for pack in share.packs for item in pack)

    def val_dataloader(self) -> Loader | list:
        assert self.trainer is not None
        if not self.val_sources:
            return []
        samples, world = self.recipe.train.validate_samples, self.trainer.world_size
        plans = held_out(self.val_sources, self.recipe.data, self.cost, samples, world)
        return self._loader(self.val_reader, lambda: plans, 0)
