"""Blocks computed again and differentiated piece by piece along the stream (activation checkpointing in pieces).

Forward, a block runs over the pieces without a graph and keeps its input and what each piece leaves behind for the
next. Backward, it takes the pieces from the last to the first: each is computed again, with a graph, from what the
piece before left, and hands the gradient of that on. So beside its input a block keeps what `size` tokens need, however
long the stream is, and does no more arithmetic than one that is checkpointed whole.

`run_in_pieces` is for what carries a state of fixed size along the stream (Mamba-2) or none (MLPs, encoders);
`attend_in_pieces` for attention, whose queries look at keys of all pieces before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from timeviper.kernels.bounds import Bounds
from timeviper.model.layers import for_gradients

Weights = Callable[[], AbstractContextManager[None]]
"""Opens a context in which a module's parameters exist in full; sharding has one."""


@dataclass(frozen=True)
class Piece:
    """Some tokens of a stream, one after the other."""

    rows: slice
    bounds: Bounds
    """Of the sequences that have tokens here; the first and the last may go on beyond."""
    continues: bool
    """Whether the first of them began in an earlier piece."""
    sequences: slice
    """Their numbers in the stream."""
    seen: slice
    """Rows from the beginning of the first of them to the end of the piece: what its tokens may look at."""
    seen_bounds: Bounds


def cut(bounds: Bounds, size: int) -> tuple[Piece, ...]:
    """The stream in pieces of `size` tokens, the last one shorter; one piece for size 0, or a stream of no tokens."""
    key = ("pieces", size)
    if key not in bounds.cache:
        total = bounds.num_tokens
        edges = [*range(0, total, size or total or 1), total] if total else [0, 0]
        bounds.cache[key] = tuple(_piece(bounds, a, b) for a, b in pairwise(edges))
    return bounds.cache[key]


def _piece(bounds: Bounds, start: int, stop: int) -> Piece:
    if (start, stop) == (0, bounds.num_tokens):
        return Piece(slice(start, stop), bounds, False, slice(0, len(bounds.lengths)), slice(start, stop), bounds)
    spans = list(pairwise(bounds.offsets))
    inside = [s for s, (a, b) in enumerate(spans) if a < stop and b > start]
    inside = range(inside[0], inside[-1] + 1)  # with those of no tokens between them
    lengths = [min(spans[s][1], stop) - max(spans[s][0], start) for s in inside]
    begin, device = bounds.offsets[inside[0]], bounds.device
    seen = Bounds([lengths[0] + start - begin if begin < start else lengths[0], *lengths[1:]], device)
    numbers = slice(inside[0], inside[-1] + 1)
    return Piece(
        slice(start, stop), Bounds(lengths, device), begin < start, numbers, slice(min(begin, start), stop), seen
    )


@dataclass
class _Job:
    """What both kinds of blocks need to run again."""

    module: nn.Module
    pieces: Sequence[Piece]
    weights: Weights
    dice: dict[Any, tuple[Tensor, ...]] = field(default_factory=dict)
    """States of the random generators before each piece, where the module draws numbers."""

    def parameters(self) -> list[nn.Parameter]:
        """Those that learn. Their order is that of the gradients."""
        return [p for p in self.module.parameters() if p.requires_grad]

    def draws(self) -> bool:
        rates = (getattr(m, "dropout", getattr(m, "p", 0.0)) for m in self.module.modules() if m.training)
        return any(isinstance(rate, float) and rate > 0 for rate in rates)

    def note_dice(self, key: Any, like: Tensor) -> None:
        """Before the forward pass of a piece."""
        if self.draws():
            cuda = (torch.cuda.get_rng_state(like.device),) if like.is_cuda else ()
            self.dice[key] = (torch.get_rng_state(), *cuda)

    @contextmanager
    def again(self, key: Any, like: Tensor) -> Iterator[None]:
        """The same dropout as in the forward pass."""
        if key not in self.dice:
            yield
            return
        with torch.random.fork_rng([like.device] if like.is_cuda else []):
            torch.set_rng_state(self.dice[key][0])
            if like.is_cuda:
                torch.cuda.set_rng_state(self.dice[key][1], like.device)
            yield


