"""What a kernel with 32-bit offsets can address, and how a longer stream is handed to it.

A kernel that multiplies a row by its stride in 32 bits reads from a wrong address as soon as a tensor spans 2^31
elements, without a word. A projection's row is wide, and what is a view of it reaches that early: with the 22,656
columns of nano9b at 94,787 tokens. So before a vendor's call, in this order: nothing, where all fits; a contiguous
copy of what is a narrow part of its rows; pieces along the stream that carry the state; else the torch form.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from timeviper.kernels.bounds import Bounds

GRID = (1 << 16) - 1
"""Blocks along the second and third dimension of a launch: chunks of the scan, of 64 tokens in the convolution."""


def extent(t: Tensor) -> int:
    """Elements from the first to the last one that indices of `t` reach."""
    return 1 + sum((n - 1) * stride for n, stride in zip(t.shape, t.stride())) if t.numel() else 0


def slim(t: Tensor, limit: int) -> Tensor:
    """`t`, or a contiguous copy where it spans too much and at least half of that is others'."""
    return t.contiguous() if limit < extent(t) >= 2 * t.numel() else t


def rows_within(limit: int, *tensors: Tensor) -> int:
    """The most leading rows of `[L, ...]` of which all of these tensors fit."""
    fitting = []
    for t in tensors:
        width = extent(t[:1])
        fitting.append(0 if width > limit else t.shape[0] if not t.stride(0) else (limit - width) // t.stride(0) + 1)
    return min(fitting)


def check_gradient(y: Tensor, limit: int) -> Tensor:
    """`y` as a kernel returned it, whose gradient reaches its backward within the limit, whatever view it is of."""
    if y.requires_grad and not torch.compiler.is_compiling():
        y.register_hook(lambda g: g.contiguous() if extent(g) > limit else g)
    return y


@dataclass(frozen=True)
class Piece:
    """A part of a pack along the stream."""

    bounds: Bounds
    sequences: slice
    """Those that have a part in it; empty ones behind them are among them."""
    continues: bool
    """Whether its first sequence has begun in the piece before."""


def cut(bounds: Bounds, most: int, multiple: int = 1) -> list[Piece]:
    """Even pieces of at most `most` tokens, which but for the last are a multiple of `multiple`."""
    key = ("pieces", most, multiple)
    if key not in bounds.cache:
        bounds.cache[key] = _cut(bounds, most, multiple)
    return bounds.cache[key]


def _cut(bounds: Bounds, most: int, multiple: int) -> list[Piece]:
    L, offsets = bounds.num_tokens, bounds.offsets
    count = -(-L // (most // multiple * multiple))
    size = -(-L // (count * multiple)) * multiple
    starts = range(0, L, size)
    firsts = [0, *(bisect_right(offsets, start) - 1 for start in starts[1:])]  # the sequence of the token there
    continues = [offsets[s] < start for s, start in zip(firsts, starts)]
    lasts = [s + inside for s, inside in zip(firsts[1:], continues[1:])] + [bounds.num_sequences]
    pieces = []
    for start, first, last, inside in zip(starts, firsts, lasts, continues):
        edges = [min(max(offset, start), start + size) for offset in offsets[first : last + 1]]
        lengths = [b - a for a, b in pairwise(edges)]
        pieces.append(Piece(Bounds(lengths, bounds.device), slice(first, last), inside))
    return pieces


Run = Callable[[Sequence[Tensor], Bounds, Any], tuple[Tensor, Tensor]]


def carried(run: Run, tensors: Sequence[Tensor], pieces: list[Piece], state: Tensor | None) -> tuple[Tensor, Tensor]:
    """`run` on one piece after the other: `[L, ...]` in, output and last state `[1, ...]` out.

    `run(tensors, bounds, state)` takes `[1, ...]`, what the first sequence brings along, and returns what the last
    one leaves. The others begin from nothing.
    """
    outputs = []
    for part, piece in zip(_split(tensors, pieces), pieces):
        y, state = run(part, piece.bounds, state if piece.continues or not outputs else None)
        outputs.append(y)
    assert state is not None
    return torch.cat(outputs), state


def with_states(run: Run, tensors: Sequence[Tensor], pieces: list[Piece], state: Tensor) -> tuple[Tensor, Tensor]:
    """The same with states `[S, ...]` of all sequences, in and out."""
    outputs, finals = [], []
    for part, piece in zip(_split(tensors, pieces), pieces):
        before = state[piece.sequences]
        if piece.continues:
            before = torch.cat([finals.pop()[-1:], before[1:]])
        y, after = run(part, piece.bounds, before)
        outputs.append(y)
        # The last sequence may go on, so its state is apart.
        finals += [after[:-1], after[-1:]]
    return torch.cat(outputs), torch.cat(finals)


def _split(tensors: Sequence[Tensor], pieces: list[Piece]) -> list[tuple[Tensor, ...]]:
    sizes = [piece.bounds.num_tokens for piece in pieces]
    return list(zip(*(t.split(sizes) for t in tensors)))
