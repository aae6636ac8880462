"""The only file that knows of sharding: activation checkpointing, then compile, then fully_shard."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from timeviper.config import ParallelConfig
from timeviper.model.mamba2 import Scan
from timeviper.model.viper import TimeViper


class ShardedModel(FSDPModule, nn.Module):
    """What `fully_shard` makes of a module, for type checkers: it is both."""


def sharded_units(model: nn.Module) -> list[nn.Module]:
    """Modules that are gathered one at a time: decoder blocks, transfer stages, encoder layers."""
    units: list[nn.Module] = []
    if isinstance(model, TimeViper):  # stage 0 has no blocks
        units += [*model.decoder.blocks, *model.decoder.transv.values()]
    for tower in getattr(model, "towers", {}).values():
        units.append(tower)
    return units


def parallelize(model: nn.Module, mesh: DeviceMesh, cfg: ParallelConfig) -> ShardedModel:
    """Apply the settings to a model in place. World size 1 takes the same path."""
    if isinstance(model, TimeViper):
        for i, block in enumerate(model.decoder.blocks):
            if cfg.activation_checkpointing:
                block = checkpoint_wrapper(block)
            if cfg.compile:
                block = cast(nn.Module, torch.compile(block))
            model.decoder.blocks[i] = block
    if cfg.replicas > 1:
        mesh = init_device_mesh(
            mesh.device_type,
            (cfg.replicas, mesh.size() // cfg.replicas),
            mesh_dim_names=("replicate", "shard"),
        )
    policy = MixedPrecisionPolicy(
        param_dtype=None if cfg.param_dtype == "float32" else getattr(torch, cfg.param_dtype),
        reduce_dtype=torch.float32,
    )
    if policy.param_dtype is not None:
        # A decay near 1 has no digits in bfloat16: the recurrence's few parameters keep float32.
        wide = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
        for scan in [module for module in model.modules() if isinstance(module, Scan)]:
            fully_shard(scan, mesh=mesh, mp_policy=wide)
    for unit in sharded_units(model):
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    return cast(ShardedModel, fully_shard(model, mesh=mesh, mp_policy=policy))
