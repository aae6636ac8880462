"""Attention of queries that see a prefix of their sequence's keys, on flash kernels that know no such mask.

The queries come in runs that see equally many keys, and later runs of a sequence see no fewer. Between the limits of
successive runs lie segments of keys, and run r sees the segments 0 to r, each of them whole. So nothing needs a mask:
one call gives every run its own segment, and one for each power of two w the runs of every second block of w runs the
keys of the block before (the binary digits of r). What the calls give is joined by their log-sum-exps. That is
1 + ceil(log2(runs)) calls (more beyond 128 runs) over the keys where they are, no copy of a key, and exactly the
products that are asked for.

The backward pass hands each call the joint output and log-sum-exp, as ring attention does (Liu et al. 2023, arXiv
2310.01889): probabilities and gradients are then right in each call, and add up.

The host knows the runs, not the limits: those are read on the device, and nothing waits for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
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


MOST_NODES = 128
"""Sequences with queries and keys in a call: the backward pass of flash attention pads each to 128 queries in float32,
2.6 MB in nano9b."""


def missing(q: Tensor, causal: bool, runs: Runs | None) -> str:
    """What keeps flash kernels from it; empty: nothing."""
    if runs is None or causal:
        return "flash attention needs to know beforehand which queries see equally many keys"
    if q.is_cuda and (torch.version.hip or not torch.backends.cuda.is_flash_attention_available()):
        return "this torch is built without CUDA's flash attention"
    return ""


def attend_prefixes(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, bounds_q: Bounds, bounds_k: Bounds, runs: Runs, scale: float
) -> Tensor:
    """Shapes as in `attention`; a query of a run that sees no key gets 0 and passes no gradient."""
    plan = _Plan.of(visible, bounds_q, bounds_k, runs)
    if not plan.calls:
        return q * 0
    rows = plan.rows
    y = _Joined.apply(q if rows is None else q.index_select(0, rows), k, v, plan.calls, scale)
    assert isinstance(y, Tensor)
    return y if rows is None else torch.zeros_like(q).index_copy(0, rows, y)


def part_of(row: Sequence[tuple[int, int]], start: int, stop: int) -> list[tuple[int, int]]:
    """The runs of one sequence's queries `[start, stop)`."""
    ends = list(accumulate((n for n, _ in row), initial=0))
    pieces = ((min(end, stop) - max(begin, start), most) for (begin, end), (_, most) in zip(pairwise(ends), row))
    return [(n, most) for n, most in pieces if n > 0]


@dataclass(frozen=True)
class _Call:
    """One variable-length call: nodes, in which some queries see some keys, and gaps of queries or of keys."""

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
    """The same on the host, with the numbers of edges for keys (see `_Table.edge`)."""

    cu_q: list[int] = field(default_factory=lambda: [0])
    edges: list[int] = field(default_factory=lambda: [0])
    max_q: int = 2  # of 1, flash attention concludes that every sequence has one query
    max_k: int = 0
    nodes: int = 0

    def step(self, query: int, edge: int) -> None:
        if (query, edge) != (self.cu_q[-1], self.edges[-1]):
            self.cu_q.append(query)
            self.edges.append(edge)

    def add(self, queries: tuple[int, int], edges: tuple[int, int], most: int) -> None:
        self.step(queries[0], self.edges[-1])
        self.step(queries[0], edges[0])
        self.step(queries[1], edges[1])
        self.max_q, self.max_k = max(self.max_q, queries[1] - queries[0]), max(self.max_k, most)
        self.nodes += 1

    def on_device(self, edges: Tensor, queries: int, last: int) -> _Call:
        self.step(queries, self.edges[-1])
        self.step(queries, last)
        cu_q = on_device(self.cu_q, edges.device, torch.int32)
        return _Call(cu_q, edges[on_device(self.edges, edges.device)], self.max_q, self.max_k)


