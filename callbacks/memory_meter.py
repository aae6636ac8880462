"""What fills the memory of a rank: parameters, gradients and optimizer state by part of the model, and the rest.

Bytes of this rank's shards, the largest over all ranks, in GB (10^9 bytes, as `timeviper plan` counts). The peak is
of the run so far: on a GPU what the allocator gave out, and what is left of it after the three is activations, gathered
weights and workspaces; on a CPU the resident memory of the process, whose rest also holds Python, libraries and frames.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from timeviper.callbacks.throughput import peak_memory
from timeviper.config import PARTS, ModelConfig, Recipe
from timeviper.config.shape import PackShape, mean_tokens
from timeviper.model.parts import part_of
from timeviper.model.transv_stages import transv_in_use
from timeviper.pack import StepBatch
from timeviper.parallel import plain_name
from timeviper.planning.memory import peak_memory as planned_memory
from timeviper.planning.parameters import sharded_parameters
from timeviper.weights.export import meta_model

HELD = ("parameters", "gradients", "optimizer")


class MemoryMeter(pl.Callback):
    """Logs `memory_gb/<what>/<part>` after the first step and then every `callbacks.memory.every` steps.

    `memory_gb/planned` is what `planning.memory` expects of the fullest pack so far (most tokens, mean over blocks),
    without the reserve and fragmentation that `timeviper plan` adds: to be compared with `memory_gb/peak` on a GPU.
    """

    def __init__(self, recipe: Recipe) -> None:
        options = recipe.callbacks.memory
        assert options is not None
        self.recipe, self.every = recipe, options.every
        self.figures: dict[str, float] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._units = sharded_parameters(meta_model(self.recipe), self.recipe.parallel)
        self._fullest: tuple[float, ModelConfig, PackShape] | None = None
        self._gradients: dict[str, int] | None = None
        self._begun = False

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Gradients are gone when the step has ended."""
        self._gradients = None
        if not self._begun or (trainer.global_step + 1) % self.every == 0:
            grads = ((name, p.grad) for name, p in _named(pl_module) if p.grad is not None)
            self._gradients = _bytes_by_part(grads)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        model = replace(self.recipe.model, transv=transv_in_use(pl_module, self.recipe.model.transv))
        for pack in batch.packs:
            shape = PackShape.of(pack)
            tokens = mean_tokens(model, shape)
            if self._fullest is None or tokens > self._fullest[0]:
                self._fullest = (tokens, model, shape)
        self._begun = True
        if self._gradients is not None:
            self._measure(trainer, pl_module, len(batch.packs))

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule, packs: int) -> None:
        held = {
            "parameters": _bytes_by_part(_named(pl_module)),
            "gradients": self._gradients or {},
            "optimizer": _bytes_by_part(_optimizer_tensors(pl_module, trainer.optimizers[0])),
        }
        parts = [part for part in PARTS if part in held["parameters"]]
        bytes_of = {f"{what}/{part}": held[what].get(part, 0) for what in HELD for part in parts}
        here = 0 if self.recipe.parallel.offload_params and torch.cuda.is_available() else sum(bytes_of.values())
        peak = peak_memory()
        bytes_of |= {"peak": peak, "rest": max(peak - here, 0), "planned": self._planned(trainer, packs)}
        values = torch.tensor(list(bytes_of.values()), dtype=torch.float64)
        if trainer.world_size > 1:
            values = values.to(trainer.strategy.root_device)
            dist.all_reduce(values, op=dist.ReduceOp.MAX)
        self.figures = {name: float(v) / 1e9 for name, v in zip(bytes_of, values)}
        for logger in trainer.loggers:
            logger.log_metrics({f"memory_gb/{k}": v for k, v in self.figures.items()}, trainer.global_step)

    def _planned(self, trainer: pl.Trainer, packs: int) -> int:
        assert self._fullest is not None
        _, model, shape = self._fullest
        device = "cuda" if trainer.strategy.root_device.type == "cuda" else "cpu"
        recipe = replace(self.recipe, model=model)
        return round(planned_memory(recipe, self._units, shape, trainer.world_size, packs, device).peak.bytes)


def _named(pl_module: pl.LightningModule) -> Iterator[tuple[str, Tensor]]:
    for name, p in cast(nn.Module, pl_module.model).named_parameters():
        yield plain_name(name), p


def _optimizer_tensors(pl_module: pl.LightningModule, optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    for name, p in _named(pl_module):
        for value in optimizer.state.get(p, {}).values():
            if isinstance(value, Tensor):
                yield name, value


def _bytes_by_part(named: Iterator[tuple[str, Tensor]]) -> dict[str, int]:
    """Bytes of this rank's share of tensors, by the part of the model that their parameter belongs to."""
    found: dict[str, int] = defaultdict(int)
    for name, tensor in named:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        found[part_of(name)] += local.nbytes
    return dict(found)
