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
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from timeviper.kernels.bounds import Bounds
from timeviper.kernels.ssd_plan import Block, Plan

# Elements of the largest intermediate of a block. On a CPU 512 KiB of float32, so that what a block works on
# stays in the cache (8 times as much is 1.4 times slower); elsewhere enough to fill the device.
BLOCK_CPU, BLOCK = 1 << 17, 1 << 24

Waves = Iterable[tuple[int, int, int]]


def tokens_per_chunk(chunk_size: int, state: int, longest: int, device_type: str) -> int:
    """Tokens a chunk for heads with a state of `state` = P * N elements, where the longest sequence has `longest`."""
    if device_type == "cpu":  # where products are cheap next to exponentials of the [Q, Q] decays
        chunk_size = min(chunk_size, 64 if state > 4096 else 32)
    return min(chunk_size, 1 << (longest - 1).bit_length())


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
    chunk_size = tokens_per_chunk(chunk_size, state.shape[-1] * state.shape[-2], bounds.max_length, x.device.type)
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
        y = plan.restore(y.flatten(1, 2))  # [rows, G, R, P] -> [L, H, P]
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
        out = _Gradients(scan)
        y, dy = (plan.align(t).unflatten(1, (scan.G, scan.R)) for t in (y, dy))  # [rows, G, R, P]
        for block in reversed(scan.blocks):
            scan.backward_block(block, y, dy, before[block.first : block.last], carry, out)
        if plan.ranked is not None:
            carry = torch.empty_like(carry).index_copy_(0, plan.ranked, carry)
        d_step, d_decay, d_D = out.small(scan)
        # [chunks, H, Q] -> [rows, H], without the tail that `by_chunk` filled
        per_token = (t.transpose(1, 2).flatten(0, 1)[: scan.x.shape[0]] for t in (d_step, d_decay))
        rows = (plan.restore(t) for t in (out.x.flatten(1, 2), *per_token, out.B, out.C))
        return *rows, d_D, carry, None, None


