"""Floating-point operations of one pack, part by part: what the model asks for, and what is executed.

A multiply-add counts as two. Counted are products of matrices, attention, convolutions of images and the scan; not
counted are elementwise work, norms, softmax, the depthwise convolution and the optimizer (together below 1 %).

`model_flops` is the measure for MFU: every linear map on the tokens that its block really sees (after TransV),
attention over the pairs that a query sees, the scan as its recurrence (4 H P N a token: one update of the state, one
read), a backward pass of twice the forward pass for what learns, and nothing that is computed again.

`executed_flops` is what the torch forms compute: chunked products in place of the recurrence, padded batches of short
sequences, attention's scores once more in its backward pass, blocks once more under activation checkpointing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from timeviper.config import BLOCKS, ModelConfig, ParallelConfig, TowerConfig, TransVConfig
from timeviper.config.shape import PackShape, SegmentShape, segment_shapes, tokens_per_frame
from timeviper.kernels.attention import group_by_length
from timeviper.kernels.bounds import Bounds
from timeviper.kernels.ssd_chunked import tokens_per_chunk
from timeviper.model.gradients import Gradients, maps_of
from timeviper.model.mamba2 import LEAN
from timeviper.model.pieces import Piece, cut
from timeviper.model.selection import SELECTIONS
from timeviper.model.vision.build import tower_class
from timeviper.model.vision.tome import METRIC_HEADS, rounds
from timeviper.model.vision.tower import FRAMES_PER_CHUNK, blocks_needed

PARTS: tuple[str, ...] = ("tower", "projector", "mamba", "scan", "attention", "mlp", "transv", "logits")


@dataclass(frozen=True)
class Flops:
    """Of one part, for one pack."""

    forward: float = 0.0
    backward: float = 0.0
    recompute: float = 0.0
    """The forward pass once more, under activation checkpointing."""

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.recompute

    def __add__(self, other: Flops) -> Flops:
        pairs = ((self.forward, other.forward), (self.backward, other.backward), (self.recompute, other.recompute))
        return Flops(*(a + b for a, b in pairs))


@dataclass(frozen=True)
class Execution:
    """How the torch forms run.

    On `cpu` the numbers follow torch's own counter, which takes causal attention for the full square; on `cuda` the
    fused kernel skips the half that is masked. Chunks of the scan are shorter on a CPU.
    """

    device: Literal["cpu", "cuda"] = "cuda"
    checkpointed: frozenset[str] = frozenset()
    """Block types that are computed again in the backward pass (see `config.BLOCK_TYPES`)."""
    piece: int = 0
    """Tokens that they are computed again and differentiated at a time; 0: all."""

    @classmethod
    def of(cls, parallel: ParallelConfig, device: Literal["cpu", "cuda"] = "cuda") -> Execution:
        return cls(device, parallel.checkpointed, parallel.tokens_per_piece)

    def pieces(self, kind: str, lengths: Sequence[int]) -> tuple[Piece, ...]:
        """How blocks of this type see sequences of these lengths when they are computed again."""
        return cut(Bounds(lengths), self.piece if kind in self.checkpointed else 0)


def model_flops(
    model: ModelConfig, shape: PackShape, trainable: Collection[str], objective: str = "answer", distills: bool = False
) -> dict[str, Flops]:
    """Model FLOPs of a pack's forward and backward pass by part (see above), in FLOP. distills: with the pass of the
    teacher, which no stage of TransV shortens."""
    return _Count(model, shape, trainable, None).all(objective, distills)


def executed_flops(
    model: ModelConfig,
    shape: PackShape,
    trainable: Collection[str],
    execution: Execution,
    objective: str = "answer",
    distills: bool = False,
) -> dict[str, Flops]:
    """What the torch forms execute for a pack, by part, in FLOP."""
    return _Count(model, shape, trainable, execution).all(objective, distills)


class _Count:
    def __init__(
        self, model: ModelConfig, shape: PackShape, trainable: Collection[str], execution: Execution | None
    ) -> None:
        self.model, self.decoder, self.shape, self.execution = model, model.decoder, shape, execution
        self.grads = Gradients.of(model, trainable)
        self.parts = dict.fromkeys(PARTS, Flops())

    def all(self, objective: str, distills: bool) -> dict[str, Flops]:
        for tower in self.model.towers.values():
            self.vision(tower)
        if objective == "tags":
            self.tags()
        else:
            self.language()
        if distills:
            teacher = _Count(replace(self.model, transv=TransVConfig()), self.shape, (), self.execution)
            teacher.language()
            for part, work in teacher.parts.items():
                self.add(part, Flops(work.forward))
            if self.execution is not None:
                self.add("logits", self.head(self.grads.embedded))  # once for the labels, once to compare
        return self.parts

    def add(self, part: str, *work: Flops) -> None:
        for flops in work:
            self.parts[part] += flops

    # ---- vision -----------------------------------------------------------------------------------------

    @property
    def frames(self) -> int:
        """Encoded frames: executed in whole chunks if the towers are frozen, and at least one if they learn."""
        frames = self.shape.num_frames - self.shape.stored
        if self.execution is None:
            return frames
        return max(frames, 1) if self.grads.tower else -(-frames // FRAMES_PER_CHUNK) * FRAMES_PER_CHUNK

    def vision(self, tower: TowerConfig) -> None:
        F, learns, encoder = self.frames, self.grads.tower, tower_class(tower.family)
        again = learns and self.recomputes("tower")
        for i, (pixels, d_in, d_out) in enumerate(encoder.stem_maps(tower)):
            work = linear(F * pixels, d_in, d_out, learns, learns and i > 0)  # pixels need no gradient
            self.add("tower", once_more(work, again))
        C, n = tower.width, tower.patches + encoder.extra_tokens(tower)
        # Queries, keys, values and the way back; the MLP's first map; scores and weighted sums of all pairs.
        block = [linear(F * n, C, 4 * C, learns, learns), linear(F * n, C, tower.mlp_width, learns, learns)]
        block.append(self.products(4.0 * F * n * n * C, learns))
        last = linear(F * n, tower.mlp_width, C, learns, learns)
        for _ in range(blocks_needed(tower)):
            self.add("tower", *(once_more(work, again) for work in block))
            self.add("tower", once_more(last, again))
        self.merge(tower, tower.patches, again)
        tokens, grads, width = self.shape.num_frames * tower.tokens, self.grads, self.decoder.width
        low, high = grads.adapter("projector.in"), grads.adapter("projector.out")
        inside = grads.projector or grads.tower or low > 0
        again = (inside or high > 0) and self.recomputes("projector")
        self.add("projector", once_more(linear(tokens, C, width, grads.projector, grads.tower, low), again))
        self.add("projector", once_more(linear(tokens, width, width, grads.projector, inside, high), again))

    def recomputes(self, kind: str) -> bool:
        return self.execution is not None and kind in self.execution.checkpointed

    def merge(self, tower: TowerConfig, n: int, again: bool) -> None:
        """ToMe: similarities of even and odd tokens (no gradient), then sums by a 0/1 matrix, each round."""
        width = tower.width // METRIC_HEADS if tower.width % METRIC_HEADS == 0 else tower.width
        for removed in rounds(n, tower.tokens):
            even, odd = (n + 1) // 2, n // 2
            self.add("tower", once_more(Flops(2.0 * self.frames * even * odd * width), again))
            work = 2.0 * self.frames * (n - removed) * n * tower.width
            self.add("tower", once_more(Flops(work, work if self.grads.tower else 0.0), again))
            n -= removed

    def tags(self) -> None:
        """Stage 0: every merged token against every word, then the mean over a sequence's frames."""
        tokens = self.shape.num_frames * tokens_per_frame(self.model)
        V, grads = self.decoder.vocab_size, self.grads
        self.add("logits", linear(tokens, self.decoder.width, V, grads.decoder, grads.vision))
        pool = 2.0 * len(self.shape.frames) * self.shape.num_frames * V
        self.add("logits", Flops(pool, pool if grads.embedded else 0.0))

    # ---- language ---------------------------------------------------------------------------------------

    def language(self) -> None:
        shapes = segment_shapes(self.model, self.shape)
        flow = self.grads.embedded  # whether the stream carries a gradient: from the first thing on that learns
        for stream in shapes:
            if stream.segment.stage is not None:
                flow = self.transfer(stream, flow)
            for i in stream.segment.blocks:
                flow = self.block(self.decoder.layout[i], stream.lengths, flow)
        self.add("logits", self.head(flow))

    def head(self, flow: bool) -> Flops:
        learns = self.grads.decoder
        return linear(self.shape.labels, self.decoder.width, self.decoder.vocab_size, learns, flow or learns)

    def block(self, letter: str, lengths: Sequence[int], flow: bool) -> bool:
        """Adds a block; returns whether its output carries a gradient, given that its input does or does not."""
        L, learns, part = sum(lengths), self.grads.decoder, BLOCKS[letter].name
        maps = maps_of(letter, self.model, self.grads)
        enters = flow or learns  # the norm before the mixer learns, too
        mixes = enters or maps.rank_in > 0
        again = (mixes or maps.adapted) and self.recomputes(part)
        cut_up = self.execution is not None and len(self.execution.pieces(part, lengths)) > 1
        for number, (width, rank) in enumerate(maps.first):
            work = once_more(linear(L, self.decoder.width, width, learns, enters, rank), again)
            # Keys and values of all pieces are made before the first query looks, and then once more with a graph.
            twice = again and letter == "*" and number > 0 and cut_up
            self.add(part, replace(work, recompute=2 * work.forward) if twice else work)
        if letter == "M":
            work = once_more(self.scan(lengths, mixes), again)
            lean = again and mixes and not cut_up and L > LEAN  # whole, the scan is not kept even then
            self.add("scan", replace(work, recompute=2 * work.forward) if lean else work)
        elif letter == "*":
            self.add(part, once_more(self.attention(lengths, lengths, True, mixes), again))
        # The last map's own result is not computed again, only what its adapter's second product reads.
        width, rank = maps.last
        last = linear(L, width, self.decoder.width, learns, mixes, rank)
        self.add(part, replace(last, recompute=2.0 * L * width * rank if again else 0.0))
        return mixes or maps.adapted

    def scan(self, lengths: Sequence[int], back: bool) -> Flops:
        """The state space scan: the recurrence, or the products of `kernels/ssd_chunked.py`."""
        cfg = self.decoder
        H, P, N, G = cfg.ssm_heads, cfg.ssm_head_dim, cfg.ssm_state, cfg.ssm_groups
        if self.execution is None:
            return self.products(4.0 * sum(lengths) * H * P * N, back)
        forward = backward = 0.0
        for n, q in chunks(lengths, tokens_per_chunk(cfg.chunk_size, P * N, max(lengths), self.execution.device)):
            # A state against a chunk's keys or queries; C.B of each group; the weighted sum of each head.
            states, scores, mixed = 2.0 * n * q * H * P * N, 2.0 * n * q * q * G * N, 2.0 * n * q * q * H * P
            forward += 2 * states + scores + mixed
            backward += 4 * states + 3 * scores + 2 * mixed
        return Flops(forward, backward if back else 0.0)

    def attention(self, queries: Sequence[int], keys: Sequence[int], causal: bool, back: bool) -> Flops:
        """Scores and weighted sums; `queries` and `keys` of each sequence."""
        size = 4.0 * self.decoder.heads * self.decoder.head_dim
        if self.execution is None:
            pairs = sum(n * (n + 1) / 2 if causal else n * m for n, m in zip(queries, keys))
            return self.products(size * pairs, back)
        pairs = sum(b * n * m for b, n, m in attention_batches(queries, keys))
        skipped = 0.5 if causal and self.execution.device == "cuda" else 1.0
        return self.products(size * pairs * skipped, back)

    def products(self, forward: float, back: bool) -> Flops:
        """Two products a pair of factors; executed, attention's backward pass makes the scores once more."""
        return Flops(forward, forward * (2.5 if self.execution else 2.0) if back else 0.0)

    def transfer(self, stream: SegmentShape, flow: bool) -> bool:
        """One stage of TransV: the choice, and the cross-attention of all text rows."""
        cfg, stage = self.decoder, stream.segment.stage
        assert stage is not None
        tokens = sum(stream.before) + sum(stream.text)
        choice = SELECTIONS[stage.select].flops(self.model, self.grads, stage, stream.text, tokens)
        self.add("transv", Flops(choice))
        if not stage.has_weights:
            return flow
        source = stream.before if self.model.transv.keys == "all" else stream.dropped
        n, m, learns = sum(stream.text), sum(source), self.grads.transv
        maps = maps_of("T", self.model, self.grads)
        enters = flow or (learns and self.model.transv.prenorm)
        mixes = flow or learns or maps.rank_in > 0
        again = (mixes or maps.adapted) and self.recomputes("transv")
        cut_up = self.execution is not None and len(self.execution.pieces("transv", [m])) > 1
        for rows, (width, rank), of_keys in zip((n, m, m), maps.first, (False, True, True)):
            work = once_more(linear(rows, cfg.width, width, learns, enters, rank), again)
            twice = again and of_keys and cut_up
            self.add("transv", replace(work, recompute=2 * work.forward) if twice else work)
        self.add("transv", once_more(self.attention(stream.text, source, False, mixes), again))
        width, rank = maps.last
        self.add("transv", once_more(linear(n, width, cfg.width, learns, mixes, rank), again))  # the gate needs it
        return mixes or maps.adapted


