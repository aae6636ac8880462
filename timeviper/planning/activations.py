"""Bytes that autograd keeps of one pack from the forward to the backward pass, module by module.

The law follows the torch forms operation by operation: a linear map keeps its input if its weight learns, a norm its
float32 input, the scan its inputs and the state before every chunk. Tensors that share memory count once; parameters
do not count. Linear in the length of the stream but for the masks of TransV's cross-attention (text times dropped
tokens). Letters: L tokens, S sequences, D width, `a` bytes of an activation.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from timeviper.config import BLOCKS, ModelConfig
from timeviper.config.shape import PackShape, SegmentShape, segment_shapes
from timeviper.model.flops import Execution
from timeviper.model.gradients import Gradients, Maps, maps_of
from timeviper.model.layers import MLPS
from timeviper.model.mamba2 import LEAN
from timeviper.model.pieces import Piece, cut
from timeviper.planning.mixer_activations import (
    INDEX,
    WIDE,
    attention_saved,
    core_saved,
    norm_saved,
    projected_bytes,
    state_bytes,
)
from timeviper.planning.vision_activations import projector_saved, tag_logits_saved, tower_saved

OFFLOADED = (
    "block",
    "transv",
    "tower",
    "projector",
)  # modules whose saved tensors `parallel.offload_activations` moves, by name


@dataclass(frozen=True)
class Saved:
    """What one module keeps for its backward pass."""

    name: str
    part: str
    kept: float
    """Bytes from the forward pass on; under activation checkpointing a block keeps its input alone."""
    recomputed: float = 0.0
    """Bytes more while its own backward pass runs, under activation checkpointing."""
    gradients: float = 0.0
    """Bytes of gradients of its intermediates that exist at a time while its backward pass runs."""


def saved_activations(
    model: ModelConfig,
    shape: PackShape,
    trainable: Collection[str],
    execution: Execution,
    dtype_bytes: int,
    objective: str = "answer",
) -> list[Saved]:
    """What every module of the model keeps of a pack, in the order of the forward pass.

    dtype_bytes: of the computation's dtype, 2 for bfloat16, 4 for float32.
    """
    grads = Gradients.of(model, trainable)
    saved = []
    for name, tower in model.towers.items():
        tokens = shape.num_frames * tower.tokens
        saved.append(Saved(f"tower {name}", "tower", *tower_saved(tower, shape, grads.tower, execution, dtype_bytes)))
        kept = projector_saved(tower, tokens, model.decoder.width, grads, execution, dtype_bytes)
        saved.append(Saved(f"projector {name}", "projector", *kept))
    if objective == "tags":
        return [*saved, Saved("words", "logits", tag_logits_saved(model, shape, grads, dtype_bytes))]
    return saved + _Language(model, shape, grads, execution, dtype_bytes).all()


class _Language:
    """The decoder: embeddings, blocks, transfers, loss."""

    def __init__(
        self, model: ModelConfig, shape: PackShape, grads: Gradients, execution: Execution, dtype_bytes: int
    ) -> None:
        self.model, self.cfg, self.shape, self.grads = model, model.decoder, shape, grads
        self.execution, self.a = execution, dtype_bytes
        self.flow = grads.embedded  # whether the residual stream carries a gradient where the walk stands

    def all(self) -> list[Saved]:
        shapes = segment_shapes(self.model, self.shape)
        saved = [self.splice(shapes[0])]
        for stream in shapes:
            if stream.segment.stage is not None:
                saved.append(self.transfer(stream))
            blocks = [self.block(i, stream) for i in stream.segment.blocks]
            if self.cfg.facts.rotary and self.flow and "attention" not in self.execution.checkpointed:
                # Cosines and sines are made once for all blocks of the segment.
                saved.append(Saved("rope", "attention", WIDE * stream.num_tokens * self.cfg.head_dim))
            saved += blocks
        return [*saved, self.loss(shapes[-1].num_tokens)]

    def splice(self, stream: SegmentShape) -> Saved:
        """The decoder's input: embeddings of the text, the frames' tokens copied to their places."""
        V, kept = sum(stream.before), 0
        if self.grads.decoder:
            kept += INDEX * stream.num_tokens  # ids
        if self.grads.embedded:
            kept += INDEX * V  # places
        return Saved("splice", "projector", kept)

    def block(self, i: int, stream: SegmentShape) -> Saved:
        letter, learns, L, D = self.cfg.layout[i], self.grads.decoder, stream.num_tokens, self.cfg.width
        name, part = f"block {i}", BLOCKS[letter].name
        maps = maps_of(letter, self.model, self.grads)
        flow, mixes = self.flow, self.flow or learns or maps.rank_in > 0
        self.flow = mixes or maps.adapted
        if not self.flow:
            return Saved(name, part, 0)
        stream_gradients = 2.0 * self.a * L * D  # of the block's output and input
        again = part in self.execution.checkpointed
        pieces = self.execution.pieces(part, stream.lengths)
        lean = letter == "M" and again and mixes and len(pieces) == 1 and L > LEAN
        inside, gradients = max((self.inside(letter, p, mixes, flow, lean) for p in pieces), key=sum)
        if not again:
            return Saved(name, part, inside, 0.0, stream_gradients + gradients)
        kept = float(self.a * L * D)
        gradients += 2 * self.a * pieces[0].bounds.num_tokens * D  # results, unused, of the block and of its last map
        if letter == "M":
            kept += state_bytes(self.cfg, self.a) * sum(piece.continues for piece in pieces)
        if (
            letter == "*" and len(pieces) > 1
        ):  # keys and values of the whole stream; their gradients of a piece and, in float32, of all
            gradients += 2 * L * self.cfg.kv_heads * self.cfg.head_dim * (2 * self.a + WIDE)
        return Saved(name, part, kept, inside, stream_gradients + gradients)

    def inside(self, letter: str, piece: Piece, mixes: bool, flow: bool, lean: bool) -> tuple[float, float]:
        """What a block keeps of a piece of its stream, or of all of it, and the gradients between its operations."""
        learns, n, D, a = self.grads.decoder, piece.bounds.num_tokens, self.cfg.width, self.a
        maps = maps_of(letter, self.model, self.grads)
        inside = norm_saved(n, D, learns, flow, self.execution) + self.first_inputs(n, D, learns, maps)
        inside += a * n * maps.last[1]  # the last map's adapter, between its two products
        last_input = learns or maps.last[1] > 0
        if letter == "M":
            inside += a * n * maps.last[0] if last_input else 0
            projected = projected_bytes(self.cfg, n, a)
            inside += projected if mixes else 0
            if lean:
                small = cut(piece.bounds, LEAN)
                inside += state_bytes(self.cfg, a) * sum(part.continues for part in small)
                inside += core_saved(self.cfg, small[0].bounds.lengths, learns, a, self.execution)
                return inside, projected + 3 * WIDE * small[0].bounds.num_tokens * maps.last[0]
            inside += core_saved(self.cfg, piece.bounds.lengths, learns, a, self.execution) if mixes else 0
            return inside, 3 * WIDE * n * maps.last[0]  # in the gated norm
        if letter == "*":
            queries, keys = piece.bounds.lengths, piece.seen_bounds.lengths
            masked = queries != keys and self.execution.device == "cpu"
            inside += attention_saved(self.cfg, queries, keys, mixes, last_input, a, masked)
            return inside, 2 * a * n * (self.cfg.heads + self.cfg.kv_heads) * self.cfg.head_dim
        mlp, hidden = MLPS[self.cfg.facts.mlp], a * n * self.cfg.mlp_width
        inside += (mlp.hidden_kept if mixes else 0) * hidden + (hidden if last_input else 0)
        return inside, mlp.hidden_gradients * hidden

    def first_inputs(self, rows: int, width: int, learns: bool, maps: Maps) -> float:
        """What the maps that share an input keep of it, and their adapters between their two products."""
        ranks = [rank for _, rank in maps.first if rank]
        kept = self.a * rows * sum(ranks)
        if learns or ranks:
            kept += self.a * rows * width
        if self.grads.dropout:
            kept += len(ranks) * rows * width * (self.a + 1)  # for each adapter a thinned copy, and its mask of bytes
        return kept

    def transfer(self, stream: SegmentShape) -> Saved:
        """One stage of TransV: indices, and the cross-attention of the text rows n over the sources m."""
        stage = stream.segment.stage
        assert stage is not None
        a, D, learns, flow = self.a, self.cfg.width, self.grads.transv, self.flow
        name, outside = f"transv {stream.segment.name}", 0
        if flow:
            outside += INDEX * stream.num_tokens  # where those that stay were
            if stage.facts.by_question:
                outside += INDEX * len(stream.text)  # who ranks
        maps = maps_of("T", self.model, self.grads)
        mixes = flow or learns or maps.rank_in > 0
        if not stage.has_weights or not (mixes or maps.adapted):
            return Saved(name, "transv", outside)
        self.flow = True
        source = stream.before if self.model.transv.keys == "all" else stream.dropped
        n, m = sum(stream.text), sum(source)
        if flow:
            outside += INDEX * (n + m)  # rows that were picked
        outside += (
            INDEX * n + a * n * D
        )  # where the result goes, and the result, which the sum keeps for its shape alone
        again = "transv" in self.execution.checkpointed
        looking = self.execution.pieces("transv", stream.text)
        looked_at = self.execution.pieces("transv", [m])[0].bounds.num_tokens
        answers = max(self.looking(piece, source, flow, mixes) for piece in looking)
        keys = self.looked_at(looked_at, flow)
        if not again:
            return Saved(name, "transv", outside + answers + keys)
        gradients = 2 * m * self.cfg.kv_heads * self.cfg.head_dim * (2 * a + WIDE)  # keys and values, and theirs
        inside = answers + keys if looked_at == m else max(answers, keys)
        return Saved(name, "transv", outside + a * (n + m) * D + INDEX * n, inside, gradients)

    def looking(self, piece: Piece, source: Sequence[int], flow: bool, mixes: bool) -> float:
        """What a transfer keeps of a piece of the text, whose sequences have these many sources."""
        a, D, learns, n = self.a, self.cfg.width, self.grads.transv, piece.bounds.num_tokens
        maps = maps_of("T", self.model, self.grads)
        q, last = maps.first[0][1], maps.last[1]
        inside = a * n * (q + last)  # adapters, between their two products
        inside += a * n * D if learns or q else 0
        inside += a * n * D if learns else 0  # what the gate scales
        if self.model.transv.prenorm:
            inside += norm_saved(n, D, learns, flow, self.execution)
        masked = self.execution.device == "cpu"
        sources = source[piece.sequences]
        return inside + attention_saved(self.cfg, piece.bounds.lengths, sources, mixes, learns or last > 0, a, masked)

    def looked_at(self, m: int, flow: bool) -> float:
        """What a transfer keeps of so many sources, up to their keys and values."""
        a, D, learns = self.a, self.cfg.width, self.grads.transv
        (_, k), (_, v) = maps_of("T", self.model, self.grads).first[1:]
        inside = a * m * (k + v) + (a * m * D if learns or k or v else 0)
        return inside + (norm_saved(m, D, learns, flow, self.execution) if self.model.transv.prenorm else 0)

    def loss(self, L: int) -> Saved:
        """The final norm, and the loss's gradients, which are made in the forward pass."""
        learns, M, D = self.grads.decoder, self.shape.labels, self.cfg.width
        if not (learns or self.flow):
            return Saved("loss", "logits", 0)
        kept = norm_saved(L, D, learns, self.flow, self.execution)
        kept += INDEX * M + self.a * M * D  # the labels' places, and the gradient of their hidden states
        if learns:
            kept += WIDE * self.cfg.vocab_size * D  # the gradient of the head
        return Saved("loss", "logits", kept)
