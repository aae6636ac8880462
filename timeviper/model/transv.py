"""TransV: drop vision tokens before a block, and let the instruction receive what they held (paper 3.3).

    x_instruction += tanh(alpha) * CrossAttention(norm(x_instruction), norm(x_dropped))

All of it is index arithmetic on the packed stream: no loop over samples or frames, and no size that the host
does not know beforehand. Letters: L tokens, S sequences, D width, V vision tokens of the stream, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from timeviper.config import DecoderConfig, TransVConfig
from timeviper.kernels.attention import attention
from timeviper.kernels.bounds import Bounds
from timeviper.kernels.prefix_attention import Runs, part_of
from timeviper.model.layers import Linear, RMSNorm
from timeviper.model.pieces import Attending, Piece, Weights, attend_in_pieces, cut
from timeviper.pack import Kind, TextRun


@dataclass
class Stream:
    """The tokens between two transfers."""

    x: Tensor
    """`[L, D]` residual stream."""
    bounds: Bounds
    kind: Tensor
    """`[L]` uint8, values of `Kind`."""
    groups: list[list[int]]
    """Vision tokens left of each group of media, of each sequence (see `timeviper.pack.vision_groups`)."""
    index: Tensor
    """`[L]` int64: where each token stood in the stream that entered the decoder."""
    text: Sequence[Sequence[TextRun]] | None = None
    """The text of each sequence, with the vision tokens that came before it once; None: not known on the host."""

    @property
    def vision(self) -> list[int]:
        """Vision tokens that each sequence has left."""
        return [sum(group) for group in self.groups]

    @property
    def num_vision(self) -> int:
        return sum(self.vision)

    def places(self, vision: bool) -> Tensor:
        """Positions of the vision tokens `[V]`, or of all others `[L - V]`."""
        size = self.num_vision if vision else self.bounds.num_tokens - self.num_vision
        return torch.nonzero_static((self.kind == Kind.VISION) == vision, size=size).squeeze(1)


class DroppedTokens:
    """Keys and values of one sequence's dropped tokens, gathered while its prompt streams through."""

    def __init__(self, size: int) -> None:
        self.size, self.count = size, 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None:
            self.keys, self.values = (t.new_empty(self.size, *t.shape[1:]) for t in (k, v))
        end = self.count + len(k)
        self.keys[self.count : end], self.values[self.count : end] = k, v
        self.count = end
        return self.keys[:end], self.values[:end]


class Transfer(nn.Module):
    """The gated cross-attention of one stage: what text tokens receive, `[n, D]`."""

    def __init__(self, cfg: DecoderConfig, transv: TransVConfig) -> None:
        super().__init__()
        self.head_dim = cfg.head_dim
        bias = cfg.facts.qkv_bias
        self.norm = RMSNorm(cfg.width, cfg.norm_eps) if transv.prenorm else nn.Identity()
        self.q_proj = Linear(cfg.width, cfg.heads * cfg.head_dim, bias=bias)
        self.k_proj = Linear(cfg.width, cfg.kv_heads * cfg.head_dim, bias=bias)
        self.v_proj = Linear(cfg.width, cfg.kv_heads * cfg.head_dim, bias=bias)
        self.o_proj = Linear(cfg.heads * cfg.head_dim, cfg.width, gain=1 / math.sqrt(len(cfg.layout)))
        self.alpha = nn.Parameter(torch.empty(1))  # one element, not a scalar: those cannot be sharded
        self.first_alpha = math.atanh(transv.gate)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The gate as `transv.gate` says; the projections fill themselves."""
        nn.init.constant_(self.alpha, self.first_alpha)

    def forward(
        self,
        text: Tensor,
        source: Tensor,
        bounds_text: Bounds,
        bounds_source: Bounds,
        visible: Tensor,
        memory: DroppedTokens | None = None,
        runs: Runs | None = None,
    ) -> Tensor:
        """text `[n, D]` may look at the first `visible [n]` of its own sequence's source tokens (those in
        `memory` come before `source [m, D]`); a token that sees none receives exactly 0. runs: as in `attention`."""
        k, v = self.look_at(source)
        if memory is not None:
            k, v = memory.append(k, v)
            bounds_source = Bounds([memory.count], source.device)
        return self.look(text, k, v, bounds_text, bounds_source, visible, runs)

    def look_at(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[m, Hkv, P]`."""
        source = self.norm(source)
        k, v = (proj(source).unflatten(-1, (-1, self.head_dim)) for proj in (self.k_proj, self.v_proj))
        return k, v

    def look(
        self,
        text: Tensor,
        k: Tensor,
        v: Tensor,
        bounds_text: Bounds,
        bounds_source: Bounds,
        visible: Tensor,
        runs: Runs | None = None,
    ) -> Tensor:
        """What the text receives from keys and values, `[n, D]`."""
        q = self.q_proj(self.norm(text)).unflatten(-1, (-1, self.head_dim))  # [n, H, P]
        out = attention(q, k, v, bounds_text, bounds_source, visible=visible, runs=runs)
        receivers = any(n and m for n, m in zip(bounds_text.lengths, bounds_source.lengths))
        if torch.is_grad_enabled() and not receivers:
            # Nobody receives here, perhaps on another rank: every parameter still gets its (zero)
            # gradient, since sharded ranks reduce the same parameters together.
            out = out + 0 * (k.sum() + v.sum())
        return torch.tanh(self.alpha) * self.o_proj(out.flatten(1))  # [n, D]

    def in_pieces(
        self,
        size: int,
        weights: Weights,
        text: Tensor,
        source: Tensor,
        bounds_text: Bounds,
        bounds_source: Bounds,
        visible: Tensor,
        memory: DroppedTokens | None = None,
        runs: Runs | None = None,
    ) -> Tensor:
        """`forward` in training, which keeps its inputs and is computed again `size` rows at a time (0: whole)."""
        if memory is not None:
            return self(text, source, bounds_text, bounds_source, visible, memory, runs)

        def reach(piece: Piece) -> slice:
            numbers = piece.sequences
            return slice(bounds_source.offsets[numbers.start], bounds_source.offsets[numbers.stop])

        def answer(rows: Tensor, piece: Piece, k: Tensor, v: Tensor) -> Tensor:
            sources = Bounds(bounds_source.lengths[piece.sequences], source.device)
            part = (
                None
                if runs is None
                else [
                    part_of(runs[s], max(piece.rows.start - a, 0), piece.rows.stop - a)
                    for s, a in zip(range(*piece.sequences.indices(len(runs))), bounds_text.offsets[piece.sequences])
                ]
            )
            return self.look(rows, k, v, piece.bounds, sources, visible[piece.rows], part)

        how = Attending(lambda rows, _: self.look_at(rows), answer, reach)
        return attend_in_pieces(self, how, text, source, cut(bounds_text, size), size, weights)


