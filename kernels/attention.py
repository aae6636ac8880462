"""Attention over packed streams: self-attention, prefill in chunks, decode, cross-attention in one signature.

What a query sees is one number, its `limit`: the first `limit` keys of its own sequence. Causality (aligned at
the end, so that cached keys just work) and `visible` only lower that number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from timeviper.kernels import dispatch
from timeviper.kernels.bounds import Bounds
from timeviper.kernels.host import on_device
from timeviper.kernels.prefix_attention import Runs, attend_prefixes, missing

SHORT = 512  # sequences up to here are padded and computed together, longer ones alone and in place
MASK_BUDGET = 1 << 22  # elements of a mask: longer queries are cut into rows; 4 times as many are no faster


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds_q: Bounds,
    bounds_k: Bounds,
    causal: bool = False,
    visible: Tensor | None = None,
    scale: float | None = None,
    runs: Runs | None = None,
) -> Tensor:
    """Softmax attention of each query over keys of its own sequence; `[Lq, H, P]` in q's dtype.

    Shapes: q `[Lq, H, P]`, k and v `[Lk, Hkv, P]` (query head h reads key head `h // (H / Hkv)`).
    causal: query i of n sees the first `m - n + i + 1` of m keys. visible `[Lq]`: it sees at most that many
    leading keys. A query that sees no key gets exactly 0 and passes no gradient. scale: default `P ** -0.5`.
    runs: what the host knows of `visible`, which lets flash kernels do it (see `prefix_attention`).
    """
    assert bounds_q.num_sequences == bounds_k.num_sequences, (bounds_q, bounds_k)
    assert q.shape[0] == bounds_q.num_tokens, (q.shape, bounds_q)
    assert k.shape[0] == v.shape[0] == bounds_k.num_tokens, (k.shape, v.shape, bounds_k)
    assert q.shape[1] % k.shape[1] == 0, f"{q.shape[1]} query heads cannot share {k.shape[1]} key heads"
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    unsupported = ""
    if visible is not None and runs is None and bounds_q.max_length == 1:  # decode
        runs = [[(n, m)] for n, m in zip(bounds_q.lengths, bounds_k.lengths)]
    if visible is not None:
        unsupported = missing(q, causal, runs)
    if q.shape[-1] > 256 or q.shape[-1] % 8:
        unsupported = f"flash attention has no kernel for heads of {q.shape[-1]}"
    form = {"reference": attention_reference, "torch": attention_torch, "vendor": attention_vendor}
    chosen = form[dispatch.choose("attention", q, unsupported)]
    if visible is not None and chosen is attention_vendor:
        assert runs is not None
        return attend_prefixes(q, k, v, visible, bounds_q, bounds_k, runs, factor)
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
            scores = torch.einsum("hp,khp->hk", q[first_q + i], k[keys]) * scale  # [H, keys]
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
    plan = _Plan.of(bounds_q, bounds_k)
    parts: list[Tensor] = []
    for rows_q, rows_k in plan.batches:
        q_, k_, v_ = _take(q, rows_q), _take(k, rows_k), _take(v, rows_k)
        # [members, longest, H, P], with pads among the rows, which no place points at
        parts.append(_attend(q_, k_, v_, None if limit is None else limit[rows_q], scale).flatten(0, 1))
    for s in plan.alone:
        qs, ks = (slice(b.offsets[s], b.offsets[s + 1]) for b in (bounds_q, bounds_k))
        parts.append(
            _attend(q[None, qs], k[None, ks], v[None, ks], None if limit is None else limit[None, qs], scale)[0]
        )
    if not parts:
        return q * 1
    y = parts[0] if len(parts) == 1 else torch.cat(parts)
    return y if plan.places is None else y.index_select(0, plan.places)


def key_limit(bounds_q: Bounds, bounds_k: Bounds, causal: bool, visible: Tensor | None) -> Tensor:
    """`[Lq]` int64: how many leading keys of its own sequence each query sees (0 or less: none)."""
    counts = bounds_k.cu_seqlens.long().diff()  # [S] keys
    limit = counts[bounds_q.seq_idx]
    if causal:
        limit = limit - bounds_q.cu_seqlens.long().diff()[bounds_q.seq_idx] + bounds_q.position + 1
    return limit if visible is None else torch.minimum(limit, visible.to(limit.dtype))


def group_by_length(queries: Sequence[int], keys: Sequence[int]) -> tuple[list[list[int]], list[int]]:
    """The sequences that are padded and computed together, and those that are computed alone, from their numbers
    of queries and keys."""
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    alone: list[int] = []
    for s, (n, m) in enumerate(zip(queries, keys)):
        if n and m and max(n, m) <= SHORT:
            # Lengths with as many binary digits: padding at most doubles one, and shapes stay few.
            buckets[n.bit_length(), m.bit_length()].append(s)
        elif n:
            alone.append(s)
    together = [members for members in buckets.values() if len(members) > 1]
    return together, sorted(alone + [s for members in buckets.values() if len(members) == 1 for s in members])


@dataclass(frozen=True)
class _Plan:
    """Which sequences are padded and computed together, of like lengths by powers of two, and which alone."""

    batches: list[tuple[Tensor, Tensor]]
    """Rows of q `[members, longest]` and rows of k; a pad repeats the last row of its own sequence."""
    alone: list[int]
    places: Tensor | None
    """`[Lq]`: where each query is in the results laid end to end; None: there already."""

    @classmethod
    def of(cls, bounds_q: Bounds, bounds_k: Bounds) -> _Plan:
        key = ("attention", bounds_k.lengths)
        if key not in bounds_q.cache:
            bounds_q.cache[key] = cls._build(bounds_q, bounds_k)
        return bounds_q.cache[key]

    @classmethod
    def _build(cls, bounds_q: Bounds, bounds_k: Bounds) -> _Plan:
        together, alone = group_by_length(bounds_q.lengths, bounds_k.lengths)
        starts, end = [0] * bounds_q.num_sequences, 0
        for members in together:
            longest = max(bounds_q.lengths[s] for s in members)
            for s in members:
                starts[s], end = end, end + longest
        for s in alone:
            starts[s], end = end, end + bounds_q.lengths[s]
        batches = [(_padded_rows(members, bounds_q), _padded_rows(members, bounds_k)) for members in together]
        if (*starts, end) == bounds_q.offsets:
            return cls(batches, alone, None)
        places = on_device(starts, bounds_q.device)[bounds_q.seq_idx] + bounds_q.position
        return cls(batches, alone, places)


def _padded_rows(members: list[int], bounds: Bounds) -> Tensor:
    """`[members, longest]` rows of the stream; a pad repeats its own sequence's last row."""
    ends = on_device([[bounds.offsets[s], bounds.lengths[s] - 1] for s in members], bounds.device)
    starts, last = ends.split(1, dim=1)  # [members, 1] each
    place = torch.arange(max(bounds.lengths[s] for s in members), device=bounds.device)
    return starts + torch.minimum(place, last)


