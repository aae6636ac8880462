"""The chunked form of the Mamba-2 scan in plain PyTorch, with its own backward pass.

Within a chunk of Q tokens (s is the running sum of the log decay, dx[t] = dt[t] x[t], h the state before the chunk):

    y[t]  = sum_{u <= t} exp(s[t] - s[u]) (C[t] . B[u]) dx[u]  +  exp(s[t]) h C[t]  +  D x[t]
    h'    = exp(s[Q]) h + sum_u exp(s[Q] - s[u]) dx[u] B[u]^T

C.B is computed once a group of heads; B and C are never expanded to all heads. Chunks are processed in blocks that stay in the
cache, so the `[Q, Q]` intermediates of one block exist at a time, in both passes; the forward pass keeps its inputs,
its output and the state before every chunk. Time and memory are linear in the length.

The backward pass needs no gradient of the decay matrix: as y and h' are linear in each factor exp(s[t]), the gradient of s
is that of the outputs it scales up minus that of the inputs it scales down,

    ds[t] = dy[t] . (y[t] - D x[t])  -  dx[t] . d(dx)[t],    and  <dh', h'> more at the chunk's last token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from timeviper.kernels.bounds import Bounds

BLOCK = 1 << 20  # elements of a block's largest intermediate: 4 MiB in float32


@dataclass(frozen=True)
class Block:
    """Chunks that are computed together."""

    first: int
    last: int
    rows: slice  # of the aligned stream
    q: int  # tokens of each chunk
    waves: tuple[tuple[int, int, int], ...]
    """(chunk, low, high): from that chunk of the block on, the next chunk of each of the sequences ranked [low, high)."""

    @property
    def n(self) -> int:
        return self.last - self.first


@dataclass(frozen=True)
class Plan:
    """How a pack is laid out in chunks of one sequence each.

    Sequences are ranked by their number of chunks, falling; chunks are ordered by their place in the sequence, then by
    rank. So the sequences that still run at any place are the first ones, and the carried states of a wave are a slice.
    """

    size: int  # tokens a chunk
    chunks: int
    widths: tuple[int, ...]  # sequences that have a chunk at place 0, 1, ...
    slots: Tensor | None  # [L] row of each token in the aligned stream; None: the stream as it is
    ranked: Tensor | None  # [S] sequences by rank; None: as they are

    @classmethod
    def of(cls, bounds: Bounds, size: int) -> Plan:
        counts = [-(-n // size) for n in bounds.lengths]
        order = sorted(range(len(counts)), key=lambda s: -counts[s])
        widths = [sum(c > place for c in counts) for place in range(max(counts))]
        if len(counts) == 1:
            return cls(size, sum(counts), tuple(widths), None, None)
        device = bounds.device
        rank = torch.tensor(order, device=device).argsort()
        starts = torch.tensor([0, *widths], device=device).cumsum(0)
        place, within = bounds.position // size, bounds.position % size
        slots = (starts[place] + rank[bounds.seq_idx]) * size + within
        ranked = None if order == sorted(order) else torch.tensor(order, device=device)
        return cls(size, sum(counts), tuple(widths), slots, ranked)

    def blocks(self, limit: int, rows: int) -> list[Block]:
        """All chunks in order, at most `limit` a block; a short tail of an unaligned stream is a block of its own."""
        pieces = [(low, min(low + limit, w)) for w in self.widths for low in range(0, w, limit)]
        grouped: list[list[tuple[int, int, int]]] = [[]]
        held = 0
        tail = rows % self.size
        for i, (low, high) in enumerate(pieces):
            if held + high - low > limit or (tail and i == len(pieces) - 1 and held):
                grouped.append([])
                held = 0
            grouped[-1].append((held, low, high))
            held += high - low
        blocks, first = [], 0
        for waves in grouped:
            start, low, high = waves[-1]
            last = first + start + high - low
            span = slice(first * self.size, min(last * self.size, rows))
            q = self.size if last - first > 1 else span.stop - span.start
            blocks.append(Block(first, last, span, q, tuple(waves)))
            first = last
        return blocks

    def align(self, t: Tensor) -> Tensor:
        """`[L, ...]` to whole chunks, pads zero (a single sequence needs none)."""
        if self.slots is None:
            return t
        return t.new_zeros(self.chunks * self.size, *t.shape[1:]).index_copy_(0, self.slots, t)

    def restore(self, t: Tensor) -> Tensor:
        return t if self.slots is None else t.index_select(0, self.slots)


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
    """y `[L, H, P]` and final states `[S, H, P, N]`, in the dtype of `state`; step and log_decay `[L, H]` in that dtype too."""
    plan = Plan.of(bounds, chunk_size)
    return _ChunkedScan.apply(x, step, log_decay, B, C, D, state, plan)  # pyright: ignore[reportReturnType]


class _ChunkedScan(torch.autograd.Function):
    """Inputs x `[L, H, P]`, step and log_decay `[L, H]`, B and C `[L, G, N]`, D `[H]`, state `[S, H, P, N]`."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        x, step, log_decay, B, C, D, state, plan = inputs
        scan = _Scan(plan, x, step, log_decay, B, C, D, state)
        keep = any(ctx.needs_input_grad)
        carry = state.clone() if plan.ranked is None else state[plan.ranked]
        before = state.new_empty(plan.chunks if keep else 0, *state.shape[1:])
        y = torch.empty_like(scan.x, dtype=state.dtype)
        for block in scan.blocks:
            h = scan.forward_block(block, y, carry)
            if keep:
                before[block.first : block.last] = h
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
        return *rows, out.D, carry, None


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
        grads = (torch.empty_like(t) for t in (scan.x, scan.B, scan.C))
        return cls(*grads, torch.zeros_like(scan.D), zeros, zeros.clone())


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
        limit = max(1, BLOCK // (self.H * plan.size * plan.size))
        self.blocks = plan.blocks(limit, self.x.shape[0])

    def by_chunk(self, t: Tensor) -> Tensor:
        """`[rows, H]` to `[chunks, H, Q]`, the tail filled with zeros."""
        t = F.pad(t, (0, 0, 0, self.plan.chunks * self.plan.size - t.shape[0]))
        return t.view(self.plan.chunks, self.plan.size, -1).transpose(1, 2).contiguous()

    # Views of a block: tokens `[n, q, G, R, P]`, scalars `[n, q, G, R, 1]`; for products, a batch of matrices.
    def tokens(self, t: Tensor, block: Block) -> Tensor:
        return t[block.rows].view(block.n, -1, self.G, self.R, self.P).to(self.wide)

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
        t = t[block.rows].view(block.n, -1, self.G, self.N).transpose(1, 2)
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

    def forward_block(self, block: Block, y: Tensor, carry: Tensor) -> Tensor:
        """Write the block's outputs into y, advance `carry`; returns the states before its chunks."""
        n, q = block.n, block.q
        B, C, x = self.keys(self.B, block), self.keys(self.C, block), self.tokens(self.x, block)
        dx = x * self.scalars(self.step, block)
        CB = torch.bmm(C, B.mT).tril_().view(n, self.G, 1, q, q)
        mixed = self.decay(block).mul_(CB).view(-1, q, q)
        inner = torch.bmm(mixed, self.by_head(dx))
        fresh = torch.bmm(self.by_group(dx * self.scalars(self.to_end, block)).mT, B)
        fresh = fresh.view(n, self.H, self.P, self.N)
        before = self.pass_on(block, carry, fresh, block.waves)
        outer = torch.bmm(C, self.states(before).mT)
        out = y[block.rows].view(n, q, self.G, self.R, self.P)
        torch.addcmul(
            self.from_head(inner, block),
            self.from_group(outer, block),
            self.scalars(self.from_start, block),
            out=out,
        )
        out.addcmul_(x, self.D.view(self.G, self.R, 1))
        return before

    def pass_on(self, block: Block, carry: Tensor, fresh: Tensor, waves: Any) -> Tensor:
        """What `carry` holds at each chunk, while it decays and takes up `fresh [n, H, P, N]` wave by wave."""
        held = torch.empty_like(fresh)
        for start, low, high in waves:
            chunks = slice(start, start + high - low)
            held[chunks] = carry[low:high]
            whole = self.whole[block.first + start : block.first + start + high - low]
            carry[low:high].mul_(whole).add_(fresh[chunks])
        return held

    def backward_block(
        self, block: Block, y: Tensor, dy: Tensor, before: Tensor, carry: Tensor, out: _Gradients
    ) -> None:
        """Write the block's gradients into `out`; carry, the gradient of the states after it, goes back before it."""
        n, q = block.n, block.q
        B, C, x = self.keys(self.B, block), self.keys(self.C, block), self.tokens(self.x, block)
        y, dy = self.tokens(y, block), self.tokens(dy, block)
        step, to_end = self.scalars(self.step, block), self.scalars(self.to_end, block)
        D = self.D.view(self.G, self.R, 1)
        dx = x * step

        dy_start = self.by_group(dy * self.scalars(self.from_start, block))
        fresh = torch.bmm(dy_start.mT, C).view_as(before)
        after = self.pass_on(block, carry, fresh, reversed(block.waves))

        CB = torch.bmm(C, B.mT).tril_().view(n, self.G, 1, q, q)
        decay = self.decay(block)
        dy_head = self.by_head(dy)
        d_CB = (
            torch.bmm(dy_head, self.by_head(dx).mT).view_as(decay).mul_(decay).sum(2).tril_().view(-1, q, q)
        )
        mixed = decay.mul_(CB).view(-1, q, q)
        inner = torch.bmm(mixed.mT, dy_head)
        outer = self.from_group(torch.bmm(B, self.states(after).mT), block) * to_end
        d_dx = outer + self.from_head(inner, block)

        dC = torch.baddbmm(torch.bmm(d_CB, B), dy_start, self.states(before))
        dB = torch.baddbmm(torch.bmm(d_CB.mT, C), self.by_group(dx * to_end), self.states(after))
        for grad, value in ((out.B, dB), (out.C, dC)):
            grad[block.rows].view(n, q, self.G, self.N).copy_(
                value.view(n, self.G, q, self.N).transpose(1, 2)
            )
        out.x[block.rows].view_as(x).copy_((d_dx * step).addcmul_(dy, D))
        chunks = slice(block.first, block.last)
        d_step = (x * d_dx).sum(-1, keepdim=True)
        skip = (dy * x).sum(-1, keepdim=True)
        d_s = (dy * y).sum(-1, keepdim=True) - D * skip - step * d_step
        out.D.add_(skip.sum((0, 1)).flatten())
        self.scalars(out.step, block).copy_(d_step)
        self.scalars(out.s, block).copy_(d_s)
        kept = (after * before).sum((-1, -2)) * self.whole[chunks, :, 0, 0]
        out.s[chunks, :, -1] += kept + (dx * outer).sum((1, 4)).view(n, -1)
