"""CPU twins of the vendors' functions: their arguments, the checks of their sources, and what they compute.

Checks are those of mamba-ssm 2.3, causal-conv1d 1.6, flash-attn 2.8 and torch 2.13. Sums are taken in float32 (float64
for float64, which only twins have), outputs are in the inputs' dtype. `twins(index_limit)` refuses tensors that the
real ones, with 2^31 in its place, would read from a wrong address. `calls` counts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from flash_twins import (
    _flash_attention_backward,
    _flash_attention_forward,
    calls,
    check,
    flash_attn_varlen_func,
    varlen_attn,
    wide,
)
from torch import Tensor

from timeviper.kernels.bounds import Bounds
from timeviper.kernels.limits import extent
from timeviper.kernels.ssd import ssd_reference
from timeviper.kernels.vendors import INT32

REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def twins(index_limit: int = INT32) -> dict[str, Callable[..., Any]]:
    """For `dispatch.stand_in`."""
    return {
        "mamba_chunk_scan_combined": partial(mamba_chunk_scan_combined, index_limit),
        "causal_conv1d_fn": partial(causal_conv1d_fn, 2 * index_limit),
        "rmsnorm_fn": partial(rmsnorm_fn, index_limit),
        "flash_attn_varlen_func": flash_attn_varlen_func,
        "_flash_attention_forward": _flash_attention_forward,
        "_flash_attention_backward": _flash_attention_backward,
    }


def with_torch_attention(index_limit: int = INT32) -> dict[str, Callable[..., Any]]:
    """The same without flash-attn."""
    functions = twins(index_limit) | {"varlen_attn": varlen_attn}
    del functions["flash_attn_varlen_func"]
    return functions


def reach(limit: int, **tensors: Tensor | None) -> None:
    """What 32-bit offsets do beyond their limit, said aloud."""
    for name, t in tensors.items():
        if t is not None and extent(t) > limit:
            raise IndexError(f"{name} {tuple(t.shape)}, strides {t.stride()}, spans more than {limit:,} elements")


def made(limit: int, y: Tensor) -> Tensor:
    """A result, which is addressed too, and later its gradient."""
    reach(limit, y=y)
    if y.requires_grad:
        y.register_hook(lambda g: reach(limit, gradient=g))
    return y


def mamba_chunk_scan_combined(
    limit: int,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    return_varlen_states: bool = False,
) -> Any:
    calls["mamba_chunk_scan_combined"] += 1
    (batch, L, H, P), (G, N) = x.shape, B.shape[2:]
    check(H % G == 0 and B.shape == C.shape == (batch, L, G, N) and dt.shape == (batch, L, H) and A.shape == (H,))
    check(D is None or D.shape in ((H, P), (H,)))
    check(dt_bias is None or dt_bias.shape == (H,))
    check(seq_idx is None or (seq_idx.shape == (batch, L) and seq_idx.dtype == torch.int32))
    check(initial_states is None or initial_states.shape == (batch, H, P, N))
    check(x.dtype in REAL and x.dtype == B.dtype == C.dtype, "operands of one tl.dot", x.dtype, B.dtype, C.dtype)
    check(L > 0 and batch == 1, "an empty grid", x.shape)
    check(chunk_size & (chunk_size - 1) == 0, "tl.arange wants a power of two", chunk_size)
    check(not return_varlen_states or (cu_seqlens is not None and cu_seqlens.dtype == torch.int32))
    check(z is None and dt_softplus and D is not None and dt_bias is not None and dt_limit == (0.0, float("inf")))
    assert D is not None
    assert dt_bias is not None
    for t in (A, D, dt_bias):
        check(t.dtype == wide(t), "the backward adds to it atomically", t.dtype)
    chunks = -(-L // chunk_size)
    buffers = {
        "states": (chunks, H, P, N),
        "CB": (chunks, G, chunk_size, chunk_size),
        "ddA": (H, chunks, -(-chunk_size // 32), chunk_size),
        "out": (L, H, P),
    }
    shapes = {name: torch.empty(shape, device="meta") for name, shape in buffers.items()}
    reach(limit, x=x, dt=dt, B=B, C=C, initial_states=initial_states, **shapes)
    lengths = [L] if seq_idx is None else seq_idx[0].unique_consecutive(return_counts=True)[1].tolist()
    bounds, state = Bounds(lengths, x.device), None
    if initial_states is not None:  # goes to the tokens that are of sequence 0, or of none
        mine = seq_idx is None or int(seq_idx[0, 0]) == 0
        rest = x.new_zeros(len(lengths), H, P, N, dtype=wide(x))
        state = torch.cat([initial_states.to(wide(x)) * mine, rest[1:]])
    y, finals = ssd_reference(x[0], dt[0], A, B[0], C[0], D, dt_bias, bounds, state)
    results = [made(limit, y[None])] + ([finals[-1:]] if return_final_states else [])
    if return_varlen_states:
        assert cu_seqlens is not None
        check(not y.requires_grad, "return_varlen_states is not supported in backward")
        check(tuple(cu_seqlens.tolist()) == bounds.offsets, "sequences of no token")
        reach(limit, varlen=finals)
        results.append(finals)
    return tuple(results) if len(results) > 1 else results[0]


def causal_conv1d_fn(
    limit: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    calls["causal_conv1d_fn"] += 1
    (batch, dim, L), K = x.shape, weight.shape[1]
    check(activation in (None, "silu", "swish") and final_states_out is None)
    check(x.dtype in REAL and weight.dtype in REAL)
    check(x.stride(2) == 1 or x.stride(1) == 1, "would be copied", x.stride())
    channel_last = x.stride(1) == 1 and x.stride(2) > 1
    if channel_last:
        check(dim % 8 == 0 and x.stride(2) % 8 == 0 and x.stride(0) % 8 == 0, x.shape, x.stride())
        check(x.data_ptr() % 16 == 0, "loads 16 bytes at once")
    check(weight.shape == (dim, K) and 2 <= K <= 4)
    check(bias is None or (bias.dtype == weight.dtype and bias.stride(-1) == 1 and bias.shape == (dim,)))
    if seq_idx is not None:
        check(channel_last, "seq_idx is only supported for channel last layout")
        check(seq_idx.dtype == torch.int32 and seq_idx.is_contiguous() and seq_idx.shape == (batch, L))
        check(initial_states is None and not return_final_states)
    reach(limit, x=x, out=torch.empty(batch, dim, L, device="meta"))
    padded, owner = F.pad(x.to(wide(x)), (K - 1, 0)), None
    if seq_idx is not None:
        owner = F.pad(seq_idx, (K - 1, 0), value=-1)[:, None]
    y = padded.new_zeros(batch, dim, L)
    for k in range(K):
        tap = padded[..., k : k + L]
        if owner is not None and seq_idx is not None:
            tap = torch.where(owner[..., k : k + L] == seq_idx[:, None], tap, 0)
        y = y + weight[:, k, None].to(y.dtype) * tap
    y = y if bias is None else y + bias[:, None].to(y.dtype)
    out = (F.silu(y) if activation else y).to(x.dtype).transpose(1, 2).contiguous().transpose(1, 2)  # channel last
    return made(limit, out)


def rmsnorm_fn(
    limit: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
) -> Tensor:
    calls["rmsnorm_fn"] += 1
    shape = x.shape
    check(z is None or z.shape == shape)
    x, z = x.reshape(-1, shape[-1]), None if z is None else z.reshape(-1, shape[-1])
    (M, D), size = x.shape, group_size or x.shape[-1]
    check(x.dtype in REAL and M > 0 and D % size == 0 and weight.shape == (D,) and weight.stride(-1) == 1)
    check(bias is None or bias.shape == (D,))
    check(size <= 65536 // x.element_size(), "This layer norm doesn't support feature dim >= 64KB.")
    reach(limit, x=x, z=z, y=torch.empty(M, D, device="meta"))
    h = x.to(wide(x))
    gate = None if z is None else F.silu(z.to(h.dtype))
    if gate is not None and not norm_before_gate:
        h = h * gate
    groups = h.unflatten(1, (-1, size))
    y = (groups * torch.rsqrt(groups.square().mean(-1, keepdim=True) + eps)).flatten(1) * weight.to(h.dtype)
    if bias is not None:
        y = y + bias.to(h.dtype)
    if gate is not None and norm_before_gate:
        y = y * gate
    return made(limit, y.to(x.dtype).reshape(shape))