class _Gradients:
    """What the blocks' backward passes fill in."""

    def __init__(self, scan: _Scan) -> None:
        self.x, self.B, self.C = (t.new_empty(t.shape) for t in (scan.x, scan.B, scan.C))
        chunks, H, Q = scan.total.shape
        # Sums over P for each token and head, [chunks, H, Q]: x . d(dx), that by the state alone, dy . x, dy . y
        self.sums = scan.total.new_zeros(4, chunks, H, Q)
        self.states = scan.total.new_zeros(chunks, H)  # <dh', h>

    def small(self, scan: _Scan) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of step and log decay `[chunks, H, Q]` and of D `[H]`."""
        d_step, by_state, dy_x, dy_y = self.sums
        d_s = dy_y - scan.D[:, None] * dy_x - scan.step * d_step
        # <dh', h'> at a chunk's last token: what came in with the state before, and what the chunk's tokens added
        d_s[..., -1] += self.states * scan.whole[..., 0, 0] + (scan.step * by_state).sum(-1)
        return d_step, d_s.flip(-1).cumsum(-1).flip(-1), dy_x.sum((0, 2))  # s is a running sum


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
        (self.H, self.P), (self.G, self.N) = x.shape[1:], B.shape[1:]
        self.plan, self.R, self.wide = plan, self.H // self.G, state.dtype
        self.x = plan.align(x).unflatten(1, (self.G, self.R))  # [rows, G, R, P]
        self.B, self.C = plan.align(B), plan.align(C)  # [rows, G, N]
        self.step = self.by_chunk(plan.align(step))  # [chunks, H, Q]
        self.total = self.by_chunk(plan.align(log_decay)).cumsum(-1)  # s
        last = self.total[..., -1:]
        self.whole = last.exp()[..., None]  # [chunks, H, 1, 1]
        self.D, self.skip = D, D.view(self.G, self.R, 1)
        to_end = (last - self.total).exp()  # decay from a token to the end of its chunk
        weights = (self.step, self.step * to_end, to_end, self.total.exp())
        self.w_step, self.w_step_to_end, self.w_to_end, self.w_from_start = map(self.by_token, weights)
        budget = BLOCK_CPU if x.device.type == "cpu" else BLOCK
        limit = max(1, budget // (self.H * max(plan.size**2, plan.size * self.P, self.P * self.N)))
        self.blocks = plan.blocks(limit, self.x.shape[0])

    def by_chunk(self, t: Tensor) -> Tensor:
        """`[rows, H]` to `[chunks, H, Q]`, the tail filled with zeros."""
        t = F.pad(t, (0, 0, 0, self.plan.chunks * self.plan.size - t.shape[0]))
        return t.view(self.plan.chunks, self.plan.size, -1).transpose(1, 2).contiguous()

    def by_token(self, t: Tensor) -> Tensor:
        """`[chunks, H, Q]` seen as `[chunks, Q, G, R, 1]`."""
        return t.transpose(1, 2).unflatten(2, (self.G, self.R))[..., None]

    # Of one block: tokens are [n, q, G, R, P] and scalars [n, q, G, R, 1]; products take batches of matrices.
    def tokens(self, t: Tensor, block: Block) -> Tensor:
        return t[block.rows].view(block.n, block.q, self.G, self.R, self.P).to(self.wide)

    def scalars(self, t: Tensor, block: Block) -> Tensor:
        return t[block.first : block.last, : block.q]

    def keys(self, t: Tensor, block: Block) -> Tensor:
        """Rows of B or C as `[n * G, q, N]`."""
        t = t[block.rows].view(block.n, block.q, self.G, self.N).transpose(1, 2)  # [n, G, q, N]
        return t.reshape(block.n * self.G, block.q, self.N).to(self.wide)

    def by_head(self, t: Tensor) -> Tensor:
        """`[n, q, G, R, P]` to `[n * H, q, P]`."""
        return t.permute(0, 2, 3, 1, 4).reshape(-1, t.shape[1], self.P)

    def by_group(self, t: Tensor, weight: Tensor) -> Tensor:
        """`t * weight` of `[n, q, G, R, P]`, laid out as `[n * G, q, R * P]`."""
        n, q, G, R, P = t.shape
        out = t.new_empty(n, G, q, R, P)
        torch.mul(t, weight, out=out.transpose(1, 2))
        return out.view(n * G, q, R * P)

    def from_head(self, t: Tensor, block: Block) -> Tensor:
        """`[n * H, q, P]` seen as `[n, q, G, R, P]`."""
        return t.view(block.n, self.G, self.R, block.q, self.P).permute(0, 3, 1, 2, 4)

    def from_group(self, t: Tensor, block: Block) -> Tensor:
        """`[n * G, q, R * P]` seen as `[n, q, G, R, P]`."""
        return t.view(block.n, self.G, block.q, self.R, self.P).transpose(1, 2)

    def states(self, t: Tensor) -> Tensor:
        """`[n, H, P, N]` to `[n * G, R * P, N]`."""
        return t.view(-1, self.R * self.P, self.N)

    def decay(self, block: Block) -> Tensor:
        """exp(s[t] - s[u]) as `[n, G, R, q, q]`; above the diagonal 1, for a masked factor to remove."""
        s = self.total[block.first : block.last, :, : block.q]
        decay = (s[..., None] - s[..., None, :]).clamp_(max=0).exp_()
        return decay.view(block.n, self.G, self.R, block.q, block.q)

    def masked_CB(self, B: Tensor, C: Tensor, block: Block) -> Tensor:
        """C[t] . B[u] for u <= t, else 0, as `[n, G, 1, q, q]`."""
        return torch.bmm(C, B.mT).tril_().view(block.n, self.G, 1, block.q, block.q)

    def forward_block(self, block: Block, y: Tensor, carry: Tensor, before: Tensor) -> None:
        """Write the block's outputs into y and the states before its chunks into `before`; advance `carry`."""
        B, C, x = self.keys(self.B, block), self.keys(self.C, block), self.tokens(self.x, block)
        ending = self.by_group(x, self.scalars(self.w_step_to_end, block))
        self.pass_on(block, block.waves, carry, ending, B, before)
        mixed = self.decay(block).mul_(self.masked_CB(B, C, block)).view(-1, block.q, block.q)  # [n * H, q, q]
        inner = torch.bmm(mixed, self.by_head(x * self.scalars(self.w_step, block)))  # within chunks: [n * H, q, P]
        outer = self.from_group(torch.bmm(C, self.states(before).mT), block)  # what the state before gives
        out = y[block.rows].view(x.shape)
        torch.addcmul(self.from_head(inner, block), outer, self.scalars(self.w_from_start, block), out=out)
        out.addcmul_(x, self.skip)

    def pass_on(self, block: Block, waves: Waves, carry: Tensor, left: Tensor, right: Tensor, held: Tensor) -> None:
        """Wave by wave, write `carry` into `held [n, H, P, N]`; then let it decay and take up left^T right."""
        for start, low, high in waves:
            stop, now = start + high - low, carry[low:high]
            held[start:stop] = now
            now.mul_(self.whole[block.first + start : block.first + stop])
            groups = slice(start * self.G, stop * self.G)
            self.states(now).baddbmm_(left[groups].mT, right[groups])

    def backward_block(
        self, block: Block, y: Tensor, dy: Tensor, before: Tensor, carry: Tensor, out: _Gradients
    ) -> None:
        """Write the block's gradients into `out`; `carry`, the gradient of the states, goes back over it."""
        q, chunks = block.q, slice(block.first, block.last)
        B, C, x = self.keys(self.B, block), self.keys(self.C, block), self.tokens(self.x, block)
        y, dy, step = self.tokens(y, block), self.tokens(dy, block), self.scalars(self.w_step, block)
        after = torch.empty_like(before)  # gradients of the states after the chunks
        starting = self.by_group(dy, self.scalars(self.w_from_start, block))
        self.pass_on(block, reversed(block.waves), carry, starting, C, after)

        decay, CB, dy_head = self.decay(block), self.masked_CB(B, C, block), self.by_head(dy)
        d_mixed = torch.bmm(dy_head, self.by_head(x * step).mT).view(decay.shape)  # [n, G, R, q, q]
        d_CB = d_mixed.mul_(decay).sum(2).tril_().view(-1, q, q)  # summed over the heads of a group: [n * G, q, q]
        ending = self.by_group(x, self.scalars(self.w_step_to_end, block))
        dC = torch.bmm(d_CB, B).baddbmm_(starting, self.states(before))
        dB = torch.bmm(d_CB.mT, C).baddbmm_(ending, self.states(after))
        for grad, value in ((out.B, dB), (out.C, dC)):
            rows = grad[block.rows].view(block.n, q, self.G, self.N)
            rows.copy_(value.view(block.n, self.G, q, self.N).transpose(1, 2))

        outer = self.from_group(torch.bmm(B, self.states(after).mT), block)
        outer.mul_(self.scalars(self.w_to_end, block))
        inner = torch.bmm(decay.mul_(CB).view(-1, q, q).mT, dy_head)  # [n * H, q, P]
        d_dx = self.from_head(inner, block).add_(outer)
        # Views that are written into; `outer`, `after` and `d_dx` are used up from here on.
        sums = out.sums[:, chunks, :, :q].transpose(2, 3).view(4, block.n, q, self.G, self.R)
        for total, product in zip(sums, (x * d_dx, outer.mul_(x), x * dy, y * dy)):
            torch.sum(product, -1, out=total)
        torch.sum(after.mul_(before).flatten(2), -1, out=out.states[chunks])
        torch.addcmul(d_dx.mul_(step), dy, self.skip, out=out.x[block.rows].view(x.shape))
