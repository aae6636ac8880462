"""The chunked form of the Mamba-2 scan in plain PyTorch, with its own backward pass.

Within a chunk of Q tokens (s: running sum of the log decay, dx[t] = dt[t] x[t], h: state before the chunk):

    y[t]  = sum_{u <= t} exp(s[t] - s[u]) (C[t] . B[u]) dx[u]  +  exp(s[t]) h C[t]  +  D x[t]
    h'    = exp(s[Q]) h + sum_u exp(s[Q] - s[u]) dx[u] B[u]^T

C.B is computed once a group of heads; B and C are never expanded to all heads. Blocks of chunks are small
enough for the cache, and the `[Q, Q]` intermediates of one block exist at a time, in both passes; the forward
pass keeps its inputs, its output and the state before every chunk. Time and memory are linear in the length.

The backward pass needs no gradient of the decay matrix. y and h' are linear in each factor exp(s[t]), so the
gradient of s is that of the outputs which it scales up minus that of the inputs which it scales down:

    ds[t] = dy[t] . (y[t] - D x[t])  -  dx[t] . d(dx)[t],   and  <dh', h'> more at the chunk's last token.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from timeviper.kernels.bounds import Bounds
from timeviper.kernels.ssd_plan import Block, Plan

# Elements of the largest intermediate of a block. On a CPU 512 KiB of float32, so that what a block works on
# stays in the cache (8 times as much is 1.4 times slower); elsewhere enough to fill the device.
BLOCK_CPU, BLOCK = 1 << 17, 1 << 24


def chunked_scan(
    x: Tensor,
    step: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    state: Tensor,
    bounds: Bounds,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """y `[L, H, P]` and final states `[S, H, P, N]` in the dtype of `state`, which step and log_decay have too.

    chunk_size is the most tokens of a chunk; fewer are taken where that is faster.
    """
    if x.device.type == "cpu":  # where products are cheap next to exponentials of the [Q, Q] decays
        chunk_size = min(chunk_size, 64 if state.shape[-1] * state.shape[-2] > 4096 else 32)
    chunk_size = min(chunk_size, 1 << (bounds.max_length - 1).bit_length())
    plan = bounds.cache.get(("ssd", chunk_size))
    if plan is None:
        plan = bounds.cache["ssd", chunk_size] = Plan.of(bounds, chunk_size)
    tensors = (x, step, log_decay, B, C, D, state)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)  # inside, grad mode is always off
    return _ChunkedScan.apply(*tensors, plan, keep)  # pyright: ignore[reportReturnType]


class _ChunkedScan(torch.autograd.Function):
    """x `[L, H, P]`, step and log_decay `[L, H]`, B and C `[L, G, N]`, D `[H]`, state `[S, H, P, N]`."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        x, step, log_decay, B, C, D, state, plan, keep = inputs
        scan = _Scan(plan, x, step, log_decay, B, C, D, state)
        carry = state.clone() if plan.ranked is None else state[plan.ranked]
        before = state.new_empty(plan.chunks if keep else 0, *state.shape[1:])
        y = state.new_empty(scan.x.shape)
        for block in scan.blocks:
            held = before[block.first : block.last] if keep else before.new_empty(block.n, *carry.shape[1:])
            scan.forward_block(block, y, carry, held)
        y = plan.restore(y)
        final = carry if plan.ranked is None else torch.empty_like(carry).index_copy_(0, plan.ranked, carry)
        ctx.plan = plan
        ctx.save_for_backward(x, step, log_decay, B, C, D, y, before)
        return y, final

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        plan: Plan = ctx.plan
        x, step, log_decay, B, C, D, y, before = ctx.saved_tensors
        dy, d_final = grads
        scan = _Scan(plan, x, step, log_decay, B, C, D, before)
        carry = d_final.clone() if plan.ranked is None else d_final[plan.ranked]
        out = _Gradients.empty_for(scan)
        y, dy = plan.align(y), plan.align(dy)
        for block in reversed(scan.blocks):
            scan.backward_block(block, y, dy, before[block.first : block.last], carry, out)
        if plan.ranked is not None:
            carry = torch.empty_like(carry).index_copy_(0, plan.ranked, carry)
        d_decay = out.s.flip(-1).cumsum(-1).flip(-1)  # s is a running sum
        per_token = [t.transpose(1, 2).flatten(0, 1)[: scan.x.shape[0]] for t in (out.step, d_decay)]
        rows = [plan.restore(t) for t in (out.x, *per_token, out.B, out.C)]
        return *rows, out.D, carry, None, None