def linear(rows: int, d_in: int, d_out: int, learns: bool = False, back: bool = False, rank: int = 0) -> Flops:
    """A product `[rows, d_in] x [d_in, d_out]`; backward: one more for the weight if it learns, one for the input if
    that carries a gradient. With an adapter of `rank`, its two products and their gradients."""
    forward, low, high = (2.0 * rows * size for size in (d_in * d_out, d_in * rank, rank * d_out))
    return Flops(forward + low + high, forward * (learns + back) + low * (1 + back) + high * 2)


def once_more(flops: Flops, again: bool) -> Flops:
    """The same work, with its forward pass computed again."""
    return replace(flops, recompute=flops.forward if again else 0.0)


def chunks(lengths: Sequence[int], size: int) -> list[tuple[int, int]]:
    """(number, tokens) of the scan's chunks: a single sequence may end in a short one, packs are padded."""
    if len(lengths) == 1:
        whole, rest = divmod(lengths[0], size)
        return [(whole, size), (1, rest)] if rest else [(whole, size)]
    return [(sum(-(-n // size) for n in lengths), size)]


def attention_batches(queries: Sequence[int], keys: Sequence[int]) -> list[tuple[int, int, int]]:
    """(sequences, queries, keys) of every call of the fused kernel: short sequences are padded together."""
    together, alone = group_by_length(queries, keys)
    batches = [(len(b), max(queries[s] for s in b), max(keys[s] for s in b)) for b in together]
    return batches + [(1, queries[s], keys[s]) for s in alone]


def total(parts: dict[str, Flops]) -> Flops:
    return sum(parts.values(), Flops())
