"""Hugging Face folders of random models, and damage to them."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from model_helpers import HYBRID, PLAIN, make_decoder
from safetensors.torch import load_file, save_file

from timeviper.config import DecoderConfig, TowerConfig
from timeviper.model.decoder import Decoder
from timeviper.weights.hub.config import hub_config
from timeviper.weights.hub.names import hub_names, hub_shape
from timeviper.weights.tensors import write_tensors

UNUSED = {f.name: f.default for f in fields(DecoderConfig) if f.name.startswith(("ssm_", "chunk_"))}
FAMILIES = {
    "nemotron_h": HYBRID,
    "llama": replace(PLAIN, family="llama", **UNUSED),
    "qwen2": replace(PLAIN, tie_embeddings=True, **UNUSED),
}


def write_hub(folder: Path, cfg: DecoderConfig, **config: Any) -> Decoder:
    """A Hugging Face folder of a random decoder."""
    decoder = make_decoder(cfg).float()
    names = hub_names(cfg)
    tensors = [(names[n], p.view(hub_shape(n, tuple(p.shape)))) for n, p in decoder.state_dict().items()]
    write_tensors(folder, tensors)
    (folder / "config.json").write_text(json.dumps(hub_config(cfg, {}, "float32") | config))
    return decoder


def damage(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace, add or (None) remove tensors, by name with dots as double underscores."""
    state = load_file(folder / "model.safetensors")
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        if tensor is None:
            del state[name]
        else:
            state[name] = tensor
    save_file(state, folder / "model.safetensors")


def write_tower(folder: Path, kind: str) -> TowerConfig:
    """A random encoder of transformers on disk; SigLIP with its text half, as published."""
    import transformers

    shared: dict[str, Any] = dict(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=7
    )
    torch.manual_seed(0)
    if kind == "siglip":
        text = dict(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=30, intermediate_size=40)
        config = transformers.SiglipConfig(text_config=text, vision_config=shared | dict(intermediate_size=40))
        transformers.SiglipModel(config).save_pretrained(folder)
        return TowerConfig("siglip", "", 28, 7, 24, 3, 2, 40, 0, -2, 4)
    if kind == "dinov2":
        config = transformers.Dinov2Config(**shared, mlp_ratio=2)
        transformers.Dinov2Model(config).save_pretrained(folder)
        return TowerConfig("dinov2", "", 28, 7, 24, 3, 2, 48, 0, -2, 4)
    config = transformers.Dinov2WithRegistersConfig(**shared, mlp_ratio=2, num_register_tokens=3)
    transformers.Dinov2WithRegistersModel(config).save_pretrained(folder)
    return TowerConfig("dinov2", "", 28, 7, 24, 3, 2, 48, 3, -2, 4)
