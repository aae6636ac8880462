"""How large a video's state is before the video is read, and how many frames a budget of bytes holds.

With V[i] vision tokens behind stage i, T tokens of text before the last of them and e bytes an element, the boundary of
a decoder takes (the cut stands before segment c)

    each Mamba-2 block before it      4 * H * P * N  +  C * (K - 1) * e
    each attention block behind i     (V[i] + T) * 2 * Hkv * P * e
    each transfer before it           (V[i-1] - V[i]) * 2 * Hkv * P * e      (V[i-1] with `transv.keys: all`)
    the stream that waits             (V[c-1] + T) * (D * e + 5)             with kind and place of each token
"""

from __future__ import annotations

from bisect import bisect_right

from timeviper.config import DecoderConfig, ModelConfig, TransVConfig
from timeviper.config.shape import cut_layout, tokens_per_frame
from timeviper.model.boundary import BESIDE, question_cut, schedule

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


def boundary_bytes(cfg: DecoderConfig, transv: TransVConfig, vision: int, text: int, e: int) -> dict[str, int]:
    """The formula above, by its four lines: `mamba`, `keys`, `dropped` and `waiting`. e: bytes an element, of what the
    model computes in."""
    segments = cut_layout(cfg.layout, transv)
    left = schedule(segments, [vision])
    cut = question_cut(segments, left)
    pair, channels = 2 * cfg.kv_heads * cfg.head_dim * e, cfg.ssm_heads * cfg.ssm_head_dim
    channels += 2 * cfg.ssm_groups * cfg.ssm_state
    ssm = max(e, 4) * cfg.ssm_heads * cfg.ssm_head_dim * cfg.ssm_state
    found = {"mamba": 0, "keys": 0, "dropped": 0, "waiting": 0}
    for i, segment in enumerate(segments[:cut]):
        letters = cfg.layout[segment.blocks.start : segment.blocks.stop]
        found["mamba"] += letters.count("M") * (ssm + channels * (cfg.conv_kernel - 1) * e)
        found["keys"] += letters.count("*") * (left[i][0] + text) * pair
        if i and left[i] != left[i - 1] and segment.stage is not None and segment.stage.has_weights:
            found["dropped"] += (left[i - 1][0] - (0 if transv.keys == "all" else left[i][0])) * pair
    if cut < len(segments):
        found["waiting"] = (left[cut - 1][0] + text) * (cfg.width * e + BESIDE)
    return found
