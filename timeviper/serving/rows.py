"""Rows that are written together, so that each rounds as it would alone.

A product rounds by its shape (docs/architecture.md, decision 13): alone, a row goes through another routine than among
sixteen. So a step always has the same number of rows, `width`, empty ones among them; all that is common to the rows
(maps, norms, convolution, scan) is of that one shape, where what a row gives depends neither on its place nor on its
company. Attention, whose shape is a row's own length, looks at each row alone.

A row brings its key caches along and they stay where they are; of the others' nothing moves when it comes or goes. Only
its Mamba states are copied, which have the same size after an hour as after a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from timeviper.kernels.bounds import Bounds
from timeviper.kernels.host import on_device
from timeviper.model.decoder import Block, Decoder
from timeviper.model.state import AttentionState, DecoderState, MambaState, SegmentState, Span


@dataclass
class Cache:
    """Keys and values `[room, Hkv, P]` of one row in one attention block."""

    keys: Tensor
    values: Tensor


class RowCaches(AttentionState):
    """The caches of all rows in one attention block, each of its own length."""

    def __init__(self, lengths: list[int]) -> None:
        """lengths: tokens of each row, the new one counted; the segment keeps them."""
        self.lengths = lengths
        self.rows: list[Cache | None] = [None] * len(lengths)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, span: Span) -> Tensor:
        out = torch.zeros_like(q)  # [W, H, P]
        for i, row in enumerate(self.rows):
            if row is None:
                continue
            n = self.lengths[i]
            row.keys[n - 1], row.values[n - 1] = k[i], v[i]
            keys, values = (t[None, :n].transpose(1, 2) for t in (row.keys, row.values))  # [1, Hkv, n, P]
            gqa = q.shape[1] != k.shape[1]
            out[i] = F.scaled_dot_product_attention(q[None, i, :, None], keys, values, enable_gqa=gqa)[0, :, 0]
        return out


class RowSegment(SegmentState):
    """What the blocks between two transfers remember of all rows."""

    def open(self, bounds: Bounds) -> Span:
        past = on_device(self.lengths, bounds.device)
        self.lengths[:] = [n + 1 for n in self.lengths]  # in place: the caches look at it
        return Span(bounds, bounds, past=past)


class Rows:
    """At most `width` sequences that are written a token a step."""

    @torch.inference_mode()
    def __init__(self, decoder: Decoder, width: int) -> None:
        self.decoder, self.width = decoder, width
        weight = decoder.embeddings.weight
        self.bounds = Bounds([1] * width, weight.device)
        self.taken = [False] * width
        segments = []
        for segment in decoder.segments:
            lengths = [0] * width
            blocks: list[MambaState | AttentionState | None] = []
            for b in segment.blocks:
                state = cast(Block, decoder.blocks[b]).empty_state(width, 0, weight.device, weight.dtype)
                blocks.append(RowCaches(lengths) if isinstance(state, AttentionState) else state)
            segments.append(RowSegment(blocks, lengths, [0] * width))
        self.state = DecoderState(segments, weight.device, [0] * width)

    @property
    def count(self) -> int:
        return sum(self.taken)

    @torch.inference_mode()
    def put(self, row: DecoderState, spare: int) -> int:
        """Let a sequence join, of which `spare` tokens more are read at most; returns its place. Uses up its state."""
        assert row.num_sequences == 1
        place = self.taken.index(False)
        self.taken[place], self.state.seen[place] = True, row.seen[0]
        for mine, theirs in zip(self.state.segments, row.segments):
            n = mine.lengths[place] = theirs.lengths[0]
            for block, new in zip(mine.blocks, theirs.blocks):
                if isinstance(block, MambaState) and isinstance(new, MambaState):
                    block.conv[place], block.ssm[place] = new.conv[0], new.ssm[0]
                elif isinstance(block, RowCaches) and isinstance(new, AttentionState):
                    block.rows[place] = Cache(_with_room(new.keys, n, n + spare), _with_room(new.values, n, n + spare))
        return place

    @torch.inference_mode()
    def take(self, place: int) -> DecoderState:
        """Let a sequence leave, with all that it remembers."""
        segments = []
        for mine in self.state.segments:
            n, blocks, room = mine.lengths[place], list[MambaState | AttentionState | None](), 0
            for block in mine.blocks:
                if isinstance(block, MambaState):
                    at = slice(place, place + 1)
                    blocks.append(MambaState(block.conv[at].clone(), block.ssm[at].clone()))
                elif isinstance(block, RowCaches) and (cache := block.rows[place]) is not None:
                    blocks.append(AttentionState(cache.keys, cache.values))
                    room = len(cache.keys)
                else:
                    blocks.append(None)
            segments.append(SegmentState(blocks, [n], [room]))
        row = DecoderState(segments, self.state.device, [self.state.seen[place]])
        self.drop(place)
        return row

    def drop(self, place: int) -> None:
        """Let a sequence leave; its caches are free at once."""
        self.taken[place], self.state.seen[place] = False, 0
        for segment in self.state.segments:
            segment.lengths[place] = 0
            for block in segment.blocks:
                if isinstance(block, RowCaches):
                    block.rows[place] = None

    @torch.inference_mode()
    def step(self, ids: Sequence[int]) -> Tensor:
        """Read one token a place (any where nobody is); logits `[W, V]` of what follows."""
        x = self.decoder.embed(on_device(ids, self.bounds.device))
        logits = self.decoder.project(self.decoder(x, self.bounds, state=self.state).hidden)
        for place, taken in enumerate(self.taken):
            if not taken:  # an empty place stays one, however long
                self.state.seen[place] = 0
                for segment in self.state.segments:
                    segment.lengths[place] = 0
        return logits


def _with_room(cache: Tensor, used: int, room: int) -> Tensor:
    """`[r, Hkv, P]` as it is, if it has the room, else in a larger one."""
    if len(cache) >= room:
        return cache
    return torch.cat([cache[:used], cache.new_empty(room - used, *cache.shape[1:])])


def copies(row: DecoderState, count: int) -> list[DecoderState]:
    """The same sequence so many times, to be continued apart."""
    return [row, *(row.select([0]) for _ in range(count - 1))]
