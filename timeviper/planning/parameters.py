"""Parameters by part and by sharded unit, counted on the real model, built without memory on the meta device."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import prod

from torch import nn

from timeviper.config import ParallelConfig, Recipe
from timeviper.model import int8
from timeviper.model.parts import part_of
from timeviper.parallel import sharding_plan
from timeviper.weights.export import meta_model

FLOAT32 = 4  # bytes of a master weight


@dataclass(frozen=True)
class ParameterCount:
    total: int = 0
    trainable: int = 0

    def __add__(self, other: ParameterCount) -> ParameterCount:
        return ParameterCount(self.total + other.total, self.trainable + other.trainable)


def parameter_counts(recipe: Recipe) -> dict[str, ParameterCount]:
    """Parameters of each part of the stage's model; tied weights count once."""
    return count_parameters(meta_model(recipe))


def count_parameters(model: nn.Module) -> dict[str, ParameterCount]:
    counts: dict[str, ParameterCount] = {}
    for name, p in model.named_parameters():
        part = part_of(name)
        count = ParameterCount(p.numel(), p.numel() if p.requires_grad else 0)
        counts[part] = counts.get(part, ParameterCount()) + count
    return counts


@dataclass(frozen=True)
class ShardedUnit:
    """Parameters that FSDP2 gathers and reduces together (one call of `fully_shard`)."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    trained: tuple[bool, ...]
    stored_bytes: tuple[int, ...]
    """Of an element of each parameter where it lives."""
    dtype_bytes: int
    """Of an element of a gathered parameter."""

    @property
    def gathered_bytes(self) -> int:
        return self.dtype_bytes * sum(map(prod, self.shapes))

    @property
    def trained_elements(self) -> int:
        return sum(prod(shape) for shape, trained in zip(self.shapes, self.trained) if trained)

    def shard_elements(self, shards: int) -> int:
        """Elements that learn of the largest shard."""
        return sum(_shard(shape, shards) for shape, learns in zip(self.shapes, self.trained) if learns)

    def shard_bytes(self, shards: int) -> int:
        """Bytes of the weights of the largest shard."""
        return sum(size * _shard(shape, shards) for shape, size in zip(self.shapes, self.stored_bytes))


def _shard(shape: tuple[int, ...], shards: int) -> int:
    """Elements of the largest part: a parameter is cut along its first dimension, rounded up."""
    return -(-shape[0] // shards) * prod(shape[1:])


def sharded_parameters(model: nn.Module, cfg: ParallelConfig) -> list[ShardedUnit]:
    """The units of `parallel.sharding_plan`, in its order; the root comes last. The model must not be sharded yet."""
    names = {module: name for name, module in model.named_modules()}
    short = cfg.frozen_dtype if cfg.frozen_dtype != "int8" else cfg.param_dtype
    frozen_bytes = 2 if short == "bfloat16" else FLOAT32
    bytes_of = {module.weight: 1 for module in int8.frozen(model)} if cfg.frozen_dtype == "int8" else {}
    taken: set[nn.Parameter] = set()
    units = []
    for unit in sharding_plan(model, cfg):
        params = list(dict.fromkeys(p for m in unit.modules for p in m.parameters() if p not in taken))
        taken.update(params)
        stored = tuple(FLOAT32 if p.requires_grad or p.ndim < 2 else bytes_of.get(p, frozen_bytes) for p in params)
        shapes = tuple(tuple(p.shape) for p in params)
        size = FLOAT32 if unit.dtype is None else unit.dtype.itemsize
        name = names[unit.modules[0]] or "root"
        units.append(ShardedUnit(name, shapes, tuple(p.requires_grad for p in params), stored, size))
    return units


def total(counts: dict[str, ParameterCount], parts: Collection[str] = ()) -> ParameterCount:
    """The sum over `parts`; none: over all."""
    return sum((c for part, c in counts.items() if not parts or part in parts), ParameterCount())
