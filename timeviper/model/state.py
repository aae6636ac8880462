"""What a decoder remembers of the tokens it has seen: convolution, state space and attention states.

Whole prefill, prefill in chunks and decode are one code path: a call gets the new tokens of S sequences and
the states that their earlier tokens left, and leaves the states after them. States carry no gradient;
training on packs runs without any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from timeviper.kernels.attention import attention
from timeviper.kernels.bounds import Bounds
from timeviper.kernels.host import on_device
from timeviper.model.pieces import Piece

GROWTH = 1.25  # a full key cache grows by this factor, so a token costs the same however long the cache is
SPARE = 64  # ... and by at least this many tokens


@dataclass
class MambaState:
    conv: Tensor
    """`[S, C, K-1]`: the last inputs of the convolution."""
    ssm: Tensor
    """`[S, H, P, N]`, float32 (float64 in a float64 model)."""


@dataclass
class AttentionState:
    """Keys and values `[rows, Hkv, P]`; which rows belong to whom is the segment's business."""

    keys: Tensor
    values: Tensor

    def attend(self, q: Tensor, k: Tensor, v: Tensor, span: Span) -> Tensor:
        """Store the keys and values `[L, Hkv, P]` of new tokens; what their queries `[L, H, P]` read, `[L, H, P]`."""
        k, v = self.append(k, v, span)
        return attention(q, k, v, span.bounds, span.keys, causal=span.visible is None, visible=span.visible)

    def append(self, k: Tensor, v: Tensor, span: Span) -> tuple[Tensor, Tensor]:
        """Store the new tokens' keys and values; returns all that the queries of `span` may look at."""
        if span.slots is None:  # no room was asked for: the cache is these very keys
            self.keys, self.values = k.detach(), v.detach()
            return k, v
        self.keys, self.values = _put(self.keys, k, span.slots, span), _put(self.values, v, span.slots, span)
        if span.past is None:  # the first tokens: nothing else to look at
            return k, v
        return self.keys[: span.keys.num_tokens], self.values[: span.keys.num_tokens]


@dataclass
class Keys:
    """Keys and values `[m, Hkv, P]` that a piece of a stream may look at; none yet: the block is to give its own."""

    k: Tensor | None = None
    v: Tensor | None = None


@dataclass
class Span:
    """The new tokens of one call, as the blocks of a segment need to know them."""

    bounds: Bounds
    keys: Bounds
    """How keys lie: those of a sequence first to last, unused room behind them where `visible` is given."""
    visible: Tensor | None = None
    """`[L]` keys that each new token sees; None: all up to itself, aligned at the end."""
    past: Tensor | None = None
    """`[S]` tokens seen before; None: none."""
    slots: Tensor | None = None
    """`[L]` rows of the cache that the new keys go to."""
    grown: tuple[int, Tensor, Tensor] | None = None
    """The cache moves to a larger one first: its rows, rows of the old keys before, and after."""
    rope: tuple[Tensor, Tensor] | None = None
    """Rotary cosines and sines `[L, P/2]`, in families that have them."""
    piece: Piece | None = None
    """The tokens are a piece of a longer stream, cut anywhere: states are of its first and its last sequence."""
    lean: bool = False
    """Keep little for the backward pass and compute more again (see `Mamba2`)."""

    @property
    def position(self) -> Tensor:
        """`[L]`: the place of each new token in its own sequence."""
        place = self.bounds.position
        return place if self.past is None else place + self.past[self.bounds.seq_idx]

    @classmethod
    def fresh(cls, bounds: Bounds) -> Span:
        """Whole sequences, nothing remembered: training."""
        return cls(bounds, bounds)

    def part(self, piece: Piece) -> Span:
        """The same for a piece of the stream, in training."""
        rope = None if self.rope is None else (self.rope[0][piece.rows], self.rope[1][piece.rows])
        return Span(piece.bounds, piece.seen_bounds, rope=rope, piece=piece)


