"""What a frame costs next to a text token: the measure by which packs and ranks get equal work."""

from __future__ import annotations

from collections.abc import Collection

from timeviper.config import ModelConfig
from timeviper.cost.flops import model_flops
from timeviper.cost.shape import PackShape, tokens_per_frame

# A sample of everyday size: what grows with the square of its length (attention, a few percent) is counted as here.
FRAMES, TEXT = 64, 256


def frame_work(model: ModelConfig, trainable: Collection[str], objective: str = "answer") -> float:
    """Model FLOPs (forward and backward, tower included) that one frame adds, in text tokens that add as many.

    With the objective "tags" text costs nothing; then a frame counts as its tokens.
    """

    def total(frames: int, text: int) -> float:
        parts = model_flops(model, PackShape((frames,), (text,), 1), trainable, objective)
        return sum(part.total for part in parts.values())

    a_token = (total(FRAMES, 2 * TEXT) - total(FRAMES, TEXT)) / TEXT
    a_frame = (total(2 * FRAMES, TEXT) - total(FRAMES, TEXT)) / FRAMES
    return a_frame / a_token if a_token else float(tokens_per_frame(model))
