"""Attention of queries that see a prefix of their sequence's keys, on flash kernels that know no such mask.

The queries come in runs that see equally many keys, and later runs of a sequence see no fewer. Between the limits of
successive runs lie segments of keys, and run r sees the segments 0 to r, each of them whole. So nothing needs a mask:
one call gives every run its own segment, and one for each power of two w the runs of every second block of w runs the
keys of the block before (the binary digits of r). What the calls give is joined by their log-sum-exps. That is
1 + ceil(log2(runs)) calls over the keys where they are, no copy of a key, and exactly the products that are asked for.

The backward pass hands each call the joint output and log-sum-exp, as ring attention does (Liu et al. 2023, arXiv
2310.01889): probabilities and gradients are then right in each call, and add up.

The host knows the runs, not the limits: those are read on the device, and nothing waits for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from timeviper.kernels import dispatch
from timeviper.kernels.bounds import Bounds
from timeviper.kernels.host import on_device

Runs = Sequence[Sequence[tuple[int, int]]]
"""For each sequence its queries in order: how many beside each other see equally many keys, and a bound on that
number: 0 where they see none, else growing at least as `visible` does."""


def attend_prefixes(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, bounds_q: Bounds, bounds_k: Bounds, runs: Runs, scale: float
) -> Tensor:
    """Shapes as in `attention`; a query of a run that sees no key gets 0 and passes no gradient."""
    plan = _Plan.of(bounds_q, runs)
    if not plan.rows or not bounds_k.num_tokens:
        return q * 0
    everyone = len(plan.rows) == q.shape[0]
    rows = on_device(plan.rows, q.device)
    seeing = q if everyone else q.index_select(0, rows)
    owner = on_device(plan.owners, q.device)
    starts, counts = bounds_k.cu_seqlens[:-1].long(), bounds_k.cu_seqlens.long().diff()
    limit = torch.minimum(visible.long()[on_device(plan.firsts, q.device)].clamp_min(0), counts[owner])
    edges = torch.cat([bounds_k.cu_seqlens, (starts[owner] + limit).int()])  # see `_Plan.edge`
    levels = [level.on(edges) for level in plan.levels(bounds_k)]
    y = _Joined.apply(seeing, k, v, levels, scale)
    assert isinstance(y, Tensor)
    return y if everyone else torch.zeros_like(q).index_copy(0, rows, y)


def part_of(row: Sequence[tuple[int, int]], start: int, stop: int) -> list[tuple[int, int]]:
    """The runs of one sequence's queries `[start, stop)`."""
    ends = list(accumulate((n for n, _ in row), initial=0))
    pieces = ((min(end, stop) - max(begin, start), most) for (begin, end), (_, most) in zip(pairwise(ends), row))
    return [(n, most) for n, most in pieces if n > 0]


@dataclass(frozen=True)
class _Call:
    """One variable-length call: a gap of queries, one of keys and a node that attends, over and over."""

    cu_q: Tensor
    cu_k: Tensor
    max_q: int
    max_k: int

    @property
    def sizes(self) -> tuple[Tensor, Tensor, int, int]:
        """Those of the nodes: of gaps a kernel may leave as much unwritten as it likes."""
        return self.cu_q, self.cu_k, self.max_q, self.max_k

    def meet(self, rows: Tensor, others: Tensor, count: int) -> Tensor:
        """`[count, 1, 1]` bool: which queries meet a key (rows: cu_q, others: cu_k), or which keys a query."""
        row = torch.arange(count, device=rows.device, dtype=rows.dtype)
        return (others.diff() > 0)[torch.searchsorted(rows, row, right=True) - 1, None, None]


@dataclass
class _Level:
    """The same, with keys as numbers of edges."""

    cu_q: list[int]
    edges: list[int]
    max_q: int = 0
    max_k: int = 0

    def add(self, first: int, last: int, start: int, end: int, most: int) -> None:
        self.cu_q += [first, first, last]
        self.edges += [self.edges[-1], start, end]
        self.max_q, self.max_k = max(self.max_q, last - first), max(self.max_k, most)

    def on(self, edges: Tensor) -> _Call:
        cu_q = on_device(self.cu_q, edges.device, torch.int32)
        return _Call(cu_q, edges[on_device(self.edges, edges.device)], self.max_q, self.max_k)


