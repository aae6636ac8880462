"""Attention over packed streams: self-attention, prefill in chunks, decode, cross-attention in one signature.

What a query sees is one number, its `limit`: the first `limit` keys of its own sequence. Causality (aligned at
the end, so that cached keys just work) and `visible` only lower that number.
"""

from __future__ import annotations

from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import Tensor

from timeviper.kernels import dispatch
from timeviper.kernels.bounds import Bounds

SHORT = 512  # sequences up to here are padded and computed together, longer ones alone and in place
MASK_BUDGET = 1 << 24  # elements of a mask: longer queries are cut into rows


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds_q: Bounds,
    bounds_k: Bounds,
    causal: bool = False,
    visible: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention of each query over keys of its own sequence; `[Lq, H, P]` in q's dtype.

    Shapes: q `[Lq, H, P]`, k and v `[Lk, Hkv, P]` (query head h reads key head `h // (H / Hkv)`).
    causal: query i of n sees the first `m - n + i + 1` of m keys. visible `[Lq]`: it sees at most that many
    leading keys. A query that sees no key gets exactly 0 and passes no gradient. scale: default `P ** -0.5`.
    """
    assert bounds_q.num_sequences == bounds_k.num_sequences, (bounds_q, bounds_k)
    assert q.shape[0] == bounds_q.num_tokens, (q.shape, bounds_q)
    assert k.shape[0] == v.shape[0] == bounds_k.num_tokens, (k.shape, v.shape, bounds_k)
    assert q.shape[1] % k.shape[1] == 0, f"{q.shape[1]} query heads cannot share {k.shape[1]} key heads"
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    unsupported = ""
    if visible is not None:
        unsupported = "flash_attn has no count of visible keys for each query"
    elif q.shape[-1] > 256 or q.shape[-1] % 8:
        unsupported = f"flash_attn has no kernel for heads of {q.shape[-1]}"
    form = {"reference": attention_reference, "torch": attention_torch, "vendor": attention_vendor}
    chosen = form[dispatch.choose("attention", q, unsupported)]
    return chosen(q, k, v, bounds_q, bounds_k, causal, visible, factor)


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds_q: Bounds,
    bounds_k: Bounds,
    causal: bool,
    visible: Tensor | None,
    scale: float,
) -> Tensor:
    """The definition, query by query."""
    rows = []
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    for s, (n, m) in enumerate(zip(bounds_q.lengths, bounds_k.lengths)):
        first_q, first_k = bounds_q.offsets[s], bounds_k.offsets[s]
        for i in range(n):
            limit = m - n + i + 1 if causal else m
            if visible is not None:
                limit = min(limit, int(visible[first_q + i]))
            keys = slice(first_k, first_k + max(limit, 0))
            scores = torch.einsum("hp,khp->hk", q[first_q + i], k[keys]) * scale
            rows.append(torch.einsum("hk,khp->hp", scores.softmax(-1), v[keys]))
    return torch.stack(rows) if rows else q * 1


def attention_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds_q: Bounds,
    bounds_k: Bounds,
    causal: bool,
    visible: Tensor | None,
    scale: float,
) -> Tensor:
    """PyTorch's fused attention: short sequences together in padded batches, long ones alone, uncopied."""
    square = causal and visible is None and bounds_q.lengths == bounds_k.lengths
    limit = None if square else key_limit(bounds_q, bounds_k, causal, visible)
    batches, alone = _partition(bounds_q, bounds_k)
    parts: list[Tensor] = []
    for members in batches:
        parts.append(_batch(members, q, k, v, bounds_q, bounds_k, limit, scale))
    for s in alone:
        qs = slice(bounds_q.offsets[s], bounds_q.offsets[s + 1])
        ks = slice(bounds_k.offsets[s], bounds_k.offsets[s + 1])
        parts.append(_single(q[qs], k[ks], v[ks], None if limit is None else limit[qs], scale))
    if not parts:
        return q * 1
    order = [s for members in batches for s in members] + alone
    if order == sorted(order) and len(parts) == 1:
        return parts[0]
    if order == sorted(order):
        return torch.cat(parts)
    return torch.cat(parts).index_select(0, _restore(order, bounds_q))


