"""The chunked form of the Mamba-2 scan in plain PyTorch, with its own backward pass.

Within a chunk of Q tokens (s: running sum of the log decay, dx[t] = dt[t] x[t], h: state before the chunk):

    y[t]  = sum_{u <= t} exp(s[t] - s[u]) (C[t] . B[u]) dx[u]  +  exp(s[t]) h C[t]  +  D x[t]
    h'    = exp(s[Q]) h + sum_u exp(s[Q] - s[u]) dx[u] B[u]^T

C.B is computed once a group of heads; B and C are never expanded to all heads. Blocks of chunks are small
enough for the cache, and the `[Q, Q]` intermediates of one tile exist at a time, in both passes; the forward
pass keeps its inputs and the state before every chunk. Time and memory are linear in the length. s is summed in
float64, and a difference of two carries what their rounding left: behind a sum of -1e4 a decay between neighbours
would be wrong by 1e-3.

The gradient of a token's log decay a[v] is the sum of all products that its own factor exp(a[v]) stands in:

    da[v] = sum_{u < v <= t} exp(s[t] - s[u]) (C[t] . B[u]) (dy[t] . dx[u])  +  sum_{t >= v} exp(s[t]) dy[t] . h C[t]
          + sum_{u < v} exp(s[Q] - s[u]) dx[u] . dh' B[u]  +  exp(s[Q]) <dh', h>

Each product is made with its decay, and sums only add up: where a decay vanishes, so does its gradient. (The shorter
way, what the outputs give less what the inputs take, is a difference of sums as large as y . dy: in float32 it leaves
1e-3 where 1e-19 is true, of which Adam makes whole steps.) The first sum, over rectangles of the masked products, is
a running sum along u, then a sum over t, as in the stable backward kernel of mamba_ssm.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from timeviper.kernels.bounds import Bounds
from timeviper.kernels.ssd_layout import ChunkLayout, Tile

# Elements of the largest intermediate of a tile. On a CPU 512 KiB of float32, so that what a tile works on
# stays in the cache (8 times as much is 1.4 times slower); elsewhere enough to fill the device.
TILE_CPU, TILE = 1 << 17, 1 << 24

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
    layout = bounds.cache.get(("ssd", chunk_size))
    if layout is None:
        layout = bounds.cache["ssd", chunk_size] = ChunkLayout.of(bounds, chunk_size)
    tensors = (x, step, log_decay, B, C, D, state)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)  # inside, grad mode is always off
    return _ChunkedScan.apply(*tensors, layout, keep)  # pyright: ignore[reportReturnType]


class _ChunkedScan(torch.autograd.Function):
    """x `[L, H, P]`, step and log_decay `[L, H]`, B and C `[L, G, N]`, D `[H]`, state `[S, H, P, N]`."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        x, step, log_decay, B, C, D, state, layout, keep = inputs
        scan = _Scan(layout, x, step, log_decay, B, C, D, state)
        carry = state.clone() if layout.ranked is None else state[layout.ranked]
        before = state.new_empty(layout.chunks if keep else 0, *state.shape[1:])
        y = state.new_empty(scan.x.shape)
        for tile in scan.tiles:
            held = before[tile.first : tile.last] if keep else before.new_empty(tile.n, *carry.shape[1:])
            scan.forward_tile(tile, y, carry, held)
        y = layout.restore(y.flatten(1, 2))  # [rows, G, R, P] -> [L, H, P]
        final = carry if layout.ranked is None else torch.empty_like(carry).index_copy_(0, layout.ranked, carry)
        ctx.layout = layout
        ctx.save_for_backward(x, step, log_decay, B, C, D, before)
        return y, final

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        layout: ChunkLayout = ctx.layout
        x, step, log_decay, B, C, D, before = ctx.saved_tensors
        dy, d_final = grads
        scan = _Scan(layout, x, step, log_decay, B, C, D, before)
        carry = d_final.clone() if layout.ranked is None else d_final[layout.ranked]
        out = _Gradients(scan)
        dy = layout.align(dy).unflatten(1, (scan.G, scan.R))  # [rows, G, R, P]
        for tile in reversed(scan.tiles):
            scan.backward_tile(tile, dy, before[tile.first : tile.last], carry, out)
        if layout.ranked is not None:
            carry = torch.empty_like(carry).index_copy_(0, layout.ranked, carry)
        d_step, d_decay, d_D = out.small(scan)
        # [chunks, H, Q] -> [rows, H], without the tail that `by_chunk` filled
        per_token = (t.transpose(1, 2).flatten(0, 1)[: scan.x.shape[0]] for t in (d_step, d_decay))
        rows = (layout.restore(t) for t in (out.x.flatten(1, 2), *per_token, out.B, out.C))
        return *rows, d_D, carry, None, None


