"""Bytes that autograd keeps of the frames' way to the decoder: towers, token merging, projectors, stage 0's loss.

Letters: F frames, N patches, C channels, T tokens a frame, D decoder width, V vocabulary, `a` bytes of an activation.
"""

from __future__ import annotations

from timeviper.config import ModelConfig, TowerConfig
from timeviper.config.shape import PackShape
from timeviper.model.flops import Execution
from timeviper.model.gradients import Gradients
from timeviper.model.vision.build import tower_class
from timeviper.model.vision.tome import rounds
from timeviper.model.vision.tower import FRAMES_PER_CHUNK, blocks_needed, frames_at_a_time

WIDE, INDEX = 4, 8  # bytes of a float32 and of an int64


def tower_saved(
    tower: TowerConfig, shape: PackShape, learns: bool, execution: Execution, a: int
) -> tuple[float, float]:
    """An encoder that learns, with the merging of its tokens; a frozen one keeps nothing.

    Returns what is kept from the forward pass on (the frames themselves are not counted), and what the backward pass
    of a group of frames adds if they are encoded again in it.
    """
    F = shape.num_frames - shape.stored
    if not learns or not F:
        return 0.0, 0.0
    C, pixels, patches, encoder = tower.width, 3 * tower.image_size**2, tower.patches, tower_class(tower.family)
    n = patches + encoder.extra_tokens(tower)
    kept = a * pixels + encoder.stem_saved(tower, a)
    scaled = 2 if encoder.layer_scale else 0  # layer scale keeps what it scales
    # Inputs of both norms, both norms' outputs, queries, keys, values, attention's output; GELU's input and output.
    block = a * n * ((8 + scaled) * C + 2 * tower.mlp_width) + 4 * WIDE * n + WIDE * n * tower.heads
    kept += merge_saved(patches, tower.tokens) + blocks_needed(tower) * block
    if "tower" in execution.checkpointed:
        return 0.0, float(kept * min(F, frames_at_a_time(execution.piece, patches)))
    return float(F * kept), 0.0


def merge_saved(n: int, tokens: int) -> float:
    """ToMe: the matrix of who goes where and the sizes of the merged tokens, each round."""
    kept = 0.0
    for removed in rounds(n, tokens):
        kept += WIDE * (n - removed) * (n + 1)
        n -= removed
    return kept


def encoding_bytes(tower: TowerConfig, frames: int, a: int) -> float:
    """Largest intermediates while a frozen encoder reads one chunk of frames: the hidden units of an MLP before and
    after GELU, with five streams of the width; the merging's features and index matrix come later."""
    F = FRAMES_PER_CHUNK if frames else 0  # the last chunk is filled up
    patches = tower.patches
    block = a * F * patches * (2 * tower.mlp_width + 5 * tower.width)
    pixels = 3 * WIDE * F * 3 * tower.image_size**2  # of the frames as numbers, scaled, normalised
    half = -(-patches // 2)
    merging = F * patches * (2 * WIDE * tower.width + (INDEX + 2 * WIDE) * half)
    return max(block, pixels, merging)


def projector_saved(
    tower: TowerConfig, tokens: int, width: int, grads: Gradients, execution: Execution, a: int
) -> tuple[float, float]:
    """Linear, GELU, Linear on `[tokens, C]`: what is kept, and what the backward pass of a piece adds."""
    low, high = grads.adapter("projector.in"), grads.adapter("projector.out")
    inside = grads.tower or grads.projector or low > 0
    numbers = low + high  # adapters, between their two products
    if grads.projector or low:
        numbers += tower.width  # what the first map reads
    if inside:
        numbers += width  # what GELU reads
    if grads.projector or high:
        numbers += width  # what the second map reads
    kept = a * numbers
    if grads.dropout:  # a thinned copy of what an adapter reads, and its mask of bytes
        kept += (a + 1) * ((tower.width if low else 0) + (width if high else 0))
    if "projector" not in execution.checkpointed or not kept:
        return float(tokens * kept), 0.0
    piece = max(execution.piece // tower.tokens, 1) * tower.tokens if execution.piece else tokens
    return float(a * tokens * tower.width), float(kept * min(tokens, piece))


def tag_logits_saved(model: ModelConfig, shape: PackShape, grads: Gradients, a: int) -> float:
    """Stage 0: logits of every merged token, their soft maximum, and the mean over a sequence's frames."""
    F, S, V, D = shape.num_frames, len(shape.frames), model.decoder.vocab_size, model.decoder.width
    if not grads.embedded:
        return 0.0
    T = sum(tower.tokens for tower in model.towers.values())
    kept = WIDE * F * T * V + WIDE * F * V  # scaled logits; their soft maximum
    if grads.decoder and len(model.towers) > 1:
        kept += a * F * T * D  # the tokens of several towers, side by side: a copy
    pooled = WIDE * F * S + WIDE * S  # which sequence a frame is of; frames of each
    return float(kept + pooled + 2 * S * V + WIDE * S * V)  # masks of words, at most; log-softmax
