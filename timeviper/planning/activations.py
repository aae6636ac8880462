"""Bytes that autograd keeps of one pack from the forward to the backward pass, module by module.

The law follows the torch forms operation by operation: a linear map keeps its input if its weight learns, a norm its
float32 input, the scan its inputs, its float32 output and the state before every chunk. Tensors that share memory
count once; parameters do not count. Linear in the length of the stream but for the masks of TransV's cross-attention
(text times dropped tokens). Letters: L tokens, S sequences, D width, `a` bytes of an activation.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from timeviper.config import DecoderConfig, ModelConfig
from timeviper.config.shape import PackShape, SegmentShape, segment_shapes
from timeviper.kernels.ssd_chunked import tokens_per_chunk
from timeviper.model.flops import PART_OF_LETTER, Execution, attention_batches, chunks
from timeviper.model.gradients import Gradients, Maps, maps_of, transfers
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
        names = transfers([s.segment for s in shapes])
        V = sum(shapes[0].before)
        index = INDEX * (shapes[0].num_tokens * self.grads.decoder + V * self.grads.embedded)
        # The splice keeps the frames' tokens for their shape alone.
        saved = [Saved("splice", "projector", index + self.a * V * self.cfg.width * self.grads.vision)]
        for stream in shapes:
            if stream.segment.stage is not None:
                saved.append(self.transfer(stream, stream.segment.name in names))
            blocks = [self.block(i, stream) for i in stream.segment.blocks]
            if self.cfg.family != "nemotron_h" and self.flow and "attention" not in self.execution.checkpointed:
                saved.append(Saved("rope", "attention", WIDE * stream.num_tokens * self.cfg.head_dim))
            saved += blocks
        return [*saved, self.loss(shapes[-1].num_tokens)]

    def block(self, i: int, stream: SegmentShape) -> Saved:
        letter, learns, L, D = self.cfg.layout[i], self.grads.decoder, stream.num_tokens, self.cfg.width
        name, part = f"block {i}", PART_OF_LETTER[letter]
        maps = maps_of(letter, self.model, self.grads)
        flow, mixes = self.flow, self.flow or learns or maps.rank_in > 0
        self.flow = mixes or maps.adapted
        if not self.flow:
            return Saved(name, part, 0)
        inside = norm_saved(L, D, learns, flow, self.execution) + self.first_inputs(L, D, learns, maps)
        last_input = learns or maps.last[1] > 0
        gradients = 2.0 * self.a * L * D  # of the block's output and input
        if letter == "M":
            inside += mamba_saved(self.cfg, stream.lengths, learns, mixes, self.a, self.execution)
            inside += self.a * L * maps.last[0] * last_input
            gradients += 3 * WIDE * L * maps.last[0]  # in the gated norm
        elif letter == "*":
            inside += attention_saved(self.cfg, stream.lengths, stream.lengths, mixes, last_input, self.a)
            gradients += 2 * self.a * L * (self.cfg.heads + self.cfg.kv_heads) * self.cfg.head_dim
        else:
            between, most = (1, 3) if self.cfg.family == "nemotron_h" else (3, 2)
            inside += self.a * L * self.cfg.mlp_width * (between * mixes + last_input)
            gradients += most * self.a * L * self.cfg.mlp_width  # square of relu: also its derivative, twice
        inside += self.a * L * maps.last[1]  # the last map's adapter
        if part not in self.execution.checkpointed:
            return Saved(name, part, inside, 0.0, gradients)
        return Saved(name, part, self.a * L * D, inside, gradients)

    def first_inputs(self, rows: int, width: int, learns: bool, maps: Maps) -> float:
        """What the maps that share an input keep of it, and their adapters between their two products."""
        ranks = [rank for _, rank in maps.first if rank]
        kept = self.a * rows * (width * (learns or bool(ranks)) + sum(ranks))
        return kept + rows * width * (self.a + 1) * len(ranks) * self.grads.dropout  # a mask and a copy each

    def transfer(self, stream: SegmentShape, has_weights: bool) -> Saved:
        """One stage of TransV: indices, and the cross-attention of the text rows n over the sources m."""
        a, D, learns, flow = self.a, self.cfg.width, self.grads.transv and has_weights, self.flow
        stage = stream.segment.stage
        assert stage is not None
        name = f"transv {stream.segment.name}"
        outside = INDEX * (stream.num_tokens + len(stream.text) * (stage.select == "attention")) * flow
        maps = maps_of("T", self.model, self.grads)
        mixes = flow or learns or maps.rank_in > 0
        if not has_weights or not (mixes or maps.adapted):
            return Saved(name, "transv", outside)
        self.flow = True
        source = stream.before if self.model.transv.keys == "all" else stream.dropped
        n, m = sum(stream.text), sum(source)
        # Rows that were picked, where the result goes, and the result, which the sum keeps for its shape alone.
        outside += INDEX * ((n + m) * flow + n) + a * n * D
        (_, q), (_, k), (_, v) = maps.first
        inside = a * (n * D * (learns or q > 0) + m * D * (learns or k + v > 0) + n * q + m * (k + v))
        if self.model.transv.prenorm:
            inside += norm_saved(n, D, learns, flow, self.execution) + norm_saved(m, D, learns, flow, self.execution)
        last_input = learns or maps.last[1] > 0
        inside += attention_saved(self.cfg, stream.text, source, mixes, last_input, a, masked=True)
        inside += a * n * (D * learns + maps.last[1])  # what the gate scales; o's adapter
        if "transv" not in self.execution.checkpointed:
            return Saved(name, "transv", outside + inside)
        return Saved(name, "transv", outside + a * (n + m) * D + INDEX * n, inside)

    def loss(self, L: int) -> Saved:
        """The final norm, and the loss's gradients, which are made in the forward pass."""
        learns, M, D = self.grads.decoder, self.shape.labels, self.cfg.width
        if not (learns or self.flow):
            return Saved("loss", "logits", 0)
        kept = norm_saved(L, D, learns, self.flow, self.execution)
        kept += INDEX * M + self.a * M * D + WIDE * self.cfg.vocab_size * D * learns
        return Saved("loss", "logits", kept)


