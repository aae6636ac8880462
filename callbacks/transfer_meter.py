"""Meters TransV while it trains, on fixed held-out samples; `inspection/transfer.py` defines the quantities."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import lightning.pytorch as pl
import torch
import torch.distributed as dist

from timeviper.callbacks.held_out import apart_from_training, fixed_plans, read_share
from timeviper.config.callbacks import TransferConfig
from timeviper.datamodules.datamodule import VideoDataModule
from timeviper.inspection.probe import gates
from timeviper.inspection.ranking import RankingSums, ranks, told
from timeviper.inspection.transfer import StageSums, Transferred, look_at, stages_of
from timeviper.model.viper import TimeViper

log = logging.getLogger("timeviper")


class TransferMeter(pl.Callback):
    """Logs `transv/...` every `callbacks.transfer.every` steps, and the gates alone where there are no held-out data.

    Warns once where a ranking keeps tokens that are worth less than as many random ones. Training is the same with and
    without it, to the last bit. All ranks take part, each with its share of the samples.
    """

    def __init__(self, options: TransferConfig, pause: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
        """pause: entered while it measures."""
        self.every, self.samples, self.pause = options.every, options.samples, pause
        self.figures: dict[str, float] = {}
        self.doubt, self.warned = RankingSums(), False

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step % self.every:
            return
        model = cast(TimeViper, pl_module.model)
        with self.pause():
            opened = {f"gate/{name.removeprefix('decoder.transv.')}": g for name, g in gates(model).items()}
            self.figures = opened | self._measure(trainer, model)
        self._warn(trainer, model)
        for logger in trainer.loggers:
            logger.log_metrics({f"transv/{k}": v for k, v in self.figures.items()}, trainer.global_step)

    def _measure(self, trainer: pl.Trainer, model: TimeViper) -> dict[str, float]:
        device = trainer.strategy.root_device
        # Named beforehand, so that ranks add up the same numbers whatever their packs are.
        found = Transferred({segment.name: StageSums() for segment in stages_of(model.decoder)})
        with apart_from_training(model, device):
            data = cast(VideoDataModule, cast(Any, trainer).datamodule)
            plans = fixed_plans(data, self.samples)
            for pack in read_share(data.val_reader, plans, trainer.global_rank, trainer.world_size):
                look_at(model, pack.to(device), found)
        sums = torch.tensor(found.numbers(), dtype=torch.float64)
        if trainer.world_size > 1:
            sums = sums.to(device)
            dist.all_reduce(sums)
        self.doubt = RankingSums.of(sums.tolist()[Transferred.BEFORE :])
        return found.figures(sums.tolist())

    def _warn(self, trainer: pl.Trainer, model: TimeViper) -> None:
        """Once, where tokens are chosen worse than by chance."""
        if self.warned or not self.doubt.worse_than_random():
            return
        self.warned = True
        if trainer.is_global_zero:
            ranked = [s for s in stages_of(model.decoder) if ranks(s)]
            log.warning("step %d: %s", trainer.global_step, told(self.doubt, ranked, self.figures))
