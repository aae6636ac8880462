"""SigLIP, also SigLIP2 of fixed size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timeviper.config import TowerConfig
from timeviper.model.vision.pretrained import Pretrained


class SigLIP(Pretrained):
    model_types: Mapping[str, tuple[str, str]] = {
        "siglip": ("SiglipVisionModel", "SiglipVisionConfig"),  # with a text half, which stays behind
        "siglip_vision_model": ("SiglipVisionModel", "SiglipVisionConfig"),
    }
    final_norm = "post_layernorm"

    @classmethod
    def own_keys(cls, cfg: TowerConfig) -> dict[str, Any]:
        return dict(intermediate_size=cfg.mlp_width, vision_use_head=False)

    @classmethod
    def compared(cls, cfg: TowerConfig) -> tuple[str, ...]:
        return ("intermediate_size",)

    @classmethod
    def read(cls, found: Any, model_type: str) -> dict[str, Any]:
        return dict(mlp_width=found.intermediate_size)


TOWER = SigLIP
