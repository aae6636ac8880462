"""Frozen linear maps in eight bits, as training keeps them: plain tensors, so that they are sharded like all others.

    y = (x Q^T) * s + b        Q int8 [m, n], s float32 [m]: a scale for each output

torchao's own tensor class does not go through FSDP2: it cannot be split (`aten.split` is not among its operations). So
the numbers are torchao's, but `weight` is an int8 parameter under the name that it always has, and `weight_scale` a
buffer beside it. Gathered, it takes the dtype of computation, in which -127 to 127 are exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALE = "weight_scale"
_INSIDE = ("decoder.blocks.", "decoder.transv.")


def quantisable(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """(name, map) of all linear maps that may be quantised: those of decoder blocks and transfers."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.startswith(_INSIDE):
            yield name, module


def frozen(model: nn.Module) -> list[nn.Linear]:
    """Those of them that do not learn."""
    return [module for _, module in quantisable(model) if not module.weight.requires_grad]


def make_room(model: nn.Module) -> None:
    """Let the frozen maps of a model without memory have int8 weights and scales, to be filled."""
    for module in frozen(model):
        weight = module.weight
        module.weight = nn.Parameter(torch.empty_like(weight, dtype=torch.int8), requires_grad=False)
        module.register_buffer(SCALE, torch.empty(len(weight), dtype=torch.float32, device=weight.device))


class Int8Map(torch.autograd.Function):
    """The map of a frozen weight. Autograd keeps the int8 weight, not what it is multiplied as."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x, weight, scale, bias, unneeded = inputs
        ctx.save_for_backward(weight, scale)
        if unneeded:
            return x.new_empty(*x.shape[:-1], len(weight))
        y = F.linear(x, weight.to(x.dtype)) * scale.to(x)
        return y if bias is None else y + bias.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight, scale), dy = ctx.saved_tensors, grads[0]
        dx = (dy * scale.to(dy)) @ weight.to(dy.dtype) if ctx.needs_input_grad[0] else None
        return dx, None, None, None, None


def whole(weight: Tensor, scale: Tensor) -> Tensor:
    """The float32 weight that an int8 one stands for."""
    return weight.float() * scale.float()[:, None]
