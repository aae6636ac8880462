"""SigLIP (also SigLIP2 of fixed size) and DINOv2 (with or without registers), by transformers.

Importing this file imports transformers; `vision.build_tower` does so only for these families.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from timeviper.config import TowerConfig
from timeviper.model.vision.tower import IMAGENET, Tower, blocks_needed


class Pretrained(Tower):
    """An encoder of transformers, cut after the block whose output is the feature.

    Its parameters depend on the config alone, never on the folder in `cfg.weights`.
    """

    built_empty = True  # the modules inside draw nothing when they are made

    def __init__(self, cfg: TowerConfig) -> None:
        super().__init__(cfg)
        self.prefix = 0  # class and register tokens, before the patches
        if cfg.family == "dinov2":
            self.prefix = 1 + cfg.registers
            self.normalisation = IMAGENET
        with torch.device("meta"):  # transformers' own initialisation would only be overwritten
            self.encoder = _cut(_classes(cfg)[0](_hf_config(cfg)))
        self.to_empty(device=torch.get_default_device())
        self.reset_parameters()
        self.reset_buffers()

    @torch.no_grad()
    def reset_buffers(self) -> None:
        """What no checkpoint holds and no generator draws; to be called after `to_empty`."""
        for ids in self.encoder.buffers():  # SigLIP's position ids
            ids.copy_(torch.arange(ids.numel(), device=ids.device).view_as(ids))

    def features(self, pixels: Tensor) -> Tensor:
        return self.encoder(pixel_values=pixels).last_hidden_state[:, self.prefix :]


def load_weights(cfg: TowerConfig) -> dict[str, Tensor]:
    """State dict of `Pretrained(cfg)` from the Hugging Face folder `cfg.weights`, float32, on the CPU.

    Only safetensors are read. A position table of another image size is resized (bicubic).
    ValueError: the folder is missing, or holds another model than the config describes.
    """
    folder = Path(cfg.weights)
    if not (folder / "config.json").is_file():
        raise ValueError(f"weights: {folder} has no config.json; give a local folder in Hugging Face layout")
    model_class, config_class = _classes(cfg)
    found = config_class.from_pretrained(folder)
    wanted = _hf_config(cfg).to_dict()
    names = ("hidden_size", "num_attention_heads", "patch_size", "hidden_act", "layer_norm_eps")
    names += ("intermediate_size",) if cfg.family == "siglip" else ("mlp_ratio", "use_swiglu_ffn", "qkv_bias")
    names += ("num_register_tokens",) if cfg.registers else ()
    wrong = [f"{k} is {getattr(found, k)}, not {wanted[k]}" for k in names if getattr(found, k) != wanted[k]]
    if found.num_hidden_layers != cfg.layers:
        wrong.append(f"num_hidden_layers is {found.num_hidden_layers}, not {cfg.layers}")
    if wrong:
        raise ValueError(f"weights: {folder} is not the encoder that the config describes: {'; '.join(wrong)}")
    found.num_hidden_layers = blocks_needed(cfg)
    found.vision_use_head = False
    options: dict[str, Any] = dict(dtype=torch.float32, local_files_only=True, use_safetensors=True)
    model, info = model_class.from_pretrained(folder, config=found, output_loading_info=True, **options)
    if info["missing_keys"]:
        raise ValueError(f"weights: {folder} lacks {sorted(info['missing_keys'])[:4]}")
    side = cfg.image_size // cfg.patch_size
    return {
        f"encoder.{name}": _resize_positions(p, side, antialias=cfg.registers > 0)
        if "position_embedding" in name
        else p
        for name, p in _cut(model).state_dict().items()
    }


def _classes(cfg: TowerConfig) -> tuple[Any, Any]:
    if cfg.family == "siglip":
        return SiglipVisionModel, SiglipVisionConfig
    if cfg.registers:
        return Dinov2WithRegistersModel, Dinov2WithRegistersConfig
    return Dinov2Model, Dinov2Config


def _hf_config(cfg: TowerConfig) -> Any:
    """The config of transformers for the part of the encoder that is needed."""
    shared: dict[str, Any] = dict(
        hidden_size=cfg.width,
        num_hidden_layers=blocks_needed(cfg),
        num_attention_heads=cfg.heads,
        image_size=cfg.image_size,
        patch_size=cfg.patch_size,
        attn_implementation="sdpa",
    )
    _, config_class = _classes(cfg)
    if cfg.family == "siglip":
        return config_class(**shared, intermediate_size=cfg.mlp_width, vision_use_head=False)
    if cfg.mlp_width % cfg.width:
        raise ValueError(
            f"a dinov2 tower needs an mlp_width that is a multiple of width, got mlp_width={cfg.mlp_width}, "
            f"width={cfg.width}"
        )
    registers = {"num_register_tokens": cfg.registers} if cfg.registers else {}
    return config_class(**shared, mlp_ratio=cfg.mlp_width // cfg.width, **registers)


def _cut(model: Any) -> Any:
    """Remove what features never pass through: the final norm and the mask token of pretraining."""
    for name in ("post_layernorm", "layernorm"):
        if hasattr(model, name):
            setattr(model, name, nn.Identity())
    if hasattr(model.embeddings, "mask_token"):
        model.embeddings.mask_token = None
    return model


def _resize_positions(table: Tensor, side: int, antialias: bool) -> Tensor:
    """Position table `[..., P (+1 for the class token), C]` -> the same for side x side patches.

    With antialiasing for DINOv2 with registers only, as these encoders were trained.
    """
    rows = table.flatten(0, -2)
    old = int(rows.shape[0] ** 0.5)
    lead = rows.shape[0] - old * old
    if old == side:
        return table
    grid = rows[lead:].T.view(1, -1, old, old)
    grid = nnf.interpolate(grid, (side, side), mode="bicubic", antialias=antialias).flatten(2)[0].T
    return torch.cat([rows[:lead], grid]).view(*table.shape[:-2], -1, table.shape[-1])
