"""Vision encoders from local Hugging Face folders: SigLIP (also SigLIP2 of fixed size) and DINOv2.

An imported encoder is a Hugging Face folder again, of the vision part alone: `model.towers.<name>.weights` takes
it, and so does any program that reads such folders.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from timeviper.config import TowerConfig

MODEL_TYPES = ("siglip", "siglip_vision_model", "dinov2", "dinov2_with_registers")
# Of a checkpoint that also holds a text encoder; the pooling head is not used here.
_NOT_VISION = ("text_model.", "logit_scale", "logit_bias", "vision_model.head.", "head.")


def tower_config(raw: dict[str, Any], where: str) -> TowerConfig:
    """The encoder that a `config.json` describes. Raises ValueError for one that cannot be built here."""
    kind = raw["model_type"]
    if kind not in MODEL_TYPES:
        raise ValueError(f"{where}: model_type {kind!r} is no encoder known here ({', '.join(MODEL_TYPES)})")
    vision = _config_class(kind).from_dict(raw.get("vision_config", raw) if kind == "siglip" else raw)
    family, registers = ("siglip", 0) if kind.startswith("siglip") else ("dinov2", 0)
    if kind == "dinov2_with_registers":
        registers = vision.num_register_tokens
    if getattr(vision, "use_swiglu_ffn", False):
        raise ValueError(f"{where}: use_swiglu_ffn is true (DINOv2 giant); only the plain MLP is supported")
    width = vision.hidden_size
    return TowerConfig(
        family=family,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        width=width,
        layers=vision.num_hidden_layers,
        heads=vision.num_attention_heads,
        mlp_width=vision.intermediate_size if family == "siglip" else int(width * vision.mlp_ratio),
        registers=registers,
    )


def copy_tower(raw: dict[str, Any], src: Path, dst: Path) -> TowerConfig:
    """Write the vision part of `src` to `dst`, tensors as stored.

    Raises ValueError with every tensor that is missing, unexpected or of another shape.
    """
    cfg = tower_config(raw, str(src / "config.json"))
    options: dict[str, Any] = dict(dtype="auto", local_files_only=True, use_safetensors=True)
    options |= dict(output_loading_info=True, ignore_mismatched_sizes=True)
    model, info = _model_class(raw["model_type"]).from_pretrained(src, **options)
    problems = [f"missing: {name}" for name in sorted(info["missing_keys"]) if not name.startswith(_NOT_VISION)]
    problems += [f"unexpected: {n}" for n in sorted(info["unexpected_keys"]) if not n.startswith(_NOT_VISION)]
    for name, stored, needed in sorted(info["mismatched_keys"]):
        problems.append(f"another shape: {name} is {list(stored)}, the config asks for {list(needed)}")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            problems.append(f"not finite: {name} holds NaN or infinity; the file is damaged")
    if problems:
        raise ValueError("\n  ".join([f"{src} does not hold the encoder its config describes:", *problems]))
    model.save_pretrained(dst)
    return cfg


def _config_class(kind: str) -> Any:
    import transformers  # takes seconds: only where needed

    names = {"dinov2": "Dinov2Config", "dinov2_with_registers": "Dinov2WithRegistersConfig"}
    return getattr(transformers, names.get(kind, "SiglipVisionConfig"))


def _model_class(kind: str) -> Any:
    import transformers

    names = {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"}
    return getattr(transformers, names.get(kind, "SiglipVisionModel"))
