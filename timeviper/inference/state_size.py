"""How large a video's state is before the video is read, and how many frames a budget of bytes holds."""

from __future__ import annotations

from bisect import bisect_right

from timeviper.config import ModelConfig
from timeviper.config.shape import tokens_per_frame
from timeviper.inference.question import TooLongError
from timeviper.model.boundary import boundary_bytes

TIME = 8  # bytes a frame: when it is shown


def state_bytes(model: ModelConfig, tier: str, frames: int, text: int, e: int) -> int:
    """Bytes of a state without the header of its file, some kilobytes. text: tokens of it before the last vision
    token; e: bytes an element, of what the model computes in."""
    if tier == "features":
        return frames * (sum(tower.tokens * tower.width for tower in model.towers.values()) * e + TIME)
    parts = boundary_bytes(model.decoder, model.transv, frames * tokens_per_frame(model), text, e)
    return sum(parts.values()) + frames * TIME


def frames_within(model: ModelConfig, tier: str, budget: int, e: int, text_a_frame: float = 0.0) -> int:
    """Frames whose state takes at most so many bytes. text_a_frame: tokens of text between them, for each."""

    def size(frames: int) -> int:
        return state_bytes(model, tier, frames, round(frames * text_a_frame), e)

    return max(bisect_right(range(1 << 24), budget, key=size) - 1, 0)


def check_budget(model: ModelConfig, tier: str, frames: int, text: int, e: int, budget: int) -> None:
    """TooLongError, before any frame is decoded, with how many frames would fit."""
    needed = state_bytes(model, tier, frames, text, e)
    if needed <= budget:
        return
    fit = frames_within(model, tier, budget, e, text / max(frames, 1))
    others = (
        ""
        if tier == "features"
        else f" or keep features alone ({state_bytes(model, 'features', frames, 0, e) / 1e6:,.1f} MB; --tier features)"
    )
    advice = f"take fewer frames (data.frames.max_frames={fit})" if fit else "no frame fits: give more"
    raise TooLongError(
        f"the state of {frames:,} frames takes {needed / 1e6:,.1f} MB, and {budget / 1e6:,.1f} MB are allowed "
        f"(--max-bytes): {advice}{others}"
    )