@dataclass
class SegmentState:
    """The states of the blocks between two transfers, which have all seen the same tokens."""

    blocks: list[MambaState | AttentionState | None]
    lengths: list[int]
    """Tokens that each sequence has had here (vision tokens dropped before are not among them)."""
    room: list[int]
    """Rows of the key caches that belong to each sequence, laid out one after the other."""

    def open(self, bounds: Bounds) -> Span:
        """Make room for new tokens and count them as seen."""
        past, total = self.lengths, [a + b for a, b in zip(self.lengths, bounds.lengths)]
        self.lengths = total
        if not any(past) and not any(self.room):  # nobody asked for room: the cache will be these tokens' own keys
            self.room = total
            return Span(bounds, bounds)
        device, grown = bounds.device, None
        if any(n > r for n, r in zip(total, self.room)):
            before = Bounds(past, device)
            old = _rows(before, self.room)
            self.room = [r if n <= r else max(int(n * GROWTH), n + SPARE) for n, r in zip(total, self.room)]
            grown = (sum(self.room), old, _rows(before, self.room))  # every block of the segment moves its cache alike
        slots = _rows(bounds, self.room)
        if not any(past):
            return Span(bounds, bounds, slots=slots, grown=grown)
        seen = on_device(past, device)  # [S]
        slots = slots + seen[bounds.seq_idx]
        if len(total) == 1 or total == self.room:  # no unused rows between the keys
            return Span(bounds, Bounds(total, device), None, seen, slots, grown)
        span = Span(bounds, Bounds(self.room, device), None, seen, slots, grown)
        span.visible = span.position + 1
        return span

    def copy(self, more: int, device: torch.device) -> SegmentState:
        """A copy of the one sequence, with room for so many tokens more: what is written there stays there."""
        (length,) = self.lengths
        blocks: list[MambaState | AttentionState | None] = []
        for block in self.blocks:
            if isinstance(block, MambaState):
                block = MambaState(block.conv.to(device, copy=True), block.ssm.to(device, copy=True))
            elif isinstance(block, AttentionState):
                block = AttentionState(*(_roomy(t, length, more, device) for t in (block.keys, block.values)))
            blocks.append(block)
        return SegmentState(blocks, [length], [length + more])

    def select(self, sequences: Sequence[int], device: torch.device) -> SegmentState:
        """Keep the named sequences."""
        chosen = on_device(sequences, device)
        starts = Bounds(self.room).offsets
        lengths = [self.lengths[s] for s in sequences]
        kept = Bounds(lengths, device)
        # Caches come out without unused room: the rows of the chosen sequences, laid end to end.
        rows = on_device([starts[s] for s in sequences], device)[kept.seq_idx] + kept.position
        blocks: list[MambaState | AttentionState | None] = []
        for block in self.blocks:
            if isinstance(block, MambaState):
                block = MambaState(block.conv[chosen], block.ssm[chosen])
            elif isinstance(block, AttentionState):
                block = AttentionState(block.keys[rows], block.values[rows])
            blocks.append(block)
        return SegmentState(blocks, lengths, list(lengths))


def _roomy(cache: Tensor, rows: int, more: int, device: torch.device) -> Tensor:
    larger = torch.zeros(rows + more, *cache.shape[1:], dtype=cache.dtype, device=device)
    larger[:rows] = cache[:rows]
    return larger


def _put(cache: Tensor, new: Tensor, slots: Tensor, span: Span) -> Tensor:
    # Unused rows are zero: a masked key weighs nothing, but nothing times NaN is NaN.
    if span.grown is not None:
        rows, old_rows, new_rows = span.grown
        cache = cache.new_zeros(rows, *cache.shape[1:]).index_copy_(0, new_rows, cache[old_rows])
    return cache.index_copy_(0, slots, new.detach())


def _rows(bounds: Bounds, room: Sequence[int]) -> Tensor:
    """`[L]`: cache rows of tokens that stand first in the room of their sequence."""
    starts = on_device(Bounds(room).offsets[:-1], bounds.device)
    return starts[bounds.seq_idx] + bounds.position


@dataclass
class DecoderState:
    """The states of all blocks, by segment, for S sequences."""

    segments: list[SegmentState]
    device: torch.device
    seen: list[int] = field(default_factory=list)
    """Tokens of each sequence that have entered the decoder."""

    @property
    def num_sequences(self) -> int:
        return len(self.seen)

    def select(self, sequences: Sequence[int]) -> DecoderState:
        """Keep the named sequences, in the order given."""
        segments = [segment.select(sequences, self.device) for segment in self.segments]
        return DecoderState(segments, self.device, [self.seen[s] for s in sequences])

    @staticmethod
    def join(states: Sequence[DecoderState]) -> DecoderState:
        """One state for the sequences of several."""
        compact = [state.select(range(state.num_sequences)) for state in states]
        segments = []
        for parts in zip(*(state.segments for state in compact)):
            blocks = [_join_blocks(block) for block in zip(*(part.blocks for part in parts))]
            lengths = [n for part in parts for n in part.lengths]
            segments.append(SegmentState(blocks, lengths, list(lengths)))
        return DecoderState(segments, compact[0].device, [n for state in compact for n in state.seen])

    def num_bytes(self) -> int:
        """Memory of all states (unused room included)."""
        tensors = [t for s in self.segments for b in s.blocks if b is not None for t in vars(b).values()]
        return sum(t.nbytes for t in tensors)


def _join_blocks(blocks: Sequence[MambaState | AttentionState | None]) -> MambaState | AttentionState | None:
    first = blocks[0]
    if first is None:
        return None
    columns = zip(*(vars(block).values() for block in blocks if block is not None))
    return type(first)(*(torch.cat(column) for column in columns))