def norm_saved(L: int, width: int, learns: bool, flow: bool, execution: Execution) -> float:
    """RMSNorm of `[L, width]`: the float32 input; on a CPU, where it is no single operation, its output too."""
    if execution.device == "cuda":
        return float((WIDE * L * width + WIDE * L) * (learns or flow))
    return float(WIDE * L * (width + 1) * flow + WIDE * L * width * learns)


def mamba_saved(
    cfg: DecoderConfig, lengths: Sequence[int], learns: bool, mixes: bool, a: int, execution: Execution
) -> float:
    """The Mamba-2 mixer between its two maps: convolution, scan and gated norm."""
    if not mixes:
        return 0.0
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
    return float(projected + convolution + scan + gated + WIDE * L * inner * learns)


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
    H, q, kv = cfg.heads, cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
    n, m = sum(queries), sum(keys)
    if not mixes:
        return float(a * n * q * last_input)
    batches = [b for b in attention_batches(queries, keys) if b[2]]
    together = [b for b in batches if b[0] > 1]
    kept = 0.0
    for members, longest_q, longest_k in batches:
        rows = members * longest_q
        kept += rows * (a * q + WIDE * H)  # output; logarithms of the softmax's sums
        if masked:
            kept += rows * (a * longest_k + 1)
        if members > 1:  # padded copies and their rows in the stream
            kept += rows * a * q + members * longest_k * 2 * a * kv + INDEX * members * (longest_q + longest_k)
    if len(together) < len(batches):  # a sequence alone is a view of the whole stream
        kept += a * n * q + a * m * 2 * kv
    ordered = len(batches) == 1 and len(set(queries)) == 1
    if last_input and (masked or not ordered):  # put together from parts, or masked: not the kernel's own output
        kept += a * n * q
    return kept + (0 if ordered or not together else INDEX * n)
