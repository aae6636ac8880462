"""DINOv2, with or without registers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timeviper.config import TowerConfig
from timeviper.model.vision.pretrained import Pretrained
from timeviper.model.vision.tower import IMAGENET


class DINOv2(Pretrained):
    model_types: Mapping[str, tuple[str, str]] = {
        "dinov2": ("Dinov2Model", "Dinov2Config"),
        "dinov2_with_registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig"),
    }
    final_norm = "layernorm"
    normalisation = IMAGENET
    layer_scale = True

    @staticmethod
    def extra_tokens(cfg: TowerConfig) -> int:
        return 1 + cfg.registers  # the class token

    @classmethod
    def model_type(cls, cfg: TowerConfig) -> str:
        return "dinov2_with_registers" if cfg.registers else "dinov2"

    @classmethod
    def own_keys(cls, cfg: TowerConfig) -> dict[str, Any]:
        if cfg.mlp_width % cfg.width:
            raise ValueError(
                f"a dinov2 tower needs an mlp_width that is a multiple of width, got mlp_width={cfg.mlp_width}, "
                f"width={cfg.width}"
            )
        registers = {"num_register_tokens": cfg.registers} if cfg.registers else {}
        return dict(mlp_ratio=cfg.mlp_width // cfg.width, **registers)

    @classmethod
    def compared(cls, cfg: TowerConfig) -> tuple[str, ...]:
        registers = ("num_register_tokens",) if cfg.registers else ()
        return ("mlp_ratio", "use_swiglu_ffn", "qkv_bias", *registers)

    @classmethod
    def cut(cls, model: Any) -> Any:
        model.embeddings.mask_token = None  # of pretraining
        return super().cut(model)

    @classmethod
    def antialias(cls, cfg: TowerConfig) -> bool:
        return cfg.registers > 0  # as the encoders with registers were trained, and only these

    @classmethod
    def read(cls, found: Any, model_type: str) -> dict[str, Any]:
        if found.use_swiglu_ffn:
            raise ValueError("use_swiglu_ffn is true (DINOv2 giant); only the plain MLP is supported")
        registers = found.num_register_tokens if model_type == "dinov2_with_registers" else 0
        return dict(mlp_width=int(found.hidden_size * found.mlp_ratio), registers=registers)


TOWER = DINOv2
