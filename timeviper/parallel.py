"""The only file that knows of sharding: activation checkpointing and offloading, compile, then fully_shard."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import ActivationWrapper
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from timeviper.config import BLOCKS, ParallelConfig
from timeviper.errors import ConfigError, Problem
from timeviper.model import int8
from timeviper.model.decoder import Block
from timeviper.model.layers import RMSNorm
from timeviper.model.mamba2 import Scan
from timeviper.model.transv import Transfer
from timeviper.model.viper import TimeViper
from timeviper.offload import HostActivations, Schedule

_SHARDING = "torch.distributed.fsdp"  # where its hooks are defined


class ShardedModel(FSDPModule, nn.Module):
    """What `fully_shard` makes of a module, for type checkers: it is both."""

    reduce_every_pack: bool
    """`ParallelConfig.reduce_every_pack`, for `step.accumulate`."""


def parallelize(model: nn.Module, mesh: DeviceMesh, cfg: ParallelConfig) -> ShardedModel:
    """Apply the settings to a model in place, also on the meta device. World size 1 takes the same path.

    Raises ConfigError where the ranks cannot be cut into `replicas`.
    """
    if mesh.size() % cfg.replicas:
        message = f"must divide the {mesh.size()} ranks: each replica is sharded over equally many."
        raise ConfigError("sharding", [Problem("parallel.replicas", cfg.replicas, message)])
    if cfg.frozen_dtype == "int8":
        int8.make_room(model)
        _shorten_frozen(model, getattr(torch, cfg.param_dtype))
    elif cfg.frozen_dtype != "float32":
        _shorten_frozen(model, getattr(torch, cfg.frozen_dtype))
    wrap_blocks(model, cfg)
    if cfg.replicas > 1:
        shape = (cfg.replicas, mesh.size() // cfg.replicas)
        mesh = init_device_mesh(mesh.device_type, shape, mesh_dim_names=("replicate", "shard"))
    offload = CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu") if cfg.offload_params else OffloadPolicy()
    reduced = None if cfg.param_dtype == "float32" else torch.float32  # None: as they are
    for unit in sharding_plan(model, cfg):
        # Inputs are not cast: they have the dtype already, and casting hands a module copies of dataclasses. A pack
        # would have forgotten its counts, and what a block writes into its state would be lost.
        policy = MixedPrecisionPolicy(param_dtype=unit.dtype, reduce_dtype=reduced, cast_forward_inputs=False)
        modules = unit.modules if len(unit.modules) > 1 else unit.modules[0]
        fully_shard(modules, mesh=mesh, mp_policy=policy, offload_policy=offload)  # pyright: ignore[reportCallIssue,reportArgumentType]
    sharded = cast(ShardedModel, model)
    sharded.reduce_every_pack = cfg.reduce_every_pack
    return sharded


def wrap_blocks(model: nn.Module, cfg: ParallelConfig) -> None:
    """Compile, checkpoint and offload, as far as `cfg` says, in place."""
    host = Schedule()
    if cfg.compile:
        # One piece of code is compiled for every kind of block, with and without gradients, for keys and for queries.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    for parent, name, kind in list(_blocks(model)):
        block = parent.get_submodule(name)
        if cfg.compile and kind not in ("tower", "projector", "transv"):
            # In place, and inside of the checkpoint, because the scan breaks the graph; packs differ in length.
            block.compile(dynamic=True)
        if kind in cfg.checkpointed:
            block = InPieces(block, cfg.tokens_per_piece)
        if cfg.offload_activations:
            block = HostActivations(block, host)
        parent.register_module(name, block)


def home(device: torch.device, cfg: ParallelConfig) -> torch.device:
    """Where the parameters live between their uses, for a rank that computes on `device`."""
    return torch.device("cpu") if cfg.offload_params else device


# ---- units ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unit:
    """Modules whose parameters are gathered and reduced together: one call of `fully_shard`."""

    modules: list[nn.Module]
    dtype: torch.dtype | None
    """Of the gathered parameters; None: as stored (float32)."""


def sharding_plan(model: nn.Module, cfg: ParallelConfig) -> list[Unit]:
    """The units in the order in which they are made; each takes the parameters that those before it left.

    A decoder block, a transfer and a whole encoder are units (an encoder may run several times a step, on one
    rank more often than on another, so that its layers must not gather one by one). The root comes last.
    """
    if cfg.param_dtype == "float32":
        return [Unit([unit], None) for unit in (*sharded_units(model), model)]
    narrow = getattr(torch, cfg.param_dtype)
    plan = []
    for unit in sharded_units(model):
        wide: list[nn.Module] = [m for m in unit.modules() if isinstance(m, (Scan, RMSNorm))]
        if isinstance(inner := unwrapped(unit), Transfer):
            # Its gate is its own parameter: the short type is for the projections.
            plan += [Unit([inner.q_proj, inner.k_proj, inner.v_proj, inner.o_proj], narrow), Unit([unit], None)]
        else:
            # A decay near 1 has no digits in bfloat16, and gains near 1 have few: these keep float32.
            if wide:
                plan.append(Unit(wide, None))
            plan.append(Unit([unit], narrow))
    final = [model.decoder.norm_f] if isinstance(model, TimeViper) else []
    return [*plan, *(Unit([norm], None) for norm in final), Unit([model], narrow)]


def sharded_units(model: nn.Module) -> list[nn.Module]:
    """Modules that are gathered one at a time: decoder blocks, transfers, encoders."""
    units: list[nn.Module] = []
    if isinstance(model, TimeViper):  # stage 0 has no blocks
        units += [*model.decoder.blocks, *model.decoder.transv.values()]
    return [*units, *cast(Any, getattr(model, "towers", nn.ModuleDict())).values()]


def _blocks(model: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """(parent, name, type) of everything that activation checkpointing can wrap."""
    if isinstance(model, TimeViper):
        for name, block in model.decoder.blocks.named_children():
            yield model.decoder.blocks, name, BLOCKS[cast(Block, block).letter].name
        for name in model.decoder.transv:
            yield model.decoder.transv, name, "transv"
    for part, kind in (("towers", "tower"), ("projectors", "projector")):
        modules = cast(nn.ModuleDict, getattr(model, part, nn.ModuleDict()))
        yield from ((modules, name, kind) for name in modules)


def _shorten_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep frozen matrices in a shorter type; vectors (gains, biases, decays) stay as they are."""
    for p in model.parameters():
        if not p.requires_grad and p.ndim > 1 and p.is_floating_point():
            p.data = p.data.to(dtype)


