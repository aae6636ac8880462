"""The hybrid language model: Mamba-2, attention and MLP blocks laid out by a string, TransV between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import cast

import torch
from torch import Tensor, nn

from timeviper.config import DecoderConfig, TransVConfig
from timeviper.config.checks.model import check_decoder
from timeviper.config.shape import Segment, cut_layout, kept_counts
from timeviper.kernels.bounds import Bounds
from timeviper.model.attention import Attention, rotary
from timeviper.model.layers import MLPS, Embedding, Linear, RMSNorm
from timeviper.model.mamba2 import Mamba2
from timeviper.model.pieces import Attending, Piece, Weights, attend_in_pieces, cut, run_in_pieces
from timeviper.model.ranking import Ranker
from timeviper.model.selection import SELECTIONS, View
from timeviper.model.state import AttentionState, DecoderState, Keys, MambaState, SegmentState, Span
from timeviper.model.transv import Stream, Transfer, shorten
from timeviper.pack import TextRun, all_vision_groups
from timeviper.pack import text_runs as find_text_runs


@dataclass
class DecoderOutput:
    """What is left of a stream after the last block."""

    hidden: Tensor
    """`[L', D]` after the final norm."""
    index: Tensor
    """`[L']` int64: where each token stood in the input stream."""
    bounds: Bounds
    kept: dict[str, list[int]]
    """Vision tokens left after each transfer stage, per sequence."""
    state: DecoderState | None = None
    left: dict[str, Tensor] = field(default_factory=dict)
    """`[l]` int64 by transfer stage: `index` of the tokens behind it."""


class Block(nn.Module):
    """One pre-norm residual block: `x + mixer(norm(x))`."""

    def __init__(self, cfg: DecoderConfig, letter: str) -> None:
        super().__init__()
        out_gain = 1 / math.sqrt(len(cfg.layout))  # the residual stream keeps its scale with depth
        self.letter = letter
        self.norm = RMSNorm(cfg.width, cfg.norm_eps)
        if letter == "M":
            self.mixer = Mamba2(cfg, out_gain)
        elif letter == "*":
            self.mixer = Attention(cfg, out_gain)
        else:
            self.mixer = MLPS[cfg.facts.mlp](cfg.width, cfg.mlp_width, out_gain)

    def forward(
        self,
        x: Tensor,
        span: Span,
        state: MambaState | AttentionState | Keys | None = None,
        ranker: Ranker | None = None,
    ) -> Tensor:
        """`[L, D]` -> `[L, D]`; with a `ranker` instead what it makes of the tokens (see `rank` of the mixers); with
        empty `Keys` nothing, `[0, D]`, but they are filled.

        The ranking is a forward of the block, too: it uses the block's own norm and maps, and sharded weights exist in
        full only inside the forward of the module that owns them.
        """
        if ranker is not None:
            assert isinstance(self.mixer, (Attention, Mamba2))
            return self.mixer.rank(self.norm(x), span, replace(ranker, x=self.norm(ranker.x)))
        if self.letter == "-":
            return x + self.mixer(self.norm(x))
        if isinstance(state, Keys) and state.k is None:
            assert isinstance(self.mixer, Attention)
            state.k, state.v = self.mixer.look_at(self.norm(x), span.rope)
            return x[:0]
        return x + self.mixer(self.norm(x), span, state)

    def in_pieces(
        self,
        size: int,
        weights: Weights,
        x: Tensor,
        span: Span,
        state: MambaState | AttentionState | None = None,
        ranker: Ranker | None = None,
    ) -> Tensor:
        """`forward` in training, which keeps x alone and is computed again `size` tokens at a time (0: whole)."""
        if state is not None or ranker is not None:
            return self(x, span, state, ranker)
        pieces = cut(span.bounds, size)
        if isinstance(self.mixer, Attention) and len(pieces) > 1:

            def answer(rows: Tensor, piece: Piece, k: Tensor, v: Tensor) -> Tensor:
                return self(rows, span.part(piece), Keys(k, v))

            def look_at(rows: Tensor, number: int) -> tuple[Tensor, Tensor]:
                keys = Keys()
                self(rows, span.part(pieces[number]), keys)
                assert keys.k is not None
                assert keys.v is not None
                return keys.k, keys.v

            how = Attending(look_at, answer, lambda piece: piece.seen)
            return attend_in_pieces(self, how, x, None, pieces, size, weights)

        def run(rows: Tensor, piece: Piece, before: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
            if not before:
                whole = replace(span, lean=isinstance(self.mixer, Mamba2) and torch.is_grad_enabled())
                return self(rows, whole if len(pieces) == 1 else span.part(piece)), ()
            carried = MambaState(*before)
            return self(rows, span.part(piece), carried), (carried.conv, carried.ssm)

        def start() -> tuple[Tensor, ...]:
            if not isinstance(self.mixer, Mamba2) or len(pieces) == 1:
                return ()
            empty = self.mixer.empty_state(1, 0, x.device, x.dtype)
            return empty.conv, empty.ssm

        return run_in_pieces(self, run, start, x, pieces, weights)

    def empty_state(
        self, S: int, rows: int, device: torch.device, dtype: torch.dtype
    ) -> MambaState | AttentionState | None:
        if isinstance(self.mixer, (Mamba2, Attention)):
            return self.mixer.empty_state(S, rows, device, dtype)
        return None


class Decoder(nn.Module):
    """Embeddings, blocks, final norm and head. Works on packed streams `[L, D]`; there is no batch dimension."""

    def __init__(self, cfg: DecoderConfig, transv: TransVConfig | None = None) -> None:
        """Raises ConfigError with every setting that cannot be built."""
        super().__init__()
        transv = transv or TransVConfig()
        check_decoder(cfg, transv)
        self.cfg, self.transv_cfg = cfg, transv
        self.segments = cut_layout(cfg.layout, transv)
        self.embeddings = Embedding(cfg.vocab_size, cfg.width)
        self.blocks = nn.ModuleList(Block(cfg, letter) for letter in cfg.layout)
        self.norm_f = RMSNorm(cfg.width, cfg.norm_eps)
        self.lm_head = None if cfg.tie_embeddings else Linear(cfg.width, cfg.vocab_size)
        self.transv = nn.ModuleDict(
            {s.name: Transfer(cfg, transv) for s in self.segments if s.stage is not None and s.stage.has_weights}
        )
        self.transfer_enabled = True
        self.watcher: Callable[[Segment, Stream], None] | None = None

    def transv_origins(self) -> dict[str, str]:
        """Which parameter each of a transfer starts from, by names: norm, q, k, v and o of the attention block at
        or after its layer (else the last one before)."""
        attention = [i for i, letter in enumerate(self.cfg.layout) if letter == "*"]
        origins: dict[str, str] = {}
        for segment in self.segments:
            if segment.name not in self.transv:
                continue
            nearest = next((i for i in attention if i >= segment.blocks.start), attention[-1])
            for name, _ in self.transv[segment.name].named_parameters():
                if name != "alpha":
                    inside = name if name.startswith("norm") else f"mixer.{name}"
                    origins[f"transv.{segment.name}.{name}"] = f"blocks.{nearest}.{inside}"
        return origins

    @torch.no_grad()
    def init_transv_from_attention(self) -> None:
        """Start every transfer from an attention block (see `transv_origins`). The gates stay as they are."""
        for name, origin in self.transv_origins().items():
            self.get_parameter(name).copy_(self.get_parameter(origin))

    @contextmanager
    def transfer(self, enabled: bool) -> Iterator[None]:
        """With `enabled` false, the same schedule and indices as pure drop: dropped tokens are lost."""
        before, self.transfer_enabled = self.transfer_enabled, enabled
        try:
            yield
        finally:
            self.transfer_enabled = before

    @contextmanager
    def watched(self, watcher: Callable[[Segment, Stream], None]) -> Iterator[None]:
        """Within it `forward` tells `watcher` of every segment and the stream that its blocks are about to see."""
        before = self.watcher

        def tell(segment: Segment, stream: Stream) -> None:
            if before is not None:
                before(segment, stream)
            watcher(segment, stream)

        self.watcher = tell
        try:
            yield
        finally:
            self.watcher = before

    def embed(self, ids: Tensor) -> Tensor:
        """`[L]` -> `[L, D]`"""
        return self.embeddings(ids)

    @property
    def head_weight(self) -> Tensor:
        """`[V, D]`"""
        return self.embeddings.weight if self.lm_head is None else self.lm_head.weight

    def forward(
        self,
        x: Tensor,
        bounds: Bounds,
        kind: Tensor | None = None,
        state: DecoderState | None = None,
        text_runs: Sequence[Sequence[TextRun]] | None = None,
    ) -> DecoderOutput:
        """x `[L, D]` through all blocks; kind `[L]` says what TransV may do (None: it does nothing, as in
        decode). text_runs: what the host knows of `kind` (see `timeviper.pack`); looked up there where not given,
        which waits for the device.

        With a `state`, x continues the sequences that it holds, and it is updated in place.
        Raises ValueError for a sequence longer than the context, or vision tokens after a filled state.
        """
        self.check_lengths(bounds, state)
        original: list[list[int]] | None = None  # what `keep` of every stage is a fraction of
        if kind is not None:
            text_runs = find_text_runs(kind, bounds.lengths) if text_runs is None else text_runs
            original = all_vision_groups(text_runs, bounds.lengths)
        if state is not None and any(state.seen) and any(map(sum, original or ())):
            raise ValueError(
                "vision tokens cannot follow tokens that are already in the state: TransV looks at a whole "
                "prompt. Use timeviper.inference.prefill.prefill_chunks for a prompt in pieces."
            )
        if kind is None:  # no stage runs: decode, and text alone
            kind = torch.zeros(len(x), dtype=torch.uint8, device=x.device)
        index = torch.arange(len(x), device=x.device)
        stream = Stream(x, bounds, kind, original or [[0]] * bounds.num_sequences, index, text_runs)
        kept: dict[str, list[int]] = {}
        left: dict[str, Tensor] = {}
        for i, segment in enumerate(self.segments):
            if segment.stage is not None and original is not None:
                stream = self.pass_stage(stream, segment, original)
                kept[segment.name], left[segment.name] = stream.vision, stream.index
            if self.watcher is not None:
                self.watcher(segment, stream)
            stream.x = self.run(segment, stream.x, stream.bounds, state.segments[i] if state else None)
        if state is not None:
            state.seen = [a + b for a, b in zip(state.seen, bounds.lengths)]
        return DecoderOutput(self.norm_f(stream.x), stream.index, stream.bounds, kept, state, left)

    def run(self, segment: Segment, x: Tensor, bounds: Bounds, state: SegmentState | None) -> Tensor:
        """The blocks of one segment."""
        span = self.with_rope(Span.fresh(bounds) if state is None else state.open(bounds))
        for n, i in enumerate(segment.blocks):
            x = self.blocks[i](x, span, state.blocks[n] if state else None)
        return x

    def with_rope(self, span: Span) -> Span:
        if self.cfg.facts.rotary:
            span.rope = rotary(span.position, self.cfg.head_dim, self.cfg.rope_theta)
        return span

    def transfer_of(self, segment: Segment) -> Transfer | None:
        """The cross-attention before a segment; None: dropped tokens are lost."""
        if segment.name not in self.transv or not self.transfer_enabled:
            return None
        return cast(Transfer, self.transv[segment.name])

    def pass_stage(self, stream: Stream, segment: Segment, original: list[list[int]]) -> Stream:
        """One stage of TransV on whole sequences. Runs on packs without vision tokens, too: under sharding
        every rank takes the same path."""
        stage = segment.stage
        assert stage is not None
        if stage.keep == 1 and segment.name not in self.transv:
            return stream
        kept = [kept_counts(stage.keep, *pair) for pair in zip(original, stream.groups)]
        if stage.keep < 1:
            view = self.view([stream], segment.blocks.start, query=stage.query)
            mask = SELECTIONS[stage.select].choose(view, [*chain(*kept)])
        else:
            # A curriculum lets the stage keep everything for a while. It runs, too, and moves nothing: under sharding
            # a module that belongs to the pass of one step must belong to that of all.
            mask = torch.ones(stream.num_vision, dtype=torch.bool, device=stream.x.device)
        return shorten(stream, mask, kept, self.transfer_of(segment), self.transv_cfg)

    def view(
        self, pieces: Sequence[Stream], block: int, groups: list[list[int]] | None = None, query: str = "last"
    ) -> View:
        """A stream, whole or in pieces (with the `groups` of the whole), as the selection of a stage before `block`
        sees it, and whose opinion counts (`TransVStage.query`)."""
        return View(pieces, self.blocks[block], self.with_rope, groups, query)

    def logits(self, ids: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
        """Text only: ids `[L]` and boundaries int `[S+1]` (None: one sequence) -> float logits `[L, V]`."""
        bounds = Bounds([len(ids)], ids.device) if cu_seqlens is None else Bounds.from_cu_seqlens(cu_seqlens)
        if bounds.num_tokens != len(ids) or min(bounds.lengths, default=0) == 0:
            raise ValueError(
                f"cu_seqlens must cut all {len(ids)} ids into sequences of 1 token or more, "
                f"got lengths {list(bounds.lengths)}"
            )
        return self.project(self(self.embed(ids), bounds.to(ids.device)).hidden)

    def empty_state(
        self,
        S: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        room: Sequence[Sequence[int]] | None = None,
    ) -> DecoderState:
        """The state of S sequences before their first token. `room`: tokens to reserve for each segment and sequence,
        so that no cache ever moves; without it a cache grows by a quarter when it is full.
        """
        weight = self.embeddings.weight
        device, dtype = torch.device(device or weight.device), dtype or weight.dtype
        segments = []
        for i, segment in enumerate(self.segments):
            reserved = list(room[i]) if room else [0] * S
            blocks = (cast(Block, self.blocks[b]) for b in segment.blocks)
            states = [block.empty_state(S, sum(reserved), device, dtype) for block in blocks]
            segments.append(SegmentState(states, [0] * S, reserved))
        return DecoderState(segments, device, [0] * S)

    def project(self, hidden: Tensor) -> Tensor:
        """`[M, D]` -> logits `[M, V]`, float32 or wider."""
        logits = hidden @ self.head_weight.T
        return logits if logits.dtype == torch.float64 else logits.float()

    def check_lengths(self, bounds: Bounds, state: DecoderState | None) -> None:
        """ValueError if the new tokens make a sequence longer than the context."""
        seen = state.seen if state else [0] * bounds.num_sequences
        longest = max((a + b for a, b in zip(seen, bounds.lengths)), default=0)
        if longest > self.cfg.max_tokens:
            raise ValueError(
                f"a sequence of {longest:,} tokens is longer than model.decoder.max_tokens = "
                f"{self.cfg.max_tokens:,}, which the weights were made for: take fewer frames "
                "(data.frames.max_frames), a shorter text, or raise the limit if you know that they can."
            )
