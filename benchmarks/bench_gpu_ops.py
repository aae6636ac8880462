"""The operations that `bench_gpu.py` measures, with inputs of nano9b's shapes.

Inputs are what a Mamba-2 block hands over: views of one row a token as `in_proj` gives it (z, x B C, dt: 22,656
numbers), and of the convolution's output (12,288). Row stride times tokens passes 2^31 between 94,000 and 95,000 tokens
for the first, at 174,763 for the second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from bench_gpu_measure import DTYPE
from torch import Tensor

from timeviper.config import DecoderConfig
from timeviper.kernels.attention import attention
from timeviper.kernels.bounds import Bounds
from timeviper.kernels.conv1d import causal_conv1d
from timeviper.kernels.cross_entropy import linear_cross_entropy
from timeviper.kernels.norm import gated_rms_norm, rms_norm
from timeviper.kernels.ssd import ssd

Inputs = dict[str, Tensor]

BACK = 8192  # tokens before them that the scan starts from nothing at: the state forgets 1/e in 60 tokens or fewer
GROUPS, EPS = 8, 1e-5  # of the norms
ROWS = ("q", "x", "z", "y", "dt", "B", "C", "hidden")  # inputs with a row for each query or token


@dataclass(frozen=True)
class Op:
    """One operation: inputs with gradients for so many tokens, and a call of it."""

    kernel: str
    make: Callable[[DecoderConfig, int, str], Inputs]
    call: Callable[[Inputs, list[int]], Tensor]
    """Outputs for sequences of the given lengths."""
    back: int = 0
    """Tokens before the last ones that their outputs depend on."""


def normal(*shape: int, device: str) -> Tensor:
    return torch.randn(shape, device=device, dtype=DTYPE)


def _in_proj(cfg: DecoderConfig, L: int, device: str) -> tuple[Tensor, ...]:
    """One `[L, 22656]`, and its views z, x B C and dt, with steps of about 0.02 as trained models have them."""
    inner, keys = cfg.ssm_heads * cfg.ssm_head_dim, cfg.ssm_groups * cfg.ssm_state
    row = normal(L, 2 * inner + 2 * keys + cfg.ssm_heads, device=device)
    z, xBC, dt = row.split([inner, inner + 2 * keys, cfg.ssm_heads], dim=-1)
    return row, z, xBC, dt.sub_(4)


def _ssd(cfg: DecoderConfig, L: int, device: str) -> Inputs:
    inner, keys = cfg.ssm_heads * cfg.ssm_head_dim, cfg.ssm_groups * cfg.ssm_state
    x, B, C = normal(L, inner + 2 * keys, device=device).split([inner, keys, keys], dim=-1)
    A = -1 - 15 * torch.rand(cfg.ssm_heads, device=device)
    return {
        "x": x.unflatten(-1, (cfg.ssm_heads, -1)),
        "dt": _in_proj(cfg, L, device)[3],
        "A": A,
        "B": B.unflatten(-1, (cfg.ssm_groups, -1)),
        "C": C.unflatten(-1, (cfg.ssm_groups, -1)),
        "D": torch.ones_like(A),
        "dt_bias": torch.zeros_like(A),
    }


def _conv1d(cfg: DecoderConfig, L: int, device: str) -> Inputs:
    x = _in_proj(cfg, L, device)[2]
    weight = normal(x.shape[1], cfg.conv_kernel, device=device) / 2
    return {"x": x, "weight": weight, "bias": normal(x.shape[1], device=device) / 2}


def _gated(cfg: DecoderConfig, L: int, device: str) -> Inputs:
    z = _in_proj(cfg, L, device)[1]
    return {"y": normal(*z.shape, device=device), "z": z, "weight": 1 + torch.rand(z.shape[1], device=device)}


def _plain(cfg: DecoderConfig, L: int, device: str) -> Inputs:
    return {"x": normal(L, cfg.width, device=device), "weight": 1 + torch.rand(cfg.width, device=device)}


def _attention(cfg: DecoderConfig, L: int, device: str, every: int = 1) -> Inputs:
    """Views of rows as wide as those of `in_proj` (in the model they are tensors of their own); one query `every`
    so many tokens."""
    row, q_size, kv_size = _in_proj(cfg, L, device)[0], cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
    q, k, v = row[:, : q_size + 2 * kv_size].split([q_size, kv_size, kv_size], dim=-1)
    q, k, v = (t.unflatten(-1, (-1, cfg.head_dim)) for t in (q, k, v))
    return {"q": q[::every], "k": k, "v": v}


def _loss(cfg: DecoderConfig, L: int, device: str) -> Inputs:
    weight = normal(cfg.vocab_size, cfg.width, device=device) * cfg.width**-0.5
    return {"hidden": normal(L, cfg.width, device=device), "weight": weight}


def _call_ssd(t: Inputs, lengths: list[int]) -> Tensor:
    x, dt, A, B, C, D, dt_bias = t.values()
    return ssd(x, dt, A, B, C, D, dt_bias, Bounds(lengths, x.device), need_state=False)[0]


def _call_attention(t: Inputs, lengths: list[int]) -> Tensor:
    bounds = Bounds(lengths, t["k"].device)
    own = bounds if len(t["q"]) == len(t["k"]) else Bounds([len(t["q"])], bounds.device)
    return attention(t["q"], t["k"], t["v"], own, bounds, causal=True)


def _call_visible(t: Inputs, lengths: list[int]) -> Tensor:
    n, m = len(t["q"]), len(t["k"])
    visible = torch.arange(1, n + 1, device=t["q"].device) * m // n
    return attention(t["q"], t["k"], t["v"], Bounds([n], visible.device), Bounds([m], visible.device), visible=visible)


def _call_loss(t: Inputs, lengths: list[int]) -> Tensor:
    labels = torch.arange(len(t["hidden"]), device=t["hidden"].device) % len(t["weight"])
    return linear_cross_entropy(t["hidden"], t["weight"], labels)[0] / len(labels)


def _call_conv1d(t: Inputs, lengths: list[int]) -> Tensor:
    return causal_conv1d(t["x"], t["weight"], t["bias"], Bounds(lengths, t["x"].device))[0]


def _call_gated(t: Inputs, lengths: list[int]) -> Tensor:
    return gated_rms_norm(t["y"], t["z"], t["weight"], GROUPS, EPS)


def _call_plain(t: Inputs, lengths: list[int]) -> Tensor:
    return rms_norm(t["x"], t["weight"], EPS)


OPS = {
    "ssd": Op("ssd", _ssd, _call_ssd, BACK),
    "conv1d": Op("conv1d", _conv1d, _call_conv1d, 8),
    "gated norm": Op("norm", _gated, _call_gated),
    "attention": Op("attention", _attention, _call_attention),
    "rms norm": Op("norm", _plain, _call_plain),
    "attention to a prefix": Op("attention", partial(_attention, every=16), _call_visible),
    "cross-entropy": Op("cross_entropy", _loss, _call_loss),
}
