"""A tower family of one's own: CLIP as LAION trained it. In the package this would be `timeviper/model/vision/clip.py`,
its last line `TOWER = CLIP`, and the facts an entry (and the name) in `timeviper/config/model.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timeviper.config import TowerConfig
from timeviper.config.model import TowerFacts
from timeviper.model.vision.pretrained import Pretrained

FACTS = TowerFacts()  # no registers, patches that cover the image, no halving stem


class CLIP(Pretrained):
    model_types: Mapping[str, tuple[str, str]] = {
        "clip": ("CLIPVisionModel", "CLIPVisionConfig"),
        "clip_vision_model": ("CLIPVisionModel", "CLIPVisionConfig"),
    }
    final_norm = "post_layernorm"
    elsewhere = ("text_model.", "logit_scale", "text_projection.", "visual_projection.")
    normalisation = ((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758))

    @staticmethod
    def extra_tokens(cfg: TowerConfig) -> int:
        return 1  # the class token

    @staticmethod
    def stem_saved(cfg: TowerConfig, a: int) -> int:
        tokens = cfg.patches + 1
        return a * tokens * cfg.width + 2 * 4 * tokens  # what the norm before the first block reads, and its statistics

    @classmethod
    def own_keys(cls, cfg: TowerConfig) -> dict[str, Any]:
        return dict(intermediate_size=cfg.mlp_width, hidden_act="gelu")

    @classmethod
    def compared(cls, cfg: TowerConfig) -> tuple[str, ...]:
        return ("intermediate_size",)

    @classmethod
    def read(cls, found: Any, model_type: str) -> dict[str, Any]:
        if found.hidden_act != "gelu":
            raise ValueError(f"hidden_act is {found.hidden_act!r}; only 'gelu' is computed")
        return dict(mlp_width=found.intermediate_size)
