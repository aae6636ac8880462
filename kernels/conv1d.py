"""Causal depthwise convolution over a packed stream, with state.

One idea serves every form but the reference: lay the K-1 inputs that precede a sequence (its initial state, or
zeros) in front of its tokens. In that extended stream no window of a real token reaches into another sequence,
whatever its length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from timeviper.kernels import dispatch
from timeviper.kernels.bounds import Bounds


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bounds: Bounds,
    initial_state: Tensor | None = None,
    silu: bool = True,
) -> tuple[Tensor, Tensor]:
    """`y[t] = act(bias + sum_k weight[:, k] * x[t - K + 1 + k])` within each sequence.

    Shapes: x `[L, C]`, weight `[C, K]`, bias `[C]`, initial_state `[S, C, K-1]` (the inputs before each
    sequence, oldest first; None: zeros). Returns y `[L, C]` and the final state `[S, C, K-1]`, both in x's dtype.
    """
    L, C = x.shape
    K = weight.shape[1]
    assert bounds.num_tokens == L, (bounds, x.shape)
    assert weight.shape[0] == C, (weight.shape, x.shape)
    assert initial_state is None or initial_state.shape == (bounds.num_sequences, C, K - 1), (
        f"conv state {tuple(initial_state.shape)} is not {(bounds.num_sequences, C, K - 1)}"
    )
    unsupported = "" if K in (2, 3, 4) and C % 8 == 0 else f"causal_conv1d has no kernel for width {K}, {C} channels"
    form = {"reference": conv1d_reference, "torch": conv1d_torch, "vendor": conv1d_vendor}
    chosen = form[dispatch.choose("conv1d", x, unsupported)]
    return chosen(x, weight, bias, bounds, initial_state, silu)


def conv1d_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, bounds: Bounds, initial_state: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor]:
    """The definition, token by token."""
    (C, K), outputs, finals = weight.shape, [], []
    for s, tokens in enumerate(x.split(bounds.lengths)):
        window = x.new_zeros(C, K - 1) if initial_state is None else initial_state[s].to(x.dtype)
        for token in tokens:
            window = torch.cat([window, token[:, None]], dim=1)
            y = (window * weight).sum(1) + (0 if bias is None else bias)
            outputs.append(F.silu(y) if silu else y)
            window = window[:, 1:]
        finals.append(window)
    return (torch.stack(outputs) if outputs else x * 1), torch.stack(finals)


def conv1d_torch(
    x: Tensor, weight: Tensor, bias: Tensor | None, bounds: Bounds, initial_state: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor]:
    """K shifted multiply-adds over the extended stream."""
    K = weight.shape[1]
    extended, place, final = _extend(x, bounds, initial_state, K)
    n = extended.shape[0] - K + 1
    taps = weight.T  # [K, C]
    y = extended[:n] * taps[0] if bias is None else torch.addcmul(bias, extended[:n], taps[0])
    for k in range(1, K):
        y = torch.addcmul(y, extended[k : k + n], taps[k])
    y = y if place is None else y.index_select(0, place - (K - 1))
    return (F.silu(y) if silu else y), final


def conv1d_vendor(
    x: Tensor, weight: Tensor, bias: Tensor | None, bounds: Bounds, initial_state: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor]:
    """causal_conv1d over the extended stream: it takes boundaries or initial states, but not both."""
    K = weight.shape[1]
    fused = dispatch.vendor_function("conv1d")
    extended, place, final = _extend(x, bounds, initial_state, K)
    y = fused(extended.T[None], weight, bias, activation="silu" if silu else None)[0].T
    return (y[K - 1 :] if place is None else y.index_select(0, place)), final


def _extend(x: Tensor, bounds: Bounds, initial_state: Tensor | None, K: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """The stream with K-1 inputs before each sequence; where each token went (None: one sequence, shifted by
    K-1); and the final states `[S, C, K-1]`, which are the last K-1 rows of each extended sequence."""
    S, (L, C), pre = bounds.num_sequences, x.shape, K - 1
    if initial_state is None:
        heads = x.new_zeros(S * pre, C)
    else:
        heads = initial_state.to(x.dtype).transpose(1, 2).reshape(S * pre, C)
    if S == 1:
        extended = torch.cat([heads, x])
        return extended, None, extended[L:].T[None]
    place = torch.arange(L, device=x.device) + (bounds.seq_idx + 1) * pre
    starts = bounds.cu_seqlens.long() + torch.arange(S + 1, device=x.device) * pre  # of extended sequences
    lead = torch.arange(pre, device=x.device)
    fronts = (starts[:-1, None] + lead).flatten()
    extended = torch.cat([heads, x]).index_select(0, torch.cat([fronts, place]).argsort())
    tails = starts[1:, None] - pre + lead
    return extended, place, extended[tails.flatten()].view(S, pre, C).transpose(1, 2)