# ---- wrappers -------------------------------------------------------------------------------------------


class InPieces(ActivationWrapper):
    """Activation checkpointing: keeps a module's input, and lets it compute again `size` tokens at a time.

    A module offers that as `in_pieces` (see `model/pieces.py`).
    """

    def __init__(self, module: nn.Module, size: int) -> None:
        super().__init__(module)
        self.size = size

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        inner = cast(Any, self._checkpoint_wrapped_module)
        tensors = (t for t in (*args, *inner.parameters()) if isinstance(t, Tensor))
        if not torch.is_grad_enabled() or not any(t.requires_grad for t in tensors):
            return inner(*args, **kwargs)
        return inner.in_pieces(self.size, self.weights, *args, **kwargs)

    @contextmanager
    def weights(self) -> Iterator[None]:
        """Parameters of sharded modules inside exist in full meanwhile, and calls of them neither gather nor reduce.

        Ranks have packs, and so pieces, of different numbers, but must communicate alike: the parameters of this module
        itself are gathered around its passes; those of units within (what stays in float32) are gathered here, once a
        pass, and their gradients are reduced at the end of the backward pass.
        """
        units = [cast(ShardedModel, m) for m in self._checkpoint_wrapped_module.modules() if isinstance(m, FSDPModule)]
        for unit in units:
            unit.unshard()
        try:
            with _without_sharding_hooks(units):
                yield
        finally:
            for unit in units:
                unit.reshard()


@contextmanager
def _without_sharding_hooks(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Other people's hooks stay: those that look for a value that is not a number, for one."""

    def others(hooks: Mapping[int, Any]) -> OrderedDict[int, Any]:
        return OrderedDict((i, hook) for i, hook in hooks.items() if not hook.__module__.startswith(_SHARDING))

    before = [(m, m._forward_pre_hooks, m._forward_hooks) for m in modules]
    for m, pre, post in before:
        m._forward_pre_hooks, m._forward_hooks = others(pre), others(post)
    try:
        yield
    finally:
        for m, pre, post in before:
            m._forward_pre_hooks, m._forward_hooks = pre, post


def unwrapped(module: nn.Module) -> nn.Module:
    while isinstance(module, ActivationWrapper):
        module = module._checkpoint_wrapped_module
    return module


def plain_name(name: str) -> str:
    """A parameter's name as the model without wrappers has it."""
    return name.replace("_checkpoint_wrapped_module.", "")


# ---- tensors, whole and in part -------------------------------------------------------------------------


def whole_here(tensor: Tensor) -> Tensor:
    """The tensor as one device holds it where it is shared with no other, with the same storage; else as it is."""
    if isinstance(tensor, DTensor) and tensor.device_mesh.size() == 1:
        return tensor.to_local()
    return tensor


def local_part(tensor: Tensor) -> tuple[Tensor, slice]:
    """What this rank holds of a tensor, and which rows of the whole that is (`fully_shard` cuts like `torch.chunk`)."""
    if not isinstance(tensor, DTensor):
        return tensor, slice(0, len(tensor) if tensor.ndim else None)
    assert tensor.placements[-1] == Shard(0), tensor.placements
    rows, mesh = tensor.shape[0], tensor.device_mesh
    each = -(-rows // mesh.size(mesh.ndim - 1))
    start = min(mesh.get_local_rank(mesh.ndim - 1) * each, rows)
    local = tensor.to_local()
    assert len(local) == min(start + each, rows) - start
    return local, slice(start, start + len(local))


def whole_of(rows: Tensor, like: Tensor) -> Tensor:
    """What all ranks together have for the rows of a tensor `like`, from the values `[r]` of this rank's rows.

    Every rank must call it for the same tensors in the same order.
    """
    if not isinstance(like, DTensor):
        return rows
    mesh = like.device_mesh
    there = rows.to(mesh.device_type)
    return DTensor.from_local(there, mesh, like.placements, shape=like.shape[:1], stride=(1,)).full_tensor()


class WholeTensors(Mapping[str, Tensor]):
    """The state dict of a model, each tensor gathered when it is looked up, on the CPU.

    Every rank must look up the same tensors in the same order. No rank holds more than one, unless it keeps them.
    """

    def __init__(self, model: nn.Module) -> None:
        self.state: dict[str, Tensor] = model.state_dict()

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.state[name].detach()
        if isinstance(tensor, DTensor):
            # Offloaded shards are gathered where the process group works.
            tensor = cast(DTensor, tensor.to(tensor.device_mesh.device_type)).full_tensor()
        return tensor.cpu()

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)