class _Sums:
    """Gradients of parameters, summed over pieces in float32 or wider."""

    def __init__(self, parameters: Sequence[nn.Parameter], pieces: int) -> None:
        self.parameters, self.single = parameters, pieces == 1
        self.sums: list[Tensor | None] = [None] * len(parameters)

    def add(self, found: Sequence[Tensor | None]) -> None:
        for i, grad in enumerate(found):
            if grad is None:
                continue
            old = self.sums[i]
            if old is not None:
                old += grad
            elif self.single:
                self.sums[i] = grad
            else:
                self.sums[i] = grad.to(torch.promote_types(grad.dtype, torch.float32), copy=True)

    def result(self) -> list[Tensor]:
        """Zeros for a parameter that nothing reached: sharded ranks reduce the same parameters together."""
        rows = zip(self.parameters, self.sums)
        return [torch.zeros_like(p) if total is None else total.to(p.dtype) for p, total in rows]


def _start(t: Tensor, wanted: bool = True) -> Tensor:
    """Where a graph begins. Not at a leaf: hooks that count modules' work refuse those in a backward pass."""
    t = t.detach()
    return t.requires_grad_().view_as(t) if wanted and t.is_floating_point() else t


def _gradients(
    outputs: Sequence[Tensor], given: Sequence[Tensor | None], wanted: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """Of the `wanted` ones, from those `given` of the outputs; None where nothing depends on it."""
    pairs = [(o, g) for o, g in zip(outputs, given) if g is not None and o.requires_grad]
    asked = [t for t in wanted if t.requires_grad]
    if not pairs or not asked:
        return (None,) * len(wanted)
    found = iter(torch.autograd.grad([o for o, _ in pairs], asked, [g for _, g in pairs], allow_unused=True))
    return tuple(next(found) if t.requires_grad else None for t in wanted)


# ---- a state carried along, or none ---------------------------------------------------------------------

State = tuple[Tensor, ...]
Run = Callable[[Tensor, Piece, State], tuple[Tensor, State]]


def run_in_pieces(
    module: nn.Module,
    run: Run,
    start: Callable[[], State],
    x: Tensor,
    pieces: Sequence[Piece],
    weights: Weights = nullcontext,
) -> Tensor:
    """`run(x[piece.rows], piece, state)` over all pieces: the results, one after the other.

    run gives the piece's result, with as many rows, and the state behind it, and uses no parameters but those of
    `module`. The state is that of the piece before, or `start()` where a piece begins with a new sequence.
    x `[L, ...]`; it may be integers.
    """
    with weights():
        job = _RunJob(module, pieces, weights, run=run, start=start)
        return _Run.apply(job, x, *job.parameters())  # pyright: ignore[reportReturnType]


@dataclass
class _RunJob(_Job):
    run: Run = field(kw_only=True)
    start: Callable[[], State] = field(kw_only=True)


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        job: _RunJob = inputs[0]
        x: Tensor = inputs[1].detach()
        parts, kept, state = [], [], ()
        for number, piece in enumerate(job.pieces):
            if not piece.continues:
                state = job.start()
            elif number:
                kept += [t.clone() for t in state]  # alone: it may be the last row of many
            job.note_dice(number, x)
            y, state = job.run(x[piece.rows], piece, state)
            parts.append(y)
        ctx.job, ctx.width = job, len(state)
        ctx.save_for_backward(x, *kept)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        job: _RunJob = ctx.job
        x, *kept = ctx.saved_tensors
        dy, wants_x = grads[0], ctx.needs_input_grad[1]
        dx = torch.empty_like(x) if wants_x else None
        with job.weights():
            parameters = job.parameters()
            sums = _Sums(parameters, len(job.pieces))
            behind: Sequence[Tensor | None] = ()  # gradients of the state that a piece leaves to the next
            for number in reversed(range(len(job.pieces))):
                piece = job.pieces[number]
                with torch.enable_grad(), for_gradients(), job.again(number, x):
                    part = _start(x[piece.rows], wants_x)
                    if piece.continues:
                        before = tuple(map(_start, kept[len(kept) - ctx.width :]))
                        del kept[len(kept) - ctx.width :]
                    else:
                        before = job.start()
                    y, after = job.run(part, piece, before)
                found = _gradients((y, *after), (dy[piece.rows], *behind), (part, *before, *parameters))
                del y, after
                if dx is not None:
                    dx[piece.rows] = 0 if found[0] is None else found[0]
                behind = found[1 : 1 + len(before)] if piece.continues else ()
                sums.add(found[1 + len(before) :])
        return None, dx, *sums.result()


# ---- queries that look at keys of all pieces ------------------------------------------------------------


@dataclass
class Attending:
    """A block that attends, as two functions of rows: what is looked at, and who looks."""

    keys: Callable[[Tensor, int], tuple[Tensor, Tensor]]
    """Rows of the source, and the number of their piece, to keys and values `[m, Hkv, P]`."""
    answer: Callable[[Tensor, Piece, Tensor, Tensor], Tensor]
    """Rows that look, as a piece, and the keys and values that `reach` gives it, to the results `[n, D]`."""
    reach: Callable[[Piece], slice]
    """Rows of the source whose keys a piece may look at."""


def attend_in_pieces(
    module: nn.Module,
    how: Attending,
    x: Tensor,
    source: Tensor | None,
    pieces: Sequence[Piece],
    size: int,
    weights: Weights = nullcontext,
) -> Tensor:
    """`how.answer` of all pieces of x `[n, D]` over the keys of the source `[m, D]` (None: x itself), `[n, D]`.

    size: rows of the source whose keys are made together; 0: all. Between the passes no key is kept.
    """
    with weights():
        job = _AttendJob(module, pieces, weights, how=how, size=size, to_itself=source is None)
        return _Attend.apply(job, x, x if source is None else source, *job.parameters())  # pyright: ignore[reportReturnType]


@dataclass
class _AttendJob(_Job):
    how: Attending = field(kw_only=True)
    size: int = field(kw_only=True)
    to_itself: bool = field(kw_only=True)

    def slices(self, source: Tensor) -> list[slice]:
        step = self.size or max(len(source), 1)
        return [slice(a, min(a + step, len(source))) for a in range(0, max(len(source), 1), step)]

    def all_keys(self, source: Tensor, again: bool) -> tuple[Tensor, Tensor]:
        parts = []
        for number, rows in enumerate(self.slices(source)):
            if not again:
                self.note_dice(("keys", number), source)
            with self.again(("keys", number), source) if again else nullcontext():
                parts.append(self.how.keys(source[rows], number))
        return parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts)))  # pyright: ignore[reportReturnType]


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        job: _AttendJob = inputs[0]
        x, source = inputs[1].detach(), inputs[2].detach()
        k, v = job.all_keys(source, again=False)
        parts = []
        for number, piece in enumerate(job.pieces):
            job.note_dice(number, x)
            seen = job.how.reach(piece)
            parts.append(job.how.answer(x[piece.rows], piece, k[seen], v[seen]))
        ctx.job = job
        ctx.save_for_backward(*((x,) if job.to_itself else (x, source)))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        job: _AttendJob = ctx.job
        x, source, dy = ctx.saved_tensors[0], ctx.saved_tensors[-1], grads[0]
        wants_x, wants_source = ctx.needs_input_grad[1:3]
        dx = torch.zeros_like(x) if wants_x else None
        d_source = dx if job.to_itself else torch.zeros_like(source) if wants_source else None
        with job.weights():
            parameters = job.parameters()
            slices = job.slices(source)
            sums = _Sums(parameters, 1 if len(job.pieces) == len(slices) == 1 else 2)
            made: tuple[Tensor, Tensor] | None = None
            if len(slices) == 1:  # made once, with a graph
                with torch.enable_grad(), job.again(("keys", 0), source):
                    origin = _start(source, wants_source)
                    made = job.how.keys(origin, 0)
                k, v = (t.detach() for t in made)
            else:
                k, v = job.all_keys(source, again=True)
            wide = torch.promote_types(k.dtype, torch.float32)
            dk, dv = (torch.zeros_like(t, dtype=wide) for t in (k, v))
            for number, piece in reversed(list(enumerate(job.pieces))):
                seen = job.how.reach(piece)
                with torch.enable_grad(), for_gradients(), job.again(number, x):
                    part, keys, values = _start(x[piece.rows], wants_x), _start(k[seen]), _start(v[seen])
                    y = job.how.answer(part, piece, keys, values)
                found = _gradients((y,), (dy[piece.rows],), (part, keys, values, *parameters))
                del y
                for total, rows, grad in ((dx, piece.rows, found[0]), (dk, seen, found[1]), (dv, seen, found[2])):
                    if total is not None and grad is not None:
                        total[rows] += grad
                sums.add(found[3:])
            del k, v
            for number, rows in enumerate(slices):
                if made is None:
                    with torch.enable_grad(), job.again(("keys", number), source):
                        origin = _start(source[rows], wants_source)
                        made = job.how.keys(origin, number)
                given = tuple(t[rows].to(made[0].dtype) for t in (dk, dv))
                found, made = _gradients(made, given, (origin, *parameters)), None
                if d_source is not None and found[0] is not None:
                    d_source[rows] += found[0]
                sums.add(found[1:])
        return None, dx, None if job.to_itself else d_source, *sums.result()
