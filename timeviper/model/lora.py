"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) beside any linear map of a model.

    y = W x + b + (alpha / rank) B A dropout(x)

W and b are frozen; B starts at 0, so that an adapted model starts as the model itself, to the last bit.

Written here, not taken from peft, because peft puts each map into a wrapper under another name and the model into
a further one: stage hand-over, sharded checkpoints, parts, and every export go by the parameter's name. Here the
weight keeps its name and `lora_A`, `lora_B` stand beside it.
Letters: n inputs of a map, m outputs, r rank.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from timeviper.config import BLOCKS, LoraConfig
from timeviper.model.int8 import SCALE, whole
from timeviper.model.layers import Linear, linear
from timeviper.model.parts import is_adapter
from timeviper.model.projector import Projector
from timeviper.model.transv import Transfer


class LoraLinear(nn.Linear):
    """A linear map with an adapter; weight and bias are the very parameters of the map that it replaces."""

    weight_scale: Tensor | None

    def __init__(self, base: nn.Linear, cfg: LoraConfig) -> None:
        nn.Module.__init__(self)  # not Linear's: no second weight
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.scale, self.dropout = cfg.alpha / cfg.rank, cfg.dropout
        self.ends_block = isinstance(base, Linear) and base.ends_block
        device = base.weight.device
        self.register_buffer(SCALE, None)
        self.lora_A = nn.Parameter(torch.empty(cfg.rank, base.in_features, device=device))
        self.lora_B = nn.Parameter(torch.empty(base.out_features, cfg.rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., n]` -> `[..., m]`"""
        low = F.linear(F.dropout(x, self.dropout, self.training), self.lora_A)  # [..., r]
        adapted = self.scale * linear(low, self.lora_B, None, self.ends_block)
        return linear(x, self.weight, self.bias, self.ends_block, self.weight_scale) + adapted


def adaptable(model: nn.Module) -> Iterator[tuple[str, str]]:
    """(module name, target) of every linear map that may get an adapter, targets as in `config.LORA_TARGETS`."""
    for name, module in model.named_modules():
        if isinstance(module, Projector):
            yield from ((f"{name}.{i}", f"projector.{end}") for i, end in ((0, "in"), (2, "out")))  # 1 is GELU
            continue
        if isinstance(module, Transfer):
            kind, inside = "transv", name
        elif (letter := getattr(module, "letter", "")) in BLOCKS:
            kind, inside = BLOCKS[letter].name, f"{name}.mixer"
        else:
            continue
        for child, map_ in model.get_submodule(inside).named_children():
            if isinstance(map_, nn.Linear):
                yield f"{inside}.{child}", f"{kind}.{child.removesuffix('_proj')}"


def is_target(target: str, names: list[str]) -> bool:
    """Whether a list of targets has this one, by its own name or by its kind's."""
    return target in names or target.partition(".")[0] in names


def attach(model: nn.Module, cfg: LoraConfig) -> None:
    """Put adapters beside all maps that `cfg.targets` names; their values are still to be filled.

    Raises ValueError where a target has no map in this model.
    """
    if cfg.rank == 0:
        return
    places = list(adaptable(model))
    for wanted in cfg.targets:
        if not any(is_target(target, [wanted]) for _, target in places):
            there = ", ".join(sorted({target for _, target in places}))
            raise ValueError(f"model.lora.targets: this model has no {wanted} to adapt; it has {there}")
    for name, target in places:
        if is_target(target, cfg.targets):
            parent, _, child = name.rpartition(".")
            base = model.get_submodule(name)
            assert isinstance(base, nn.Linear)
            setattr(model.get_submodule(parent), child, LoraLinear(base, cfg))


def initial_tensors(shapes: Mapping[str, tuple[int, ...]], cfg: LoraConfig, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Adapters that add nothing yet, or those of the file `cfg.weights`, for the names and shapes of a model.

    A is uniform within n^-0.5, from a generator of its own: the rest of the model draws the numbers that it would
    without adapters. Raises ValueError where the file does not hold these adapters.
    """
    if cfg.weights:
        yield from load_adapter(Path(cfg.weights), shapes, cfg)
        return
    generator = torch.Generator().manual_seed(seed)
    for name, shape in shapes.items():
        tensor = torch.zeros(shape)  # lora_B: nothing is added yet
        if name.endswith("lora_A"):
            tensor.uniform_(-(shape[1] ** -0.5), shape[1] ** -0.5, generator=generator)
        yield name, tensor


class Merged(Mapping[str, Tensor]):
    """A state dict without adapters: `W + (alpha / rank) B A` where there is one, computed in float32. Weights in int8
    are what they stand for.

    A tensor is looked up, and merged, when it is asked for. `adapters` keeps those that were seen.
    """

    def __init__(self, state: Mapping[str, Tensor], cfg: LoraConfig) -> None:
        self.state, self.cfg = state, cfg
        self.names = [name for name in state if not is_adapter(name) and not name.endswith(f".{SCALE}")]
        self.adapters: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.state[name]
        base = name.removesuffix("weight")
        if tensor.dtype == torch.int8:
            tensor = whole(tensor, self.state[f"{base}{SCALE}"])
        if not name.endswith("weight") or f"{base}lora_A" not in self.state:
            return tensor
        a, b = (self.adapters.setdefault(k, self.state[k]) for k in (f"{base}lora_A", f"{base}lora_B"))
        return tensor.float().addmm(b.float(), a.float(), alpha=self.cfg.alpha / self.cfg.rank)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def save_adapter(path: Path, adapters: dict[str, Tensor], cfg: LoraConfig) -> None:
    """Adapters alone, a few MB, with the settings that they need."""
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {"rank": cfg.rank, "alpha": cfg.alpha, "targets": cfg.targets}
    save_file({k: t.contiguous() for k, t in adapters.items()}, path, metadata={"lora": json.dumps(settings)})


def load_adapter(path: Path, shapes: Mapping[str, tuple[int, ...]], cfg: LoraConfig) -> Iterator[tuple[str, Tensor]]:
    """The adapters of a file, one by one. Raises ValueError where they are not those of `shapes` and `cfg`."""
    try:
        file = safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"model.lora.weights: {path} is no adapter file ({error})") from error
    stored = json.loads((file.metadata() or {}).get("lora", "{}"))
    found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    wrong = [f"missing: {name}" for name in shapes if name not in found]
    wrong += [f"unexpected: {name}" for name in sorted(found) if name not in shapes]
    wrong += [f"{n} is {list(found[n])}, not {list(s)}" for n, s in shapes.items() if found.get(n, s) != s]
    if not math.isclose(stored.get("alpha", math.nan), cfg.alpha):
        wrong.insert(0, f"model.lora.alpha is {cfg.alpha:g}, the file was trained with {stored.get('alpha')}")
    if wrong:
        if len(wrong) > 5:
            wrong[5:] = [f"and {len(wrong) - 5} more"]
        raise ValueError("\n  ".join([f"{path} does not hold the adapters of model.lora:", *wrong]))
    for name in shapes:
        yield name, file.get_tensor(name)
