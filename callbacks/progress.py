"""What one sees while a stage trains: a live line on a terminal, a plain line every `every` steps elsewhere."""

from __future__ import annotations

import math
import time
from typing import Any, cast

import lightning.pytorch as pl

from timeviper.callbacks.throughput import Throughput
from timeviper.console import ProgressLine
from timeviper.training.module import ViperModule


class Progress(pl.Callback):
    """Loss, learning rate, speed, data wait and time left. Rank 0 only."""

    def __init__(self, name: str, steps: int, every: int, throughput: Throughput | None) -> None:
        """throughput: where the speed is read; None: it is not shown."""
        self.name, self.steps, self.every, self.throughput = name, steps, every, throughput

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.line = ProgressLine(every=0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = trainer.global_step
        self.line.begun = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if not trainer.is_global_zero or not (step % self.every == 0 or step == self.steps):
            return
        figures = {k: float(v) for k, v in cast(ViperModule, pl_module).figures.items()}
        rate = max(g["lr"] for g in trainer.optimizers[0].param_groups)
        bar = f"[{'=' * (20 * step // self.steps):<20}] " if self.line.live else ""
        self.line(
            f"{bar}{self.name} {step:>{len(str(self.steps))}}/{self.steps}  loss {figures['loss']:.4f}  "
            f"tokens right {figures['accuracy']:.3f}  lr {rate:.1e}{self._speed()}"
            f"{self.line.left(step - self._start, self.steps - step)}"
        )

    def _speed(self) -> str:
        speed = self.throughput.speed if self.throughput else {}
        if not speed:
            return ""
        mfu = f"  MFU {speed['mfu']:.1%}" if "mfu" in speed else ""
        return (
            f"  {speed['tokens_per_s']:,.0f} tok/s  {speed['frames_per_s']:,.0f} frames/s{mfu}"
            f"  data wait {speed['data_wait']:.1%}  {speed['memory_gb']:.1f} GB"
        )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero or trainer.sanity_checking or pl_module.validation_cut:
            return
        found = {k.removeprefix("val/"): float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        # An accuracy without a question is left out; a loss that is not a number is shown.
        told = {k: v for k, v in found.items() if k == "loss" or not math.isnan(v)}
        parts = [f"{k.removeprefix('accuracy/')} {v:.3f}" for k, v in told.items()]
        self.line.end()
        print(f"{self.name} {trainer.global_step} held out: {'  '.join(parts)}", flush=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.line.end()