@dataclass(frozen=True)
class _Gradients:
    x: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    step: Tensor  # [chunks, H, Q]
    s: Tensor  # [chunks, H, Q]

    @classmethod
    def empty_for(cls, scan: _Scan) -> _Gradients:
        zeros = torch.zeros_like(scan.total)
        x, B, C = (t.new_empty(t.shape) for t in (scan.x, scan.B, scan.C))
        return cls(x, B, C, torch.zeros_like(scan.D), zeros, zeros.clone())


class _Scan:
    """The aligned inputs of a scan and the work on one block of its chunks.

    Letters of shapes: n chunks of q tokens, G groups of R heads, P head size, N state size.
    """

    def __init__(
        self,
        plan: Plan,
        x: Tensor,
        step: Tensor,
        log_decay: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        state: Tensor,
    ) -> None:
        self.plan, self.D, self.wide = plan, D, state.dtype
        self.x, self.B, self.C = plan.align(x), plan.align(B), plan.align(C)
        self.H, self.P = x.shape[1:]
        self.G, self.N = B.shape[1:]
        self.R = self.H // self.G
        self.step = self.by_chunk(plan.align(step))
        self.total = self.by_chunk(plan.align(log_decay)).cumsum(-1)  # s
        last = self.total[..., -1:]
        self.from_start, self.to_end = self.total.exp(), (last - self.total).exp()
        self.whole = last.exp()[..., None]  # [chunks, H, 1, 1]
        budget = BLOCK_CPU if x.device.type == "cpu" else BLOCK
        limit = max(1, budget // (self.H * max(plan.size * plan.size, plan.size * self.P, self.P * self.N)))
        self.blocks = plan.blocks(limit, self.x.shape[0])

    def by_chunk(self, t: Tensor) -> Tensor:
        """`[rows, H]` to `[chunks, H, Q]`, the tail filled with zeros."""
        t = F.pad(t, (0, 0, 0, self.plan.chunks * self.plan.size - t.shape[0]))
        return t.view(self.plan.chunks, self.plan.size, -1).transpose(1, 2).contiguous()

    # Views of a block: tokens `[n, q, G, R, P]`, scalars `[n, q, G, R, 1]`, batches of matrices for products.
    def tokens(self, t: Tensor, block: Block) -> Tensor:
        return t[block.rows].reshape(block.n, -1, self.G, self.R, self.P).to(self.wide)

    def scalars(self, t: Tensor, block: Block) -> Tensor:
        t = t[block.first : block.last, :, : block.q].transpose(1, 2)
        return t.unflatten(2, (self.G, self.R))[..., None]

    def by_group(self, t: Tensor) -> Tensor:
        """`[n, q, G, R, P]` to `[n * G, q, R * P]`."""
        return t.transpose(1, 2).reshape(-1, t.shape[1], self.R * self.P)

    def by_head(self, t: Tensor) -> Tensor:
        """`[n, q, G, R, P]` to `[n * H, q, P]`."""
        return t.permute(0, 2, 3, 1, 4).reshape(-1, t.shape[1], self.P)

    def states(self, t: Tensor) -> Tensor:
        """`[n, H, P, N]` to `[n * G, R * P, N]`."""
        return t.view(-1, self.R * self.P, self.N)

    def keys(self, t: Tensor, block: Block) -> Tensor:
        """Rows of B or C as `[n * G, q, N]`."""
        t = t[block.rows].reshape(block.n, -1, self.G, self.N).transpose(1, 2)
        return t.reshape(block.n * self.G, -1, self.N).to(self.wide)

    def from_group(self, t: Tensor, block: Block) -> Tensor:
        return t.view(block.n, self.G, block.q, self.R, self.P).transpose(1, 2)

    def from_head(self, t: Tensor, block: Block) -> Tensor:
        return t.view(block.n, self.G, self.R, block.q, self.P).permute(0, 3, 1, 2, 4)

    def decay(self, block: Block) -> Tensor:
        """exp(s[t] - s[u]) as `[n, G, R, q, q]`; above the diagonal 1, for a masked factor to remove."""
        s = self.total[block.first : block.last, :, : block.q]
        decay = (s[..., :, None] - s[..., None, :]).clamp_(max=0).exp_()
        return decay.unflatten(1, (self.G, self.R))

    def weighted(self, t: Tensor, weight: Tensor) -> Tensor:
        """`t * weight` of `[n, q, G, R, P]`, laid out for products by group: `[n * G, q, R * P]`."""
        n, q, G, R, P = t.shape
        out = t.new_empty(n, G, q, R, P)
        torch.mul(t, weight, out=out.transpose(1, 2))
        return out.view(n * G, q, R * P)

    def forward_block(self, block: Block, y: Tensor, carry: Tensor, before: Tensor) -> None:
        """Write the block's outputs into y and the states before its chunks into `before`; advance `carry`."""
        n, q = block.n, block.q
        B, C, x = self.keys(self.B, block), self.keys(self.C, block), self.tokens(self.x, block)
        step = self.scalars(self.step, block)
        fresh = torch.bmm(self.weighted(x, step * self.scalars(self.to_end, block)).mT, B)
        self.pass_on(block, carry, fresh.view_as(before), block.waves, before)
        CB = torch.bmm(C, B.mT).tril_().view(n, self.G, 1, q, q)
        mixed = self.decay(block).mul_(CB).view(-1, q, q)
        inner = self.from_head(torch.bmm(mixed, self.by_head(x * step)), block)
        outer = self.from_group(torch.bmm(C, self.states(before).mT), block)
        out = y[block.rows].view_as(x)
        torch.addcmul(inner, outer, self.scalars(self.from_start, block), out=out)
        out.addcmul_(x, self.D.view(self.G, self.R, 1))

    def pass_on(
        self, block: Block, carry: Tensor, fresh: Tensor, waves: Iterable[tuple[int, int, int]], held: Tensor
    ) -> None:
        """Wave by wave, write `carry` into `held`, then let it decay and take up `fresh`, both `[n, H, P, N]`."""
        for start, low, high in waves:
            chunks, now = slice(start, start + high - low), carry[low:high]
            held[chunks] = now
            torch.addcmul(fresh[chunks], now, self.whole[block.first : block.last][chunks], out=now)

    def backward_block(
        self, block: Block, y: Tensor, dy: Tensor, before: Tensor, carry: Tensor, out: _Gradients
    ) -> None:
        """Write the block's gradients into `out`; `carry`, the gradient of the states, goes back over it."""
        n, q = block.n, block.q
        B, C, x = self.keys(self.B, block), self.keys(self.C, block), self.tokens(self.x, block)
        y, dy = self.tokens(y, block), self.tokens(dy, block)
        step, to_end = self.scalars(self.step, block), self.scalars(self.to_end, block)
        D = self.D.view(self.G, self.R, 1)

        dy_start = self.weighted(dy, self.scalars(self.from_start, block))
        after = torch.empty_like(before)
        fresh = torch.bmm(dy_start.mT, C).view_as(before)
        self.pass_on(block, carry, fresh, reversed(block.waves), after)

        CB = torch.bmm(C, B.mT).tril_().view(n, self.G, 1, q, q)
        decay, dy_head = self.decay(block), self.by_head(dy)
        d_mixed = torch.bmm(dy_head, self.by_head(x * step).mT).view_as(decay)
        d_CB = d_mixed.mul_(decay).sum(2).tril_().view(-1, q, q)
        dC = torch.bmm(d_CB, B).baddbmm_(dy_start, self.states(before))
        dB = torch.bmm(d_CB.mT, C).baddbmm_(self.weighted(x, step * to_end), self.states(after))
        for grad, value in ((out.B, dB), (out.C, dC)):
            rows = grad[block.rows].view(n, q, self.G, self.N)
            rows.copy_(value.view(n, self.G, q, self.N).transpose(1, 2))

        inner = self.from_head(torch.bmm(decay.mul_(CB).view(-1, q, q).mT, dy_head), block)
        outer = self.from_group(torch.bmm(B, self.states(after).mT), block).mul_(to_end)
        d_dx = inner.add_(outer)
        d_step = (x * d_dx).sum(-1, keepdim=True)
        skip = (dy * x).sum(-1, keepdim=True)
        d_s = (dy * y).sum(-1, keepdim=True) - D * skip - step * d_step
        kept = (after * before).sum((-1, -2)) * self.whole[block.first : block.last, :, 0, 0]
        kept += (step * outer.mul_(x).sum(-1, keepdim=True)).sum((1, 4)).flatten(1)
        torch.addcmul(d_dx.mul_(step), dy, D, out=out.x[block.rows].view_as(x))
        out.D.add_(skip.sum((0, 1)).flatten())
        self.scalars(out.step, block).copy_(d_step)
        self.scalars(out.s, block).copy_(d_s)
        out.s[block.first : block.last, :, -1] += kept