def shorten(
    stream: Stream,
    mask: Tensor,
    kept: list[list[int]],
    transfer: Transfer | None,
    options: TransVConfig,
    memory: DroppedTokens | None = None,
) -> Stream:
    """Remove the vision tokens where `mask [V]` is false, after the text behind them has received.

    kept: how many stay of each group of each sequence. memory: what earlier chunks of the one sequence dropped.
    """
    lost = [n - sum(k) for n, k in zip(stream.vision, kept)]
    vision = stream.places(vision=True)  # [V]
    # nonzero_static: the host knows the counts already, and need not wait for the device to count.
    gone = vision[torch.nonzero_static(~mask, size=sum(lost)).squeeze(1)]  # [sum of lost]
    away = torch.zeros_like(stream.kind, dtype=torch.bool).index_fill(0, gone, True)  # [L]
    stay = torch.nonzero_static(~away, size=len(away) - sum(lost)).squeeze(1)  # [L - sum of lost]
    x = stream.x.index_select(0, stay)
    if transfer is not None:
        every = options.keys == "all"
        source, counts = (vision, stream.vision) if every else (gone, lost)
        delta, text = _receive(stream, source, counts, transfer, options, memory)
        # A text token has moved forward by as many places as tokens before it are gone.
        x = x.index_add(0, text - away.cumsum(0)[text], delta.to(x.dtype))
    lengths = [n - d for n, d in zip(stream.bounds.lengths, lost)]
    bounds = Bounds(lengths, stream.bounds.device)
    return Stream(x, bounds, stream.kind[stay], kept, stream.index[stay], stream.text)


def _receive(
    stream: Stream,
    source: Tensor,
    counts: Sequence[int],
    transfer: Transfer,
    options: TransVConfig,
    memory: DroppedTokens | None,
) -> tuple[Tensor, Tensor]:
    """What the text receives from the tokens at `source`, `counts` of each sequence, and where it stands.

    All text goes through, that of no interest with nothing to see: the number of instruction tokens is not
    known on the host, and an answer token that sees nothing gets exactly 0.
    """
    bounds_source = Bounds(counts, source.device)
    text = stream.places(vision=False)
    bounds_text = Bounds([n - v for n, v in zip(stream.bounds.lengths, stream.vision)], source.device)
    # Sources before each text token: of the whole pack, less those of earlier sequences.
    is_source = torch.zeros_like(stream.kind, dtype=torch.int64).index_fill(0, source, 1)  # [L]
    before = is_source.cumsum(0)[text] - bounds_source.cu_seqlens[bounds_text.seq_idx]  # [n]
    kind = stream.kind[text]
    receives = kind == Kind.INSTRUCTION
    if options.queries == "instruction+answer":
        receives = receives | (kind == Kind.ANSWER)
    held = memory.count if memory else 0
    visible = (before + held).masked_fill(~receives, 0)  # [n]
    runs = None
    if stream.text is not None:
        deaf = {Kind.CONTEXT} | (set() if options.queries == "instruction+answer" else {Kind.ANSWER})
        runs = [[(n, 0 if kind in deaf else seen + held) for n, kind, seen in row] for row in stream.text]
    delta = transfer(stream.x[text], stream.x[source], bounds_text, bounds_source, visible, memory, runs)
    return delta, text
