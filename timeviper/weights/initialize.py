"""Fills a model that was made on the meta device and perhaps sharded since: tensor by tensor, row by row.

No process ever holds the whole model: of random numbers one module exists at a time (a vision encoder as a
whole), of a file the rows that this rank keeps. Every rank reads its own rows, so that nothing is sent, and all
ranks of a replica together read the file once. Only encoders are read whole, one after the other (SigLIP: 1.6 GB
for the time of loading), because transformers renames their tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Set
from pathlib import Path

import torch
from torch import Tensor, nn

from timeviper.config import DecoderConfig, LoraConfig, TowerConfig
from timeviper.model import lora
from timeviper.model.decoder import Decoder
from timeviper.model.int8 import SCALE
from timeviper.model.parts import is_adapter
from timeviper.model.vision.build import tower_class
from timeviper.parallel import local_part, plain_name, whole_of
from timeviper.weights.hub.convert import open_weights
from timeviper.weights.quantise import int8_rows
from timeviper.weights.tensors import TensorFolder

# Gives rows of a stored tensor.
Read = Callable[[slice], Tensor]


@torch.no_grad()
def fill(
    model: nn.Module, twin: nn.Module, stored: Mapping[str, Read], adapters: LoraConfig | None = None, seed: int = 0
) -> None:
    """Give every parameter and buffer of a model its first value: from `stored`, else at random.

    model: after `to_empty`. twin: the same model without adapters, on the meta device. The numbers are those that the
    constructors draw under `torch.manual_seed(seed)`, on any number of ranks.
    """
    targets: dict[str, Tensor] = {plain_name(name): p for name, p in model.named_parameters()}
    own = {name: tuple(p.shape) for name, p in targets.items() if is_adapter(name) and name not in stored}
    torch.manual_seed(seed)
    scales = {name: b for name, b in model.named_buffers() if name.endswith(f".{SCALE}")}
    scales = {plain_name(name).removesuffix(SCALE) + "weight": scale for name, scale in scales.items()}
    for name, tensor in random_tensors(twin, targets.keys() - own.keys() - stored.keys()):
        if name not in stored:
            _copy(targets[name], lambda rows, whole=tensor: whole[rows], name, scales.get(name))
    for name, read in stored.items():
        _copy(targets[name], read, name, scales.get(name))
    for name, tensor in lora.initial_tensors(own, adapters, seed) if adapters and own else ():
        _copy(targets[name], lambda rows, whole=tensor: whole[rows], name)
    for module in model.modules():
        if hasattr(module, "reset_buffers"):
            module.reset_buffers()  # pyright: ignore[reportCallIssue]


def _copy(target: Tensor, read: Read, name: str, scale: Tensor | None = None) -> None:
    """scale: of all rows of an int8 target, which the ranks that share it tell each other."""
    part, rows = local_part(target)
    if part.numel() == 0 and scale is None:
        return
    found = read(rows)
    if found.shape != part.shape:
        raise ValueError(f"{name}: stored rows are {list(found.shape)}, needed are {list(part.shape)}")
    if scale is not None:
        found, own = int8_rows(found)
        scale.copy_(whole_of(own, target))
    part.copy_(found)


def random_tensors(twin: nn.Module, needed: Set[str]) -> Iterator[tuple[str, Tensor]]:
    """(name, random values) in the order in which constructors draw them, up to the last of `needed`.

    Constructors fill inner modules first, so a name may come again with values that replace the first. Values
    that are not needed are drawn, too, where others come after them: that keeps the numbers of those the same.
    A tensor is valid until the next one is asked for: all modules are drawn in the same memory, that of the largest.
    """
    modules = list(_in_order_of_construction(twin, ""))
    awaited = [any(prefix + name in needed for name in _filled(module)) for prefix, module in modules]
    last = max((i for i, here in enumerate(awaited) if here), default=-1)
    filled = [(prefix, module, _filled(module)) for prefix, module in modules[: last + 1]]
    scratch = torch.empty(max((sum(p.numel() for p in own.values()) for _, _, own in filled), default=0))
    for prefix, module, own in filled:
        end = 0
        for name, p in own.items():
            start, end = end, end + p.numel()
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, nn.Parameter(scratch[start:end].view(p.shape)))
        module.reset_parameters()  # pyright: ignore[reportCallIssue]
        yield from ((prefix + name, p.detach()) for name, p in _filled(module).items())


def _in_order_of_construction(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """Modules that fill themselves, children before parents."""
    if not getattr(module, "built_empty", False):
        for name, child in module.named_children():
            yield from _in_order_of_construction(child, f"{prefix}{name}.")
    if hasattr(module, "reset_parameters"):
        yield prefix, module


def _filled(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a module's `reset_parameters` is for."""
    return dict(module.named_parameters(recurse=getattr(module, "fills_children", False)))


# ---- what files hold ------------------------------------------------------------------------------------


def from_folder(files: TensorFolder, names: Mapping[str, str], squeeze: Collection[str] = ()) -> dict[str, Read]:
    """Readers for our name -> stored name. `squeeze`: ours without their second axis, which has size 1.

    A reader raises ValueError for a NaN or an infinity.
    """

    def reader(name: str, place: str) -> Read:
        def read(rows: slice) -> Tensor:
            tensor = files.read_rows(place, rows)
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{files.path}: {place} holds NaN or infinity; the file is damaged")
            return tensor.squeeze(1) if name in squeeze else tensor

        return read

    return {name: reader(name, place) for name, place in names.items()}


def decoder_weights(path: Path, cfg: DecoderConfig) -> dict[str, Read]:
    """The decoder of a folder as `hub.open_weights` reads them. Raises ValueError as that does."""
    weights = open_weights(path, cfg)
    convs = {
        n for n, place in weights.found.items() if n.endswith("conv.weight") and len(weights.files.shape(place)) > 2
    }
    readers = from_folder(weights.files, weights.found, convs)
    return {f"decoder.{name}": read for name, read in readers.items()}


def tower_weights(name: str, cfg: TowerConfig, tower: nn.Module) -> dict[str, Read]:
    """A pretrained encoder: loaded when its first tensor is asked for, each tensor let go after its use."""
    state: dict[str, Tensor] = {}

    def reader(key: str) -> Read:
        def read(rows: slice) -> Tensor:
            if not state:
                state.update(tower_class(cfg.family).load_weights(cfg))
            return state.pop(key)[rows]

        return read

    return {f"towers.{name}.{key}": reader(key) for key in tower.state_dict()}


def transv_from_attention(decoder: Decoder, stored: Mapping[str, Read]) -> dict[str, Read]:
    """Transfers start as the attention that `Decoder.transv_origins` names, where a file holds it; gates as set."""
    origins = {f"decoder.{name}": f"decoder.{origin}" for name, origin in decoder.transv_origins().items()}
    found = {name: stored[origin] for name, origin in origins.items() if origin in stored}
    first = torch.full((1,), math.atanh(decoder.transv_cfg.gate))
    return found | {f"decoder.transv.{name}.alpha": lambda rows: first[rows] for name in decoder.transv}
