"""Weights in eight bits, through torchao: for answers, and as the frozen base of adapters.

Quantised are the linear maps of decoder blocks and transfers, each output row with a scale of its own. All else keeps
its dtype: embeddings and head, convolutions, norms, gates, the scan's decays and steps, towers and projectors. Memory
is what it buys: a product first makes the dtype of computation of the weights, so on a CPU it is slower.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from timeviper.errors import ConfigError, Problem
from timeviper.quiet import without_torchao_s_notes

KEY = "eval.quantise"
FP8_CAPABILITY = (8, 9)  # of CUDA devices: Ada and Hopper are the first that multiply in fp8


def check_quantise(kind: str, device: torch.device, dtype: torch.dtype, key: str = KEY) -> None:
    """Raises ConfigError where a device cannot, or torchao is not installed."""
    if kind == "none":
        return
    if kind == "fp8" and device.type != "cuda":
        raise _refused(key, kind, f"needs a GPU that multiplies in fp8, and this is a {device.type}: take int8.")
    if kind == "fp8" and torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        raise _refused(key, kind, f"needs a GPU that multiplies in fp8 (Ada, Hopper or later), not {name}: take int8.")
    if kind == "fp8" and dtype != torch.bfloat16:
        raise _refused(key, kind, "multiplies into bfloat16: compute in it (--dtype bfloat16), or take int8.")
    with without_torchao_s_notes():
        try:
            import torchao  # noqa: F401  # pyright: ignore[reportUnusedImport]
        except ImportError as error:
            message = f"needs torchao ({error}): pip install 'timeviper[quant]'."
            raise _refused(key, kind, message) from error


def _refused(key: str, kind: str, message: str) -> ConfigError:
    return ConfigError("quantised weights", [Problem(key, kind, message)])


@torch.no_grad()
def quantise_map(module: nn.Linear, weight: Tensor, kind: str) -> None:
    """Give a linear map this weight `[m, n]`, in the dtype of computation, as torchao keeps it."""
    module.weight = nn.Parameter(weight, requires_grad=False)
    with without_torchao_s_notes():
        from torchao.quantization import (
            Float8DynamicActivationFloat8WeightConfig,
            Int8WeightOnlyConfig,
            PerRow,
            quantize_,
        )

        if kind == "int8":
            config: Any = Int8WeightOnlyConfig(granularity=PerRow(), set_inductor_config=False)
        else:
            config = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False)
        quantize_(module, config, device=None)


@torch.no_grad()
def int8_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`[m, n]` -> int8 `[m, n]` and float32 scales `[m]` whose product it is, the numbers that `quantise_map` has."""
    if len(weight) == 0:
        return weight.to(torch.int8), weight.new_zeros(0, dtype=torch.float32)
    with without_torchao_s_notes():
        from torchao.quantization import Int8Tensor, PerRow

        found = Int8Tensor.from_hp(weight.float(), granularity=PerRow())
    return found.qdata, found.scale.flatten().float()
