"""The LightningDataModule: recipe and shard indexes in, one `StepBatch` per optimizer step out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from timeviper.config import Recipe
from timeviper.config.curriculum import stretches
from timeviper.datamodules.build import build_plan, class_datasets, cost_model, load_sources, pack_format
from timeviper.datamodules.left_out import plan_step, steps_without
from timeviper.datamodules.loader import PlanSampler, make_loader, most_bytes
from timeviper.datamodules.plan import StepPlan, held_out
from timeviper.datamodules.reader import PackReader, Reading
from timeviper.datamodules.remote.block_cache import BlockCache
from timeviper.datamodules.turns import turns_note
from timeviper.pack import StepBatch
from timeviper.tokenizer import Tokenizer

log = logging.getLogger("timeviper")


class VideoDataModule(pl.LightningDataModule):
    """Training data that begins at `trainer.global_step`, and held-out data for validation."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer, left_out: frozenset[int] = frozenset()) -> None:
        """left_out: steps of the plan that are not read (see `left_out.py`)."""
        super().__init__()
        self.recipe, self.left_out = recipe, left_out
        self.before_reading: Callable[[], None] = lambda: None  # called just before the first training data are read
        form = pack_format(recipe)
        self.reading = Reading(recipe.data.workers)
        cache = BlockCache.of(recipe.data)
        classes = class_datasets(recipe.data.sources)
        self.reader = PackReader(tokenizer, form, classes, reading=self.reading, cache=cache)
        self.val_reader = PackReader(tokenizer, form, class_datasets(recipe.data.val), cache=cache)
        self.plan = build_plan(recipe, tokenizer)
        self.plan.check(plan_step(recipe.train.steps - 1, left_out) + 1)
        self.val_sources = load_sources(recipe.data.val, recipe.data.cache)
        self.cost = cost_model(recipe, tokenizer)

    def _loader(
        self, reader: PackReader, plans: Callable[[], Iterable[StepPlan]], workers: int, step_bytes: int
    ) -> DataLoader[StepBatch]:
        assert self.trainer is not None
        data, trainer = self.recipe.data, self.trainer
        sampler = PlanSampler(plans, trainer.global_rank, trainer.world_size)
        pin = trainer.strategy.root_device.type == "cuda"
        return make_loader(
            reader, sampler, workers, data.prefetch, pin, step_bytes=step_bytes, prefetch_gb=data.prefetch_gb
        )

    def train_dataloader(self) -> DataLoader[StepBatch]:
        assert self.trainer is not None
        self.before_reading()
        if note := turns_note(self.recipe, self.plan.sources):
            log.warning("%s", note)
        data, form = self.recipe.data, self.reader.form
        packs = -(-data.packs_per_step // self.trainer.world_size)
        starts = [start for start, _ in stretches(self.recipe.train)]
        share = min(self.cost.at(step).vision_share for step in [*starts, self.recipe.train.steps - 1])
        most = most_bytes(packs, data.tokens_per_pack, form.tokens_per_frame, share, form.image_size)
        return self._loader(self.reader, partial(self.steps, self.trainer.global_step), data.workers, most)

    def steps(self, start: int) -> Iterable[StepPlan]:
        """The steps of this run, from `start` on."""
        return steps_without(self.plan, start, self.left_out)

    def at_hand(self, step: int) -> str:
        """Which samples this rank is reading, or else which ones belong to its share of a step; for messages."""
        if reading := self.reading.now():
            return "Being read: " + ", ".join(f"{key} for {seconds:.0f} s" for key, seconds in reading)
        assert self.trainer is not None
        share = next(iter(self.steps(step))).share(self.trainer.global_rank, self.trainer.world_size)
        return "Samples of the step: " + ", ".join(item.unit.key for pack in share.packs for item in pack)

    def val_dataloader(self) -> DataLoader[StepBatch] | list:
        assert self.trainer is not None
        if not self.val_sources:
            return []
        samples, world = self.recipe.train.validate_samples, self.trainer.world_size
        plans = held_out(self.val_sources, self.recipe.data, self.cost, samples, world)
        return self._loader(self.val_reader, lambda: plans, 0, 0)
