"""How fast the run is and what it waits for, over the last `log.every` steps."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import lightning.pytorch as pl
import torch

from timeviper.datamodules.sample import StepBatch


class Throughput(pl.Callback):
    """Keeps `speed`: tokens/s and frames/s of all ranks (at the decoder's input), data-wait share, step time."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.speed: dict[str, float] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._ended = time.perf_counter()
        self._clear()

    def _clear(self) -> None:
        self._began = self._ended
        self._wait = self._tokens = self._frames = 0.0
        self._steps = 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: StepBatch, *_: Any
    ) -> None:
        # What passed since the last step ended is time in which the loader was not ready.
        self._wait += time.perf_counter() - self._ended

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        self._tokens += sum(p.ids.shape[0] for p in batch.packs)
        self._frames += sum(p.num_frames for p in batch.packs)
        self._steps += 1
        self._ended = time.perf_counter()
        if trainer.global_step % self.every == 0:
            self._publish(trainer)
            self._clear()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking and hasattr(self, "_ended"):  # validation is not waiting for data
            self._ended = time.perf_counter()
            self._clear()

    def _publish(self, trainer: pl.Trainer) -> None:
        seconds = max(self._ended - self._began, 1e-9)
        self.speed = {
            "tokens_per_s": self._tokens * trainer.world_size / seconds,
            "frames_per_s": self._frames * trainer.world_size / seconds,
            "data_wait": self._wait / seconds,
            "step_s": seconds / max(self._steps, 1),
            "memory_gb": peak_memory_gb(),
        }
        for logger in trainer.loggers:
            logger.log_metrics({f"speed/{k}": v for k, v in self.speed.items()}, trainer.global_step)


def peak_memory_gb() -> float:
    """Peak memory of this process: of the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
