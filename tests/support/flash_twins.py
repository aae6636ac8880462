"""CPU twins of flash attention, flash-attn's and torch's: see `vendor_twins`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from timeviper.kernels.attention import attention_reference
from timeviper.kernels.bounds import Bounds

calls: Counter[str] = Counter()
HALF = (torch.float16, torch.bfloat16, torch.float64)


def check(holds: bool, *facts: object) -> None:
    """An assert that optimisation leaves in."""
    if not holds:
        raise AssertionError(facts)


def wide(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def _check_flash(
    q: Tensor, k: Tensor, v: Tensor, cu: tuple[Tensor, Tensor], longest: tuple[int, int], gaps: bool = False
) -> list[Bounds]:
    """gaps: sequences without queries or keys may be longer than a launch covers, and are left unwritten there."""
    check(q.dtype in HALF and q.dtype == k.dtype == v.dtype, "only fp16 and bf16", q.dtype)
    check(q.dim() == k.dim() == v.dim() == 3 and k.shape == v.shape and q.shape[2] == k.shape[2])
    check(q.shape[2] % 8 == 0 and q.shape[2] <= 256 and q.shape[1] % k.shape[1] == 0, q.shape, k.shape)
    check(all(t.stride(-1) == 1 for t in (q, k, v)), "Input tensor must have contiguous last dimension")
    check(all(c.dtype == torch.int32 and c.is_contiguous() for c in cu) and cu[0].shape == cu[1].shape)
    check(all(isinstance(n, int) for n in longest), "sizes of a launch are known on the host", longest)
    bounds = [Bounds.from_cu_seqlens(c) for c in cu]
    pairs = zip(bounds[0].lengths, bounds[1].lengths)
    check(all((gaps and not n * m) or (n <= longest[0] and m <= longest[1]) for n, m in pairs), bounds, longest)
    check(bounds[0].num_tokens <= len(q) and bounds[1].num_tokens <= len(k), bounds, q.shape, k.shape)
    swapped = longest[0] == 1 and q.shape[1] > k.shape[1]  # groups of heads become queries
    check(not swapped or len(q) == bounds[0].num_sequences, "takes it for granted that each sequence has one query")
    return bounds


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    calls["flash_attn_varlen_func"] += 1
    check(dropout_p == 0 and window_size == (-1, -1))
    bounds = _check_flash(q, k, v, (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k))
    return _attend(q, k, v, bounds, causal, softmax_scale)


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    calls["varlen_attn"] += 1
    check(return_aux is None and window_size in ((-1, -1), (-1, 0)) and cu_seq_k is not None)
    check(enable_gqa or query.shape[1] == key.shape[1], "Try setting enable_gqa=True for GQA.")
    assert cu_seq_k is not None
    bounds = _check_flash(query, key, value, (cu_seq_q, cu_seq_k), (max_q, max_k))
    return _attend(query, key, value, bounds, window_size == (-1, 0), scale)


def _attend(q: Tensor, k: Tensor, v: Tensor, bounds: list[Bounds], causal: bool, scale: float | None) -> Tensor:
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    dtype = wide(q)
    y = attention_reference(q.to(dtype), k.to(dtype), v.to(dtype), bounds[0], bounds[1], causal, None, factor)
    return y.to(q.dtype)


def _pairs(
    q: Tensor, k: Tensor, bounds: list[Bounds], scale: float
) -> Iterator[tuple[slice, slice, Tensor, Callable[[Tensor], Tensor]]]:
    """Of each sequence with queries and keys: its rows, scores `[H, n, m]`, and how keys become one for each head."""
    repeat, dtype = q.shape[1] // k.shape[1], wide(q)
    for s in range(bounds[0].num_sequences):
        rows, keys = (slice(b.offsets[s], b.offsets[s + 1]) for b in bounds)
        if rows.start < rows.stop and keys.start < keys.stop:
            spread = lambda t, keys=keys: t[keys].to(dtype).repeat_interleave(repeat, 1)  # noqa: E731
            yield rows, keys, torch.einsum("nhp,mhp->hnm", q[rows].to(dtype), spread(k)) * scale, spread


def _flash_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float,
) -> tuple[Tensor, Tensor, None, None, None]:
    """As aten's: output, and log-sum-exp `[H, n]`, which is +inf for a query without keys."""
    calls["_flash_attention_forward"] += 1
    check((dropout_p, is_causal, return_debug_mask) == (0, False, False))
    bounds = _check_flash(query, key, value, (cum_seq_q, cum_seq_k), (max_q, max_k), gaps=True)
    y = torch.full_like(query, torch.nan)
    lse = torch.full((query.shape[1], len(query)), torch.nan, dtype=wide(query))
    for first, last in pairwise(bounds[0].offsets):  # a launch covers that many queries of each sequence, no more
        y[first : min(last, first + max_q)] = 0
        lse[:, first : min(last, first + max_q)] = torch.inf
    for rows, _, scores, spread in _pairs(query, key, bounds, scale):
        y[rows] = torch.einsum("hnm,mhp->nhp", scores.softmax(-1), spread(value)).to(y.dtype)
        lse[:, rows] = scores.logsumexp(-1)
    return y, lse, None, None, None


def _flash_attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    rng_state: Tensor,
    unused: Tensor,
    *,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """As aten's, but what has no counterpart in its sequence is left as memory happens to be: NaN."""
    calls["_flash_attention_backward"] += 1
    check((dropout_p, is_causal, rng_state.dtype) == (0, False, torch.uint64))
    check(grad_out.stride(-1) == 1 and grad_out.shape == out.shape == query.shape and logsumexp.dtype == wide(query))
    bounds = _check_flash(query, key, value, (cum_seq_q, cum_seq_k), (max_q, max_k), gaps=True)
    dq, dk, dv = (torch.full_like(t, torch.nan) for t in (query, key, value))
    for rows, keys, scores, spread in _pairs(query, key, bounds, scale):
        p = (scores - logsumexp[:, rows, None]).exp()
        dy = grad_out[rows].to(p.dtype)
        dp = torch.einsum("nhp,mhp->hnm", dy, spread(value))
        ds = scale * p * (dp - (dy * out[rows].to(p.dtype)).sum(-1).T[..., None])
        dq[rows] = torch.einsum("hnm,mhp->nhp", ds, spread(key)).to(dq.dtype)
        groups = (key.shape[1], -1)
        dk[keys] = torch.einsum("hnm,nhp->mhp", ds, query[rows].to(p.dtype)).unflatten(1, groups).sum(2).to(dk.dtype)
        dv[keys] = torch.einsum("hnm,nhp->mhp", p, dy).unflatten(1, groups).sum(2).to(dv.dtype)
    return dq, dk, dv
