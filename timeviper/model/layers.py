"""The small parts of every block: linear maps, norms and MLPs.

Each module fills its own weights in `reset_parameters`, which `initialize.py` calls for a model that was made on
the meta device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timeviper.kernels.norm import gated_rms_norm, rms_norm
from timeviper.model.int8 import SCALE, Int8Map

_for_gradients = False


@contextmanager
def for_gradients() -> Iterator[None]:
    """Maps that end a block give rubbish meanwhile, but right gradients.

    A block that is computed again for its backward pass needs everything but its own result: half of an MLP.
    """
    global _for_gradients
    before, _for_gradients = _for_gradients, True
    try:
        yield
    finally:
        _for_gradients = before


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, ends_block: bool, scale: Tensor | None = None) -> Tensor:
    """`[..., n]` -> `[..., m]`; see `for_gradients`. scale `[m]`: of an int8 weight."""
    if scale is not None:
        return Int8Map.apply(x, weight, scale, bias, ends_block and _for_gradients)  # pyright: ignore[reportReturnType]
    if ends_block and _for_gradients:
        return _Unneeded.apply(x, weight, bias)  # pyright: ignore[reportReturnType]
    return F.linear(x, weight, bias)


class _Unneeded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x, weight, bias = inputs
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return x.new_empty(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), dy = ctx.saved_tensors, grads[0]
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows = dy.flatten(0, -2)
        return (
            dy @ weight if wants_x else None,
            rows.T @ x.flatten(0, -2) if wants_weight else None,
            rows.sum(0) if wants_bias else None,
        )


class Linear(nn.Linear):
    """A linear map with normal weights of deviation `gain / sqrt(width_in)` and zero bias.

    Scaled by the width, so that a small model starts with outputs of the same size as a large one: at width
    128 the usual 0.02 makes the first hundred steps several times slower; at 4480 this is 0.015.
    """

    weight_scale: Tensor | None

    def __init__(
        self, width_in: int, width_out: int, bias: bool = False, gain: float = 1.0, ends_block: bool = False
    ) -> None:
        """ends_block: nothing but the residual stream takes what comes out."""
        self.std, self.ends_block = gain * width_in**-0.5, ends_block
        super().__init__(width_in, width_out, bias)
        self.register_buffer(SCALE, None)

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias, self.ends_block, self.weight_scale)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.weight.normal_(std=self.std)
        if self.bias is not None:
            self.bias.zero_()


class Embedding(nn.Embedding):
    """Token embeddings; the ids must lie in the vocabulary."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.embedding_dim**-0.5)


class RMSNorm(nn.Module):
    """`x / rms(x) * weight`, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class GatedRMSNorm(RMSNorm):
    """RMS norm of `y * silu(gate)` over each of `groups` slices of the width (gate before norm)."""

    def __init__(self, width: int, groups: int, eps: float) -> None:
        super().__init__(width, eps)
        self.groups = groups

    def forward(self, y: Tensor, gate: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gated_rms_norm(y, gate, self.weight, self.groups, self.eps)


# For each form the plan must know how many tensors of the hidden width autograd keeps between its maps, and how many
# gradients of that width exist at a time while its backward pass runs.


class MLP(nn.Module):
    """Up, squared ReLU, down; no gate (Nemotron-H)."""

    gated = False
    hidden_kept = 1  # what relu gives, which its own derivative can be read from
    hidden_gradients = 3  # the square's, and its derivative, twice

    def __init__(self, width: int, mlp_width: int, out_gain: float) -> None:
        super().__init__()
        self.up_proj = Linear(width, mlp_width)
        self.down_proj = Linear(mlp_width, width, gain=out_gain, ends_block=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.relu(self.up_proj(x)).square())


class SwiGLU(nn.Module):
    """Up gated by SiLU, then down (Llama, Qwen2)."""

    gated = True
    hidden_kept = 3  # the gate before and after SiLU, and what it is multiplied with
    hidden_gradients = 2

    def __init__(self, width: int, mlp_width: int, out_gain: float) -> None:
        super().__init__()
        self.gate_proj = Linear(width, mlp_width)
        self.up_proj = Linear(width, mlp_width)
        self.down_proj = Linear(mlp_width, width, gain=out_gain, ends_block=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


MLPS: dict[str, type[MLP] | type[SwiGLU]] = {"relu2": MLP, "swiglu": SwiGLU}
