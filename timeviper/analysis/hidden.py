"""Rows and column sums of the hidden attention of Mamba-2 scans, and of softmax attention: tensors only, no new kernel.

With step_t = softplus(dt_t + dt_bias) and s_t the running sum of A step_t, a scan is `y_i = sum_j M[i,j] x_j + D x_i`,

    M[i,j] = (C_i . B_j) exp(s_i - s_j) step_j     for j <= i in the same sequence, else 0

(Ali et al., arXiv 2403.01590, for Mamba; Dao & Gu 2024, section 6, for Mamba-2), for each head, with B and C of its
group. Nothing here builds `[L, L]`: K rows take K L (G N + H) products, sums over all queries one backward of the
scan whose P axis holds something else. Running sums are float64: over an hour of video they grow to -5e4, where a
difference of two in float32 would be wrong by 2.5e-3. What lies outside of M (convolution, D, gate, norm) is split by
`relevance.py`.

Letters: L tokens of a pack, n of a piece, K queries, F buckets, H heads, G groups of them, P head size, N state size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from timeviper.kernels.bounds import Bounds
from timeviper.kernels.ssd_chunked import chunked_scan

Measure = Literal["signed", "absolute", "mass"]
"""Of an entry: itself; its size; its size times that of the x or v that it weighs, which is in units of y."""
BLOCK = 1 << 21  # entries of rows at a time: 16 MB in float64
AT_ONCE = 1024  # tokens whose rows are added to buckets at a time: they are of 1024 buckets at most


@dataclass(frozen=True)
class Scanned:
    """What a scan reads of the tokens of a pack, or of a piece of one sequence."""

    x: Tensor
    """`[n, H, P]`, behind the convolution."""
    step: Tensor
    """`[n, H]`, float32 or wider."""
    log_decay: Tensor
    """`[n, H]`: A step."""
    sums: Tensor
    """`[n, H]` float64: of log_decay, up to and with the token; over a pack they run on, since only differences within
    a sequence are taken."""
    B: Tensor
    C: Tensor
    """`[n, G, N]`."""
    bounds: Bounds

    @classmethod
    def of(
        cls,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        dt_bias: Tensor,
        bounds: Bounds,
        before: Tensor | None = None,
    ) -> Scanned:
        """From what `kernels.ssd.ssd` takes; before: `[H]`, the sums at the end of the piece before."""
        wide = torch.promote_types(x.dtype, torch.float32)
        step = F.softplus(dt.to(wide) + dt_bias.to(wide))
        log_decay = step * A.to(wide)
        sums = log_decay.cumsum(0, dtype=torch.float64)
        return cls(x, step, log_decay, sums if before is None else sums + before, B, C, bounds)

    def queries(self, places: Tensor, first: int = 0) -> Queries:
        """The tokens at `places [K]`, counted from the first of these tokens, which is number `first` of its stream."""
        return Queries(self.C[places], self.sums[places], places + first, self.bounds.seq_idx[places])

    def part(self, rows: slice) -> Scanned:
        """Some of the tokens beside each other, of one sequence."""
        n = len(self.x[rows])
        x, step, log_decay, sums, B, C = (
            t[rows] for t in (self.x, self.step, self.log_decay, self.sums, self.B, self.C)
        )
        return Scanned(x, step, log_decay, sums, B, C, Bounds([n], self.x.device))


@dataclass(frozen=True)
class Queries:
    """Tokens whose rows are wanted."""

    C: Tensor
    """`[K, G, N]`"""
    sums: Tensor
    """`[K, H]` float64."""
    place: Tensor
    """`[K]` int64, in the stream."""
    seq: Tensor
    """`[K]` int64: their sequences."""

    @staticmethod
    def join(parts: list[Queries]) -> Queries:
        return Queries(*(torch.cat([getattr(part, name) for part in parts]) for name in ("C", "sums", "place", "seq")))


def rows(queries: Queries, tokens: Scanned, first: int = 0, seq: Tensor | None = None) -> Tensor:
    """M of K queries and n tokens, the first of which is number `first` of the stream: `[K, H, n]`, signed, in the
    dtype of the steps. seq: `[n]` the tokens' sequences, those of their bounds if not said."""
    place = torch.arange(first, first + len(tokens.x), device=tokens.x.device)
    seq = tokens.bounds.seq_idx if seq is None else seq
    hidden = (place > queries.place[:, None]) | (seq != queries.seq[:, None])  # [K, n]
    wide = tokens.step.dtype
    products = torch.einsum("kgn,lgn->kgl", queries.C.to(wide), tokens.B.to(wide))  # [K, G, n]
    groups = products.shape[1]
    if not bool(hidden.any()):  # all of them are behind: one exponential a token and head, not one a query
        edge = tokens.sums[-1]
        near, far = (edge - tokens.sums).exp().to(wide) * tokens.step, (queries.sums - edge).exp().to(wide)
        found = products[:, :, None] * near.T.unflatten(0, (groups, -1)) * far.unflatten(1, (groups, -1))[..., None]
        return found.flatten(1, 2)
    # Masked before the exponential, which would overflow above the diagonal.
    gap = (queries.sums[:, :, None] - tokens.sums.T).masked_fill_(hidden[:, None], -torch.inf)
    weight = gap.exp_().to(wide) * tokens.step.T  # [K, H, n]
    return (weight.unflatten(1, (groups, -1)) * products[:, :, None]).flatten(1, 2)