def key_limit(bounds_q: Bounds, bounds_k: Bounds, causal: bool, visible: Tensor | None) -> Tensor:
    """`[Lq]` int64: how many leading keys of its own sequence each query sees (0 or less: none)."""
    counts = torch.tensor(bounds_k.lengths, device=bounds_q.device)
    limit = counts[bounds_q.seq_idx]
    if causal:
        spare = counts - torch.tensor(bounds_q.lengths, device=bounds_q.device)
        limit = spare[bounds_q.seq_idx] + bounds_q.position + 1
    return limit if visible is None else torch.minimum(limit, visible.to(limit.dtype))


def _partition(bounds_q: Bounds, bounds_k: Bounds) -> tuple[list[list[int]], list[int]]:
    """Sequences to pad and compute together (of like lengths, by powers of two), and those to do alone."""
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    alone: list[int] = []
    for s, (n, m) in enumerate(zip(bounds_q.lengths, bounds_k.lengths)):
        if max(n, m) > SHORT or m == 0:
            alone.append(s)
        elif n:
            buckets[n.bit_length(), m.bit_length()].append(s)
    for key in [key for key, members in buckets.items() if len(members) == 1]:
        alone += buckets.pop(key)
    return list(buckets.values()), sorted(s for s in alone if bounds_q.lengths[s])


def _restore(order: list[int], bounds: Bounds) -> Tensor:
    """Where each token of the stream stands when sequences are laid out in `order`."""
    start, starts = 0, [0] * bounds.num_sequences
    for s in order:
        starts[s] = start
        start += bounds.lengths[s]
    return torch.tensor(starts, device=bounds.device)[bounds.seq_idx] + bounds.position


def _batch(
    members: list[int],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds_q: Bounds,
    bounds_k: Bounds,
    limit: Tensor | None,
    scale: float,
) -> Tensor:
    """The queries of `members`, in that order, through one padded call."""
    rows_q, real = _padded_rows(members, bounds_q)
    rows_k, _ = _padded_rows(members, bounds_k)
    out = _single(q[rows_q], k[rows_k], v[rows_k], None if limit is None else limit[rows_q], scale)
    return out[real]


def _padded_rows(members: list[int], bounds: Bounds) -> tuple[Tensor, Tensor]:
    """`[members, longest]` stream rows and which are real; a pad repeats its own sequence's last row."""
    counts = torch.tensor([bounds.lengths[s] for s in members], device=bounds.device)[:, None]
    starts = torch.tensor([bounds.offsets[s] for s in members], device=bounds.device)[:, None]
    place = torch.arange(max(bounds.lengths[s] for s in members), device=bounds.device)
    return starts + torch.minimum(place, counts - 1), place < counts


def _single(q: Tensor, k: Tensor, v: Tensor, limit: Tensor | None, scale: float) -> Tensor:
    """Attention of `[..., n, H, P]` over `[..., m, Hkv, P]`; limit `[..., n]`, None: causal with n = m."""
    n, m = q.shape[-3], k.shape[-3]
    if m == 0:
        return q * 0
    batched = q.dim() == 4
    if not batched:
        q, k, v, limit = q[None], k[None], v[None], None if limit is None else limit[None]
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    gqa = q.shape[1] != k.shape[1]
    if limit is None:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=gqa)
    else:
        keys = torch.arange(m, device=q.device)
        step = max(1, MASK_BUDGET // (q.shape[0] * m))
        parts = []
        for rows in (slice(i, i + step) for i in range(0, n, step)):
            seen = limit[:, rows, None]
            mask = (keys < seen.clamp_min(1))[:, None]  # a query without keys looks at key 0 ...
            part = F.scaled_dot_product_attention(q[:, :, rows], k, v, mask, scale=scale, enable_gqa=gqa)
            parts.append(part.masked_fill((seen <= 0)[:, None], 0))  # ... and then forgets it
        out = parts[0] if len(parts) == 1 else torch.cat(parts, 2)
    out = out.transpose(1, 2)
    return out if batched else out[0]


def attention_vendor(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds_q: Bounds,
    bounds_k: Bounds,
    causal: bool,
    visible: Tensor | None,
    scale: float,
) -> Tensor:
    """flash_attn: its causal mask is aligned at the end too, and rows without keys are 0."""
    assert visible is None
    fused = dispatch.vendor_function("attention")
    longest_q, longest_k = max(bounds_q.max_length, 1), max(bounds_k.max_length, 1)
    cu_q, cu_k = bounds_q.cu_seqlens, bounds_k.cu_seqlens
    return fused(q, k, v, cu_q, cu_k, longest_q, longest_k, softmax_scale=scale, causal=causal)
