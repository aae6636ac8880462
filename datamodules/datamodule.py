"""The LightningDataModule: recipe and shard indexes in, one `StepBatch` per optimizer step out."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import lightning.pytorch as pl
from torch.utils.data import DataLoader, Sampler

from timeviper.config import Recipe, SourceConfig
from timeviper.datamodules.chat import estimate_tokens
from timeviper.datamodules.dataset_class import ClassDataset
from timeviper.datamodules.mixture import Source
from timeviper.datamodules.plan import CostModel, Plan, StepPlan, held_out, kept_share
from timeviper.datamodules.reader import PackFormat, PackReader
from timeviper.datamodules.sample import StepBatch
from timeviper.datamodules.shard_index import load_index
from timeviper.tokenizer import Tokenizer


class PlanSampler(Sampler[StepPlan]):
    """One rank's shares, in order. Without a length, so that Lightning counts steps and not epochs."""

    def __init__(self, plans: Callable[[], Iterable[StepPlan]], rank: int, world: int) -> None:
        self.plans, self.rank, self.world = plans, rank, world

    def __iter__(self) -> Iterator[StepPlan]:
        return (plan.share(self.rank, self.world) for plan in self.plans())


def pack_format(recipe: Recipe) -> PackFormat:
    """How this recipe shows samples to its model."""
    towers = [t for t in recipe.model.towers.values() if t is not None]
    stages = [s for s in recipe.model.transv.stages.values() if s is not None]
    return PackFormat(
        chat=recipe.chat,
        image_size=max(t.image_size for t in towers),
        tokens_per_frame=sum(t.tokens for t in towers),
        max_tokens=recipe.model.decoder.max_tokens,
        supervise="last" if any(s.select == "attention" for s in stages) else "all",
    )


def cost_model(recipe: Recipe, tokenizer: Tokenizer) -> CostModel:
    form = pack_format(recipe)
    return CostModel(
        tokens_per_frame=form.tokens_per_frame,
        vision_share=kept_share(recipe.model.transv, len(recipe.model.decoder.layout)),
        estimate=partial(_estimate, tokenizer=tokenizer, chat=recipe.chat, tokens_per_frame=form.tokens_per_frame),
    )


def _estimate(text_bytes: int, num_frames: int, *, tokenizer: Tokenizer, chat, tokens_per_frame: int) -> int:
    """Text tokens only: the estimate of the chat form less its vision tokens."""
    total = estimate_tokens(tokenizer, text_bytes, num_frames, tokens_per_frame, chat)
    return total - num_frames * tokens_per_frame


def load_sources(configs: dict[str, SourceConfig | None]) -> dict[str, Source]:
    """Read the shard indexes of all sources.

    Raises ValueError that names the source and what is missing.
    """
    sources = {}
    for name, config in configs.items():
        if config is None:
            continue
        types = {t.strip() for t in config.types.split(",") if t.strip()}
        try:
            dataset = class_dataset(config)
            sources[name] = Source(name, [dataset.index()] if dataset else load_index(config.shards), types or None)
        except ValueError as error:
            raise ValueError(f"data source {name!r}: {error}") from error
    return sources


def class_dataset(config: SourceConfig) -> ClassDataset | None:
    return ClassDataset(config.dataset, config.options) if config.dataset else None


def class_datasets(configs: dict[str, SourceConfig | None]) -> dict[str, ClassDataset]:
    """The sources that are Python classes, by name."""
    return {name: made for name, config in configs.items() if config and (made := class_dataset(config))}


def build_plan(recipe: Recipe, tokenizer: Tokenizer) -> Plan:
    """The whole data order of a recipe."""
    return Plan(
        load_sources(recipe.data.sources),
        recipe.data,
        recipe.train.phases,
        cost_model(recipe, tokenizer),
        recipe.seed,
    )


def _ignore_signals(_: int) -> None:
    """Loader processes leave Ctrl-C and SIGTERM to the training process, which stops them when it has saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def make_loader(
    reader: PackReader, sampler: PlanSampler, workers: int, prefetch: int, pin: bool
) -> DataLoader[StepBatch]:
    """A loader whose items are whole steps; several processes keep the order of the sampler."""
    return DataLoader(
        reader,
        sampler=sampler,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        worker_init_fn=_ignore_signals,
        pin_memory=pin,
        # Forked loaders would inherit the locks of torch's threads and of the process group.
        multiprocessing_context="spawn" if workers else None,
    )


class VideoDataModule(pl.LightningDataModule):
    """Training data that begins at `trainer.global_step`, and held-out data for validation."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.recipe = recipe
        form = pack_format(recipe)
        self.reader = PackReader(tokenizer, form, class_datasets(recipe.data.sources))
        self.val_reader = PackReader(tokenizer, form, class_datasets(recipe.data.val))
        self.plan = build_plan(recipe, tokenizer)
        self.plan.check(recipe.train.steps)
        self.val_sources = load_sources(recipe.data.val)
        self.cost = cost_model(recipe, tokenizer)

    def _loader(
        self, reader: PackReader, plans: Callable[[], Iterable[StepPlan]], workers: int
    ) -> DataLoader[StepBatch]:
        assert self.trainer is not None
        sampler = PlanSampler(plans, self.trainer.global_rank, self.trainer.world_size)
        pin = self.trainer.strategy.root_device.type == "cuda"
        return make_loader(reader, sampler, workers, self.recipe.data.prefetch, pin)

    def train_dataloader(self) -> DataLoader[StepBatch]:
        assert self.trainer is not None
        start = self.trainer.global_step
        return self._loader(self.reader, partial(self.plan.steps, start), self.recipe.data.workers)

    def val_dataloader(self) -> DataLoader[StepBatch] | list:
        assert self.trainer is not None
        if not self.val_sources:
            return []
        samples, world = self.recipe.train.validate_samples, self.trainer.world_size
        plans = held_out(self.val_sources, self.recipe.data, self.cost, samples, world)
        return self._loader(self.val_reader, lambda: plans, 0)