def measured(found: Tensor, sizes: Tensor, measure: Measure) -> Tensor:
    """Rows `[K, H, n]` as the measure has them; sizes `[n, H]` of what they weigh."""
    if measure == "signed":
        return found
    return found.abs() if measure == "absolute" else found.abs() * sizes.T


def add_rows(
    out: Tensor, queries: Queries, tokens: Scanned, bucket: Tensor, first: int = 0, measure: Measure = "mass"
) -> None:
    """Add the rows of K queries to `out [K, H, F]`, each token to its `bucket [n]`; so many tokens at a time that
    memory depends neither on n nor on K."""
    seq, size = tokens.bounds.seq_idx, max(BLOCK // max(out[..., 0].numel(), 1), 1)
    for start in range(0, len(tokens.x), size):
        part = tokens.part(cut := slice(start, start + size))
        found = rows(queries, part, first + start, seq[cut])
        sizes = part.x.to(found.dtype).norm(dim=-1)
        scatter(out, measured(found, sizes, measure), bucket[cut])


def scatter(out: Tensor, found: Tensor, bucket: Tensor) -> None:
    """Add `found [..., n]` to `out [..., F]` by `bucket [n]`: a product, since buckets beside each other are few."""
    for part, here in zip(found.split(AT_ONCE, -1), bucket.split(AT_ONCE)):
        used, which = here.unique(return_inverse=True)
        chosen = F.one_hot(which, len(used)).to(found.dtype)  # [n, f]
        out.index_add_(-1, used, (part @ chosen).to(out.dtype))


# ---- over all queries --------------------------------------------------------------------------------------


def column_sums(tokens: Scanned, weight: Tensor) -> Tensor:
    """What each token gives to all queries, `sum_i w_i M[i,j]`, signed: `[L, H]` for weight `[L]` or `[L, H]`."""
    weight = weight if weight.ndim == 2 else weight[:, None].expand_as(tokens.step)
    return _backward(tokens, weight.to(tokens.step.dtype)[..., None], tokens.B, tokens.C, tokens.log_decay)[..., 0]


def column_energy(tokens: Scanned, weight: Tensor, probes: int = 0, seed: int = 0) -> Tensor:
    """`sum_i w_i M[i,j]^2`, `[L, H]`, for weights `[L]` of 0 or more: nothing cancels in it.

    Exact with probes 0, as a scan whose state holds N^2 numbers, `[L, G, N^2]` of memory. Else estimated from so many
    random signs, in that of P = probes, with a relative deviation of `sqrt(2 / probes)` at most.
    """
    if probes:
        generator = torch.Generator(tokens.x.device).manual_seed(seed)
        shape = (*tokens.step.shape, probes)
        signs = torch.randint(0, 2, shape, generator=generator, device=tokens.x.device) * 2.0 - 1.0
        cotangent = signs.to(tokens.step.dtype) * weight.to(tokens.step.dtype).sqrt()[:, None, None]
        return _backward(tokens, cotangent, tokens.B, tokens.C, tokens.log_decay).square().mean(-1)
    B, C = ((t[..., :, None] * t[..., None, :]).flatten(2) for t in (tokens.B, tokens.C))  # [L, G, N^2]
    cotangent = weight.to(tokens.step.dtype)[:, None, None].expand(*tokens.step.shape, 1)
    return _backward(tokens, cotangent, B, C, 2 * tokens.log_decay)[..., 0] * tokens.step


def bucket_mass(tokens: Scanned, bucket: Tensor, count: int) -> Tensor:
    """What every query reads of each of `count` source buckets, signed: `[L, H, F]`, one scan whose x says which
    bucket a token is of."""
    x = F.one_hot(bucket, count).to(tokens.step.dtype)[:, None].expand(-1, tokens.step.shape[1], -1)
    return _scan(x.contiguous(), tokens, tokens.B, tokens.C, tokens.log_decay)


def _backward(tokens: Scanned, cotangent: Tensor, B: Tensor, C: Tensor, log_decay: Tensor) -> Tensor:
    """The gradient `[L, H, P]` of a scan's x."""
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.zeros(cotangent.shape, dtype=cotangent.dtype, device=cotangent.device, requires_grad=True)
        y = _scan(x, tokens, *(t.detach().clone() for t in (B, C, log_decay)))
        return torch.autograd.grad(y, x, cotangent.contiguous().clone())[0]


def _scan(x: Tensor, tokens: Scanned, B: Tensor, C: Tensor, log_decay: Tensor) -> Tensor:
    """`[L, H, P]` through the definition's chunked form, without D. (The vendor's is made for its own P alone.)"""
    wide, (_, H, P) = tokens.step.dtype, x.shape
    state = torch.zeros(tokens.bounds.num_sequences, H, P, B.shape[-1], dtype=wide, device=x.device)
    D = torch.zeros(H, dtype=wide, device=x.device)
    step = tokens.step.detach().clone() if torch.is_grad_enabled() else tokens.step
    return chunked_scan(x, step, log_decay, B.to(wide), C.to(wide), D, state, tokens.bounds, 64)[0]


# ---- softmax attention ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """Queries of softmax attention."""

    q: Tensor
    """`[K, H, P]`, turned by their positions where the family does that."""
    place: Tensor
    """`[K]` int64: keys up to this one are seen."""
    first: Tensor | None = None
    """`[K]` int64: and none before this one, where the sequence begins; None: 0."""


def attention_rows(asked: Asked, k: Tensor) -> Tensor:
    """Shares `[K, H, L]` that K queries pay to the keys `[L, Hkv, P]` of their sequences; each row sums to 1."""
    return _logits(asked, k, 0).softmax(-1)


def add_attention(out: Tensor, asked: Asked, k: Tensor, v: Tensor, bucket: Tensor, measure: Measure = "mass") -> None:
    """Add the same to `out [K, H, F]` by `bucket [L]`, in two sweeps over the keys: the first finds the sums."""
    for part, shares in attention_blocks(asked, k):
        sizes = v[part].to(shares.dtype).norm(dim=-1)  # [n, Hkv]
        sizes = sizes.repeat_interleave(shares.shape[1] // sizes.shape[1], 1)
        scatter(out, measured(shares, sizes, measure), bucket[part])


def attention_blocks(asked: Asked, k: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """`attention_rows` some keys at a time: which, and their shares `[K, H, n]`."""
    size = max(BLOCK // max(asked.q[..., 0].numel(), 1), 1)
    parts = [slice(start, start + size) for start in range(0, len(k), size)]
    total = torch.stack([_logits(asked, k[part], part.start).logsumexp(-1) for part in parts]).logsumexp(0)  # [K, H]
    for part in parts:
        yield part, (_logits(asked, k[part], part.start) - total[..., None]).exp()


def _logits(asked: Asked, k: Tensor, start: int) -> Tensor:
    """`[K, H, n]`, minus infinity where nothing is seen."""
    wide = torch.promote_types(asked.q.dtype, torch.float32)
    q = asked.q.to(wide).unflatten(1, (k.shape[1], -1)) * k.shape[-1] ** -0.5  # [K, Hkv, H / Hkv, P]
    logits = torch.einsum("kgrp,ngp->kgrn", q, k.to(wide)).flatten(1, 2)
    place = torch.arange(start, start + len(k), device=k.device)
    hidden = place > asked.place[:, None]
    if asked.first is not None:
        hidden = hidden | (place < asked.first[:, None])
    return logits.masked_fill(hidden[:, None], -torch.inf)


# ---- what rows say ---------------------------------------------------------------------------------------------


def mean_distance(found: Tensor, place: Tensor) -> Tensor:
    """Tokens that the mass of rows `[K, H, L]` of queries at `place [K]` lies back, on the mean: `[K, H]` (after
    DeciMamba, arXiv 2406.14528)."""
    back = place[:, None, None] - torch.arange(found.shape[-1], device=found.device)
    mass = found.abs()
    return (mass * back).sum(-1) / mass.sum(-1)


def entropy(found: Tensor) -> Tensor:
    """Of the mass of rows `[K, H, L]`, in bits: `[K, H]`."""
    share = found.abs() / found.abs().sum(-1, keepdim=True)
    return -torch.special.xlogy(share, share).sum(-1) / torch.log(torch.tensor(2.0, dtype=found.dtype))