def _take(t: Tensor, rows: Tensor) -> Tensor:
    """`t[rows]`, whose gradient is a sum by rows and so much cheaper."""
    return t.index_select(0, rows.flatten()).unflatten(0, rows.shape)  # [members, longest, heads, P]


def _attend(q: Tensor, k: Tensor, v: Tensor, limit: Tensor | None, scale: float) -> Tensor:
    """Attention of `[b, n, H, P]` over `[b, m, Hkv, P]`; limit `[b, n]`, None: causal with n = m."""
    n, m = q.shape[1], k.shape[1]
    if m == 0:
        return q * 0
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # [b, H, n, P], [b, Hkv, m, P] twice
    gqa = q.shape[1] != k.shape[1]
    if limit is None:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=gqa)
        return out.transpose(1, 2)
    keys = torch.arange(m, device=q.device)
    step = max(1, MASK_BUDGET // (q.shape[0] * m))
    parts = []
    for rows in (slice(i, i + step) for i in range(0, n, step)):
        seen = limit[:, None, rows, None]  # [b, 1, rows, 1], the same for all heads
        mask = keys < seen.clamp_min(1)  # [b, 1, rows, m]; a query without keys looks at key 0 ...
        part = F.scaled_dot_product_attention(q[:, :, rows], k, v, mask, scale=scale, enable_gqa=gqa)
        parts.append(part.masked_fill(seen <= 0, 0))  # ... and then forgets it
    out = parts[0] if len(parts) == 1 else torch.cat(parts, 2)
    return out.transpose(1, 2)


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
    """Flash attention, flash_attn's or torch's: its causal mask is aligned at the end too, rows without keys are 0."""
    assert visible is None
    if q.shape[0] == 0 or k.shape[0] == 0:
        return q * 0
    kernel = dispatch.kernel("attention", q)
    cu, longest = (bounds_q.cu_seqlens, bounds_k.cu_seqlens), (bounds_q.max_length, bounds_k.max_length)
    if longest[0] == 1 and bounds_q.num_tokens < bounds_q.num_sequences:
        longest = (2, longest[1])  # of 1, it concludes that every sequence has one query
    if kernel.name == "flash_attn_varlen_func":
        return kernel.function(q, k, v, *cu, *longest, softmax_scale=scale, causal=causal)
    options: dict[str, Any] = {"scale": scale, "window_size": (-1, 0 if causal else -1)}
    if "enable_gqa" in signature(kernel.function).parameters:  # before torch 2.12 its kernels did so unasked
        options["enable_gqa"] = q.shape[1] != k.shape[1]
    return kernel.function(q, k, v, *cu, *longest, **options)