class _Gradients:
    """What the tiles' backward passes fill in."""

    def __init__(self, scan: _Scan) -> None:
        self.x, self.B, self.C = (t.new_empty(t.shape) for t in (scan.x, scan.B, scan.C))
        chunks, H, Q = scan.total.shape
        # For each token and head, [chunks, H, Q]: x . d(dx), that by the state after alone, dy . x; then of da[v] the
        # products of the state before, at t, and the sum over the rectangle u <= v < t.
        self.sums = scan.total.new_zeros(5, chunks, H, Q)
        self.states = scan.total.new_zeros(chunks, H)  # <dh', h>

    def small(self, scan: _Scan) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of step and log decay `[chunks, H, Q]` and of D `[H]`."""
        d_step, by_state, dy_x, from_start, between = self.sums
        d_decay = from_start.flip(-1).cumsum(-1).flip(-1)  # over t >= v
        d_decay += (self.states * scan.whole[..., 0, 0])[..., None]
        d_decay[..., 1:] += (between + (scan.step * by_state).cumsum(-1))[..., :-1]  # over u < v
        return d_step, d_decay, dy_x.sum((0, 2))


class _Scan:
    """The aligned inputs of a scan and the work on one tile of its chunks.

    Letters of shapes: n chunks of q tokens, G groups of R heads, P head size, N state size.
    """

    def __init__(
        self,
        layout: ChunkLayout,
        x: Tensor,
        step: Tensor,
        log_decay: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        state: Tensor,
    ) -> None:
        (self.H, self.P), (self.G, self.N) = x.shape[1:], B.shape[1:]
        self.layout, self.R, self.wide = layout, self.H // self.G, state.dtype
        self.x = layout.align(x).unflatten(1, (self.G, self.R))  # [rows, G, R, P]
        self.B, self.C = layout.align(B), layout.align(C)  # [rows, G, N]
        self.step = self.by_chunk(layout.align(step))  # [chunks, H, Q]
        total = self.by_chunk(layout.align(log_decay)).cumsum(-1, dtype=torch.float64)
        self.total = total.to(self.wide)  # s, and what its rounding left
        self.rest = None if self.wide == torch.float64 else (total - self.total).to(self.wide)
        last = total[..., -1:]
        self.whole = last.exp().to(self.wide)[..., None]  # [chunks, H, 1, 1]
        self.D, self.skip = D, D.view(self.G, self.R, 1)
        to_end = (last - total).exp().to(self.wide)  # decay from a token to the end of its chunk
        weights = (self.step, self.step * to_end, to_end, self.total.exp())
        self.w_step, self.w_step_to_end, self.w_to_end, self.w_from_start = map(self.by_token, weights)
        budget = TILE_CPU if x.device.type == "cpu" else TILE
        most = max(layout.size * max(layout.size, self.P, self.N), self.P * self.N)
        limit = max(1, budget // (self.H * most))
        self.tiles = layout.tiles(limit, self.x.shape[0])

    def by_chunk(self, t: Tensor) -> Tensor:
        """`[rows, H]` to `[chunks, H, Q]`, the tail filled with zeros."""
        t = F.pad(t, (0, 0, 0, self.layout.chunks * self.layout.size - t.shape[0]))
        return t.view(self.layout.chunks, self.layout.size, -1).transpose(1, 2).contiguous()

    def by_token(self, t: Tensor) -> Tensor:
        """`[chunks, H, Q]` seen as `[chunks, Q, G, R, 1]`."""
        return t.transpose(1, 2).unflatten(2, (self.G, self.R))[..., None]

    # Of one tile: tokens are [n, q, G, R, P] and scalars [n, q, G, R, 1]; products take batches of matrices.
    def tokens(self, t: Tensor, tile: Tile) -> Tensor:
        return t[tile.rows].view(tile.n, tile.q, self.G, self.R, self.P).to(self.wide)

    def scalars(self, t: Tensor, tile: Tile) -> Tensor:
        return t[tile.first : tile.last, : tile.q]

    def keys(self, t: Tensor, tile: Tile) -> Tensor:
        """Rows of B or C as `[n * G, q, N]`."""
        t = t[tile.rows].view(tile.n, tile.q, self.G, self.N).transpose(1, 2)  # [n, G, q, N]
        return t.reshape(tile.n * self.G, tile.q, self.N).to(self.wide)

    def by_head(self, t: Tensor) -> Tensor:
        """`[n, q, G, R, P]` to `[n * H, q, P]`."""
        return t.permute(0, 2, 3, 1, 4).reshape(-1, t.shape[1], self.P)

    def by_group(self, t: Tensor, weight: Tensor) -> Tensor:
        """`t * weight` of `[n, q, G, R, P]`, laid out as `[n * G, q, R * P]`."""
        n, q, G, R, P = t.shape
        out = t.new_empty(n, G, q, R, P)
        torch.mul(t, weight, out=out.transpose(1, 2))
        return out.view(n * G, q, R * P)

    def from_head(self, t: Tensor, tile: Tile) -> Tensor:
        """`[n * H, q, P]` seen as `[n, q, G, R, P]`."""
        return t.view(tile.n, self.G, self.R, tile.q, self.P).permute(0, 3, 1, 2, 4)

    def from_group(self, t: Tensor, tile: Tile) -> Tensor:
        """`[n * G, q, R * P]` seen as `[n, q, G, R, P]`."""
        return t.view(tile.n, self.G, tile.q, self.R, self.P).transpose(1, 2)

    def states(self, t: Tensor) -> Tensor:
        """`[n, H, P, N]` to `[n * G, R * P, N]`."""
        return t.view(-1, self.R * self.P, self.N)

    def start_head(self, tile: Tile) -> Tensor:
        """exp(s[t]) as `[n * H, q, 1]`."""
        return self.total[tile.first : tile.last, :, : tile.q].exp().view(-1, tile.q, 1)

    def decay(self, tile: Tile) -> Tensor:
        """exp(s[t] - s[u]) as `[n, G, R, q, q]`; above the diagonal 1, for a masked factor to remove."""
        s = self.total[tile.first : tile.last, :, : tile.q]
        decay = s[..., None] - s[..., None, :]
        if self.rest is not None:
            rest = self.rest[tile.first : tile.last, :, : tile.q]
            decay.add_(rest[..., None]).sub_(rest[..., None, :])
        decay = decay.clamp_(max=0).exp_()
        return decay.view(tile.n, self.G, self.R, tile.q, tile.q)

    def masked_CB(self, B: Tensor, C: Tensor, tile: Tile) -> Tensor:
        """C[t] . B[u] for u <= t, else 0, as `[n, G, 1, q, q]`."""
        return torch.bmm(C, B.mT).tril_().view(tile.n, self.G, 1, tile.q, tile.q)

    def forward_tile(self, tile: Tile, y: Tensor, carry: Tensor, before: Tensor) -> None:
        """Write the tile's outputs into y and the states before its chunks into `before`; advance `carry`."""
        B, C, x = self.keys(self.B, tile), self.keys(self.C, tile), self.tokens(self.x, tile)
        ending = self.by_group(x, self.scalars(self.w_step_to_end, tile))
        self.pass_on(tile, tile.waves, carry, ending, B, before)
        mixed = self.decay(tile).mul_(self.masked_CB(B, C, tile)).view(-1, tile.q, tile.q)  # [n * H, q, q]
        inner = torch.bmm(mixed, self.by_head(x * self.scalars(self.w_step, tile)))  # within chunks: [n * H, q, P]
        outer = self.from_group(torch.bmm(C, self.states(before).mT), tile)  # what the state before gives
        out = y[tile.rows].view(x.shape)
        torch.addcmul(self.from_head(inner, tile), outer, self.scalars(self.w_from_start, tile), out=out)
        out.addcmul_(x, self.skip)

    def pass_on(self, tile: Tile, waves: Waves, carry: Tensor, left: Tensor, right: Tensor, held: Tensor) -> None:
        """Wave by wave, write `carry` into `held [n, H, P, N]`; then let it decay and take up left^T right."""
        for start, low, high in waves:
            stop, now = start + high - low, carry[low:high]
            held[start:stop] = now
            now.mul_(self.whole[tile.first + start : tile.first + stop])
            groups = slice(start * self.G, stop * self.G)
            self.states(now).baddbmm_(left[groups].mT, right[groups])

    def backward_tile(self, tile: Tile, dy: Tensor, before: Tensor, carry: Tensor, out: _Gradients) -> None:
        """Write the tile's gradients into `out`; `carry`, the gradient of the states, goes back over it."""
        q, chunks = tile.q, slice(tile.first, tile.last)
        B, C, x = self.keys(self.B, tile), self.keys(self.C, tile), self.tokens(self.x, tile)
        dy, step = self.tokens(dy, tile), self.scalars(self.w_step, tile)
        after = torch.empty_like(before)  # gradients of the states after the chunks
        starting = self.by_group(dy, self.scalars(self.w_from_start, tile))
        self.pass_on(tile, reversed(tile.waves), carry, starting, C, after)

        decay, CB, dy_head = self.decay(tile), self.masked_CB(B, C, tile), self.by_head(dy)
        d_mixed = torch.bmm(dy_head, self.by_head(x * step).mT).view(decay.shape)  # [n, G, R, q, q]
        d_CB = d_mixed.mul_(decay).sum(2).tril_().view(-1, q, q)  # summed over the heads of a group: [n * G, q, q]
        ending = self.by_group(x, self.scalars(self.w_step_to_end, tile))
        # d(C.B) is used up: its products with C.B, summed over the rectangles u <= v < t.
        between = d_mixed.mul_(CB).cumsum_(-1).tril_(-1).sum(-2)  # [n, G, R, q]
        from_start = (dy_head * self.start_head(tile)).bmm(before.flatten(0, 1)).view(tile.n, self.G, self.R, q, self.N)
        dC = torch.bmm(d_CB, B).add_(from_start.sum(2).view(-1, q, self.N))
        from_start = from_start.mul_(C.view(tile.n, self.G, 1, q, self.N)).sum(-1)  # [n, G, R, q]
        dB = torch.bmm(d_CB.mT, C).baddbmm_(ending, self.states(after))
        for grad, value in ((out.B, dB), (out.C, dC)):
            rows = grad[tile.rows].view(tile.n, q, self.G, self.N)
            rows.copy_(value.view(tile.n, self.G, q, self.N).transpose(1, 2))

        outer = self.from_group(torch.bmm(B, self.states(after).mT), tile)
        outer.mul_(self.scalars(self.w_to_end, tile))
        inner = torch.bmm(decay.mul_(CB).view(-1, q, q).mT, dy_head)  # [n * H, q, P]
        d_dx = self.from_head(inner, tile).add_(outer)
        # Views that are written into; `outer`, `after` and `d_dx` are used up from here on.
        sums = out.sums[:, chunks, :, :q]
        for total, product in zip(sums.transpose(2, 3), (x * d_dx, outer.mul_(x), x * dy)):
            torch.sum(product, -1, out=total.view(tile.n, q, self.G, self.R))
        sums[3], sums[4] = from_start.flatten(1, 2), between.flatten(1, 2)
        torch.sum(after.mul_(before).flatten(2), -1, out=out.states[chunks])
        torch.addcmul(d_dx.mul_(step), dy, self.skip, out=out.x[tile.rows].view(x.shape))
