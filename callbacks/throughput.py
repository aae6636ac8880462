"""How fast the run is, what it waits for, and which share of the GPUs' arithmetic it uses, over `log.every` steps.

    MFU = model FLOPs of the packs that all ranks trained on / (seconds * ranks * peak of one GPU)

Model FLOPs are those of `model/flops.py` for the real packs: every block on the tokens that TransV has left it, a
backward pass for what learns, nothing twice. The peak is the data sheet's for dense bfloat16 products, whatever the
run computes in.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import lightning.pytorch as pl
import torch
import torch.distributed as dist

from timeviper.config import Recipe
from timeviper.config.curriculum import trainable_at
from timeviper.config.shape import PackShape, segment_shapes
from timeviper.model.flops import model_flops, total
from timeviper.model.transv_stages import transv_in_use
from timeviper.pack import StepBatch
from timeviper.planning.hardware import gpu_of
from timeviper.training.module import ViperModule


class Throughput(pl.Callback):
    """Keeps `speed`, the figures of the last `log.every` steps; see docs/recipes.md for each."""

    def __init__(self, recipe: Recipe) -> None:
        options = recipe.callbacks.throughput
        self.recipe, self.every = recipe, recipe.log.every
        self.peak_tflops = options.peak_tflops if options else None
        self.speed: dict[str, float] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        device = trainer.strategy.root_device
        if self.peak_tflops is None and device.type == "cuda":
            gpu = gpu_of(torch.cuda.get_device_name(device))
            self.peak_tflops = gpu.bf16_tflops if gpu else None
        self._ended = time.perf_counter()
        self._clear()

    def _clear(self) -> None:
        self._began = self._ended
        self._wait = 0.0
        self._tokens = self._left = self._frames = self._flops = 0.0
        self._steps = 0

    @contextmanager
    def pause(self) -> Iterator[None]:
        """For work between two steps that is neither training nor waiting for data."""
        began = time.perf_counter()
        try:
            yield
        finally:
            if hasattr(self, "_ended"):
                passed = time.perf_counter() - began
                self._began += passed
                self._ended += passed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: StepBatch, *_: Any
    ) -> None:
        # What passed since the last step ended is time in which the loader was not ready.
        self._wait += time.perf_counter() - self._ended

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        self._count(pl_module, batch)
        self._steps += 1
        self._ended = time.perf_counter()
        if trainer.global_step % self.every == 0:
            self._publish(trainer)
            self._clear()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking and hasattr(self, "_ended"):  # validation is not waiting for data
            self._ended = time.perf_counter()
            self._clear()

    def _count(self, pl_module: pl.LightningModule, batch: StepBatch) -> None:
        """Add this rank's packs, with what TransV keeps at this step."""
        train = self.recipe.train
        learning = trainable_at(cast(ViperModule, pl_module).plan_step(batch.step), train)
        model = replace(self.recipe.model, transv=transv_in_use(pl_module, self.recipe.model.transv))
        for pack in batch.packs:
            shape = PackShape.of(pack)
            self._tokens += pack.ids.shape[0]
            self._frames += pack.num_frames
            self._flops += total(model_flops(model, shape, learning, train.objective, train.distill > 0)).total
            if train.objective == "answer":
                self._left += segment_shapes(model, shape)[-1].num_tokens

    def _publish(self, trainer: pl.Trainer) -> None:
        seconds = max(self._ended - self._began, 1e-9)
        sums = torch.tensor([self._tokens, self._left, self._frames, self._flops], dtype=torch.float64)
        if trainer.world_size > 1:
            sums = sums.to(trainer.strategy.root_device)
            dist.all_reduce(sums)
        tokens, left, frames, flops = (float(n) / seconds for n in sums)
        tflops = flops / trainer.world_size / 1e12
        self.speed = {
            "tokens_per_s": tokens,
            "tokens_left_per_s": left,
            "frames_per_s": frames,
            "tflops_per_gpu": tflops,
            "data_wait": self._wait / seconds,
            "step_s": seconds / max(self._steps, 1),
            "memory_gb": peak_memory() / 1e9,
        }
        if self.recipe.train.objective != "answer":
            del self.speed["tokens_left_per_s"]
        if self.peak_tflops is not None:
            self.speed["mfu"] = tflops / self.peak_tflops
        for logger in trainer.loggers:
            logger.log_metrics({f"speed/{k}": v for k, v in self.speed.items()}, trainer.global_step)


def peak_memory() -> int:
    """Bytes that this process held at most: of the GPU's allocator where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