@dataclass(frozen=True)
class _Table:
    """The runs that see something, of all sequences."""

    rows: list[int] = field(default_factory=list)
    """Places of their queries."""
    ends: list[list[int]] = field(default_factory=list)
    """`[sequence][run]`: where a run ends among `rows`, behind where the first one begins."""
    bounds: list[list[int]] = field(default_factory=list)
    """`[sequence][run]`: at most how many keys it sees, behind a 0."""
    firsts: list[int] = field(default_factory=list)
    """Of each run, its first query's place."""
    owners: list[int] = field(default_factory=list)
    """Of each run, its sequence."""

    @classmethod
    def of(cls, bounds_q: Bounds, runs: Runs) -> _Table:
        assert bounds_q.lengths == tuple(sum(n for n, _ in row) for row in runs), (bounds_q, runs)
        table = cls()
        for s, row in enumerate(runs):
            place = bounds_q.offsets[s]
            table.ends.append([len(table.rows)])
            table.bounds.append([0])
            for n, most in row:
                if n and most:
                    table.rows.extend(range(place, place + n))
                    table.ends[s].append(len(table.rows))
                    table.bounds[s].append(most)
                    table.firsts.append(place)
                    table.owners.append(s)
                place += n
        return table

    def edge(self, s: int, before: int, r: int) -> int:
        """The number of an edge: where the keys of the S sequences begin, their end, then the limits of all runs."""
        return len(self.ends) + before + r if r else s

    def levels(self, bounds_k: Bounds) -> list[_Level]:
        longest = max(len(row) - 1 for row in self.ends)
        levels = []
        for w in (0, *(1 << i for i in range((longest - 1).bit_length()))):
            level, before = _Level(), 0  # runs of the sequences before
            for s, (ends, most) in enumerate(zip(self.ends, self.bounds)):
                count = len(ends) - 1
                for a in range(0, count - w, 2 * w or 1):
                    if level.nodes == MOST_NODES:
                        levels.append(level)
                        level = _Level()
                    queries = (a + w, min(a + 2 * w, count)) if w else (a, a + 1)
                    keys = (a, a + (w or 1))
                    edges = self.edge(s, before, keys[0]), self.edge(s, before, keys[1])
                    room = min(most[keys[1]] - most[keys[0]], bounds_k.lengths[s])
                    level.add((ends[queries[0]], ends[queries[1]]), edges, room)
                before += count
            levels.append(level)
        return levels


@dataclass(frozen=True)
class _Plan:
    """What is done for one `visible`, by all layers that share it."""

    visible: Tensor
    bounds_k: Bounds
    calls: list[_Call]
    rows: Tensor | None
    """Places of the queries that see something; None: all do."""

    @classmethod
    def of(cls, visible: Tensor, bounds_q: Bounds, bounds_k: Bounds, runs: Runs) -> _Plan:
        plan = bounds_q.cache.get("prefixes")
        if plan is None or plan.visible is not visible or plan.bounds_k is not bounds_k:
            plan = bounds_q.cache["prefixes"] = cls._build(visible, bounds_q, bounds_k, runs)
        return plan

    @classmethod
    def _build(cls, visible: Tensor, bounds_q: Bounds, bounds_k: Bounds, runs: Runs) -> _Plan:
        table, device = _Table.of(bounds_q, runs), visible.device
        if not table.rows or not bounds_k.num_tokens:
            return cls(visible, bounds_k, [], None)
        owner = on_device(table.owners, device)
        starts, counts = bounds_k.cu_seqlens[:-1].long(), bounds_k.cu_seqlens.long().diff()
        seen = visible.long()[on_device(table.firsts, device)].clamp_min(0)
        edges = torch.cat([bounds_k.cu_seqlens, (starts[owner] + torch.minimum(seen, counts[owner])).int()])
        queries, last = len(table.rows), bounds_k.num_sequences
        calls = [level.on_device(edges, queries, last) for level in table.levels(bounds_k)]
        everyone = queries == bounds_q.num_tokens
        return cls(visible, bounds_k, calls, None if everyone else on_device(table.rows, device))


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
