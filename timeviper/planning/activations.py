"""Bytes that autograd keeps of one pack from the forward to the backward pass, module by module.

The law follows the torch forms operation by operation: a linear map keeps its input if its weight learns, a norm its
float32 input, the scan its inputs, its float32 output and the state before every chunk. Tensors that share memory
count once; parameters do not count. Linear in the length of the stream but for the masks of TransV's cross-attention
(text times dropped tokens). Letters: L tokens, S sequences, D width, `a` bytes of an activation.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from timeviper.config import BLOCKS, DecoderConfig, ModelConfig
from timeviper.config.shape import PackShape, SegmentShape, segment_shapes
from timeviper.kernels.ssd_chunked import tokens_per_chunk
from timeviper.model.flops import Execution, attention_batches, chunks
from timeviper.model.gradients import Gradients, Maps, maps_of
from timeviper.model.layers import MLPS
from timeviper.planning.vision_activations import projector_saved, tag_logits_saved, tower_saved

WIDE, INDEX = 4, 8  # bytes of a float32 and of an int64


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
        again = "tower" in execution.checkpointed
        tokens = shape.num_frames * tower.tokens
        saved.append(Saved(f"tower {name}", "tower", *tower_saved(tower, shape, grads.tower, again, dtype_bytes)))
        kept = projector_saved(tower, tokens, model.decoder.width, grads, dtype_bytes)
        saved.append(Saved(f"projector {name}", "projector", kept))
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
        if self.grads.vision:
            kept += self.a * V * self.cfg.width  # the frames' tokens, for their shape alone
        return Saved("splice", "projector", kept)

    def block(self, i: int, stream: SegmentShape) -> Saved:
        letter, learns, L, D = self.cfg.layout[i], self.grads.decoder, stream.num_tokens, self.cfg.width
        name, part = f"block {i}", BLOCKS[letter].name
        maps = maps_of(letter, self.model, self.grads)
        flow, mixes = self.flow, self.flow or learns or maps.rank_in > 0
        self.flow = mixes or maps.adapted
        if not self.flow:
            return Saved(name, part, 0)
        inside = norm_saved(L, D, learns, flow, self.execution) + self.first_inputs(L, D, learns, maps)
        last_input = learns or maps.last[1] > 0
        gradients = 2.0 * self.a * L * D  # of the block's output and input
        if letter == "M":
            if mixes:
                inside += mamba_saved(self.cfg, stream.lengths, learns, self.a, self.execution)
            if last_input:
                inside += self.a * L * maps.last[0]
            gradients += 3 * WIDE * L * maps.last[0]  # in the gated norm
        elif letter == "*":
            inside += attention_saved(self.cfg, stream.lengths, stream.lengths, mixes, last_input, self.a)
            gradients += 2 * self.a * L * (self.cfg.heads + self.cfg.kv_heads) * self.cfg.head_dim
        else:
            mlp, hidden = MLPS[self.cfg.facts.mlp], self.a * L * self.cfg.mlp_width
            if mixes:
                inside += mlp.hidden_kept * hidden
            if last_input:
                inside += hidden
            gradients += mlp.hidden_gradients * hidden
        inside += self.a * L * maps.last[1]  # the last map's adapter, between its two products
        if part not in self.execution.checkpointed:
            return Saved(name, part, inside, 0.0, gradients)
        return Saved(name, part, self.a * L * D, inside, gradients)

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
            if stage.facts.attention:
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
        (_, q), (_, k), (_, v) = maps.first
        inside = a * (n * q + m * (k + v))  # adapters, between their two products
        if learns or q:
            inside += a * n * D
        if learns or k or v:
            inside += a * m * D
        if self.model.transv.prenorm:
            inside += norm_saved(n, D, learns, flow, self.execution) + norm_saved(m, D, learns, flow, self.execution)
        last_input = learns or maps.last[1] > 0
        inside += attention_saved(self.cfg, stream.text, source, mixes, last_input, a, masked=True)
        inside += a * n * maps.last[1]  # o's adapter
        if learns:
            inside += a * n * D  # what the gate scales
        if "transv" not in self.execution.checkpointed:
            return Saved(name, "transv", outside + inside)
        return Saved(name, "transv", outside + a * (n + m) * D + INDEX * n, inside)

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


def norm_saved(L: int, width: int, learns: bool, flow: bool, execution: Execution) -> float:
    """RMSNorm of `[L, width]`, float32 inside. On a CPU it is no single operation."""
    kept, wide, scales = 0.0, WIDE * L * width, WIDE * L
    if execution.device == "cuda":
        return float(wide + scales) if learns or flow else 0.0  # input, and a factor a row
    if flow:
        kept += wide + scales
    if learns:
        kept += wide  # the output before the gain
    return kept


def mamba_saved(cfg: DecoderConfig, lengths: Sequence[int], learns: bool, a: int, execution: Execution) -> float:
    """The Mamba-2 mixer between its two maps, where it carries a gradient: convolution, scan and gated norm."""
    L, S, H, N = sum(lengths), len(lengths), cfg.ssm_heads, cfg.ssm_state
    inner = H * cfg.ssm_head_dim
    channels = inner + 2 * cfg.ssm_groups * N
    projected = a * L * (inner + channels + H)  # gate, convolution input and step: one tensor
    convolution = a * S * channels * (cfg.conv_kernel - 1) + a * L * channels  # states before it; its output
    size = tokens_per_chunk(cfg.chunk_size, cfg.ssm_head_dim * N, max(lengths), execution.device)
    count = sum(n for n, _ in chunks(lengths, size))
    scan = 3 * WIDE * L * H + WIDE * L * inner + WIDE * count * inner * N  # steps and decays; output; states
    gated = WIDE * L * (2 * inner + cfg.ssm_groups)  # silu(gate), the product, its root mean squares
    if a != WIDE:
        gated += WIDE * L * 2 * inner  # output and gate in float32
    if learns:
        gated += WIDE * L * inner  # what its gain is multiplied with
    return float(projected + convolution + scan + gated)


def attention_saved(
    cfg: DecoderConfig,
    queries: Sequence[int],
    keys: Sequence[int],
    mixes: bool,
    last_input: bool,
    a: int,
    masked: bool = False,
) -> float:
    """Fused attention (where queries, keys or values carry a gradient: `mixes`) and, if the last map keeps it, the
    input of that. `masked`: with a count of visible keys for every query."""
    n, m = sum(queries), sum(keys)
    q = a * cfg.heads * cfg.head_dim  # bytes of one token's queries, or of its output
    kv = 2 * a * cfg.kv_heads * cfg.head_dim  # ... of its key and value
    if not mixes:
        return float(n * q) if last_input else 0.0
    batches = [b for b in attention_batches(queries, keys) if b[2]]
    together = [b for b in batches if b[0] > 1]
    kept = 0.0
    for members, longest_q, longest_k in batches:
        rows = members * longest_q
        kept += rows * (q + WIDE * cfg.heads)  # output; logarithms of the softmax's sums
        if masked:
            kept += rows * (a * longest_k + 1)  # the mask as numbers, and whether a row sees anything
        if members > 1:  # padded copies and their rows in the stream
            kept += rows * q + members * longest_k * kv + INDEX * members * (longest_q + longest_k)
    if len(together) < len(batches):  # a sequence alone is a view of the whole stream
        kept += n * q + m * kv
    ordered = len(batches) == 1 and len(set(queries)) == 1  # the kernel's own output is that of the whole stream
    if last_input and (masked or not ordered):
        kept += n * q
    if together and not ordered:
        kept += INDEX * n  # the order in which the outputs are put together
    return kept