@dataclass(frozen=True)
class _Plan:
    """What the host knows: the queries that see something, and their runs `[sequence][run]`."""

    rows: list[int]
    """Places of the queries that see something."""
    ends: list[list[int]]
    """Where each run ends among those, behind where the first one begins."""
    bounds: list[list[int]]
    """At most how many keys each run sees, behind a 0."""
    firsts: list[int]
    """Of each run, its first query's place."""
    owners: list[int]
    """Of each run, its sequence."""

    @classmethod
    def of(cls, bounds_q: Bounds, runs: Runs) -> _Plan:
        assert bounds_q.lengths == tuple(sum(n for n, _ in row) for row in runs), (bounds_q, runs)
        plan = cls([], [], [], [], [])
        for s, row in enumerate(runs):
            place = bounds_q.offsets[s]
            plan.ends.append([len(plan.rows)])
            plan.bounds.append([0])
            for n, most in row:
                if n and most:
                    plan.rows.extend(range(place, place + n))
                    plan.ends[s].append(len(plan.rows))
                    plan.bounds[s].append(most)
                    plan.firsts.append(place)
                    plan.owners.append(s)
                place += n
        return plan

    def levels(self, bounds_k: Bounds) -> list[_Level]:
        S, longest = len(self.ends), max(len(row) - 1 for row in self.ends)
        widths = [1 << i for i in range((longest - 1).bit_length())]
        levels = [_Level([0], [0]) for _ in (0, *widths)]
        base = S + 1  # edges: where the keys of the S sequences begin, their end, and then the limit of each run
        for s, (ends, most) in enumerate(zip(self.ends, self.bounds)):
            count = len(ends) - 1

            def edge(r: int, s: int = s, base: int = base) -> int:
                return base + r - 1 if r else s

            def room(a: int, b: int, s: int = s, most: list[int] = most) -> int:
                return min(most[b] - most[a], bounds_k.lengths[s])

            for r in range(count):
                levels[0].add(ends[r], ends[r + 1], edge(r), edge(r + 1), room(r, r + 1))
            for level, w in zip(levels[1:], widths):
                for a in range(0, count - w, 2 * w):
                    level.add(ends[a + w], ends[min(a + 2 * w, count)], edge(a), edge(a + w), room(a, a + w))
            base += count
        for level in levels:  # what is left behind the last node
            level.cu_q += [len(self.rows)] * 2
            level.edges += [level.edges[-1], S]
        return levels


class _Joined(torch.autograd.Function):
    """Attention by several calls, whose keys of a query are disjoint, as if by one."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, calls: list[_Call], scale: float) -> Tensor:
        flash = dispatch.replaced("_flash_attention_forward", torch.ops.aten._flash_attention_forward)
        y, total = None, None
        for call in calls:
            part, lse = flash(q, k, v, *call.sizes, 0.0, False, False, scale=scale)[:2]  # [n, H, P], [H, n]
            met = call.meet(call.cu_q, call.cu_k, len(q))
            part, lse = torch.where(met, part, 0), torch.where(met[:, 0, 0], lse, -torch.inf)
            if y is None or total is None:
                y, total = part, lse
                continue
            joint = torch.logaddexp(total, lse)
            shares = ((t - joint).exp().nan_to_num(0).T[..., None] for t in (total, lse))  # [n, H, 1]; -inf - -inf
            y, total = y * next(shares) + part * next(shares), joint
        assert y is not None
        assert total is not None
        y = y.to(q.dtype)
        # Flash attention's way to say that a query has no keys is +inf.
        ctx.save_for_backward(q, k, v, y, total.masked_fill(total == -torch.inf, torch.inf))
        ctx.calls, ctx.scale = calls, scale
        ctx.flash = dispatch.replaced("_flash_attention_backward", torch.ops.aten._flash_attention_backward)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, y, lse = ctx.saved_tensors
        rng, unused = torch.zeros(2, dtype=torch.uint64, device=q.device), torch.empty(0, device=q.device)
        sums: list[Tensor] = []
        dy = grads[0].contiguous()
        for call in ctx.calls:
            parts = ctx.flash(dy, q, k, v, y, lse, *call.sizes, 0.0, False, rng, unused, scale=ctx.scale)
            queries, keys = call.meet(call.cu_q, call.cu_k, len(q)), call.meet(call.cu_k, call.cu_q, len(k))
            parts = [torch.where(rows, t, 0) for rows, t in zip((queries, keys, keys), parts)]
            sums = [a + b for a, b in zip(sums, parts)] if sums else parts
            if len(ctx.calls) > 1:
                sums = [t.to(torch.promote_types(t.dtype, torch.float32)) for t in sums]
        return *(t.to(q.dtype) for t in sums), None, None
