"""Stops a run whose loss or gradient is no longer a number, naming the samples of the step."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl

from timeviper.datamodules.sample import StepBatch


class Guard(pl.Callback):
    """Raises FloatingPointError before the figures are logged or a checkpoint of bad weights is written.

    Must come before the checkpoint callback.
    """

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        figures = {k: float(pl_module.figures[k]) for k in ("loss", "grad_norm")}
        if all(math.isfinite(v) for v in figures.values()):
            return
        keys = [k for p in batch.packs for k in p.keys]
        raise FloatingPointError(
            f"step {batch.step}: loss {figures['loss']}, gradient norm {figures['grad_norm']} on rank "
            f"{trainer.global_rank}. The last checkpoint is from before this step. Lower optim.lr or look at "
            f"the samples of the step: {', '.join(keys[:8])}{' ...' if len(keys) > 8 else ''}"
        )
