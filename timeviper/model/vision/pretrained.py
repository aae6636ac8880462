"""Encoders by transformers: what a file of one family (`siglip.py`, `dinov2.py`) need not say again.

transformers takes seconds to import, so it is imported when a model is built or read, not before.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from timeviper.config import TowerConfig
from timeviper.model.vision.tower import Tower, blocks_needed
from timeviper.quiet import without_torchao_s_notes


class Pretrained(Tower):
    """An encoder of transformers, cut after the block whose output is the feature.

    Its parameters depend on the config alone, never on the folder in `cfg.weights`.
    """

    built_empty = True  # the modules inside draw nothing when they are made
    model_types: Mapping[str, tuple[str, str]]
    """By the `model_type` of a `config.json`: the classes of model and config in transformers."""
    final_norm: str
    """Name of the norm after the last block, which features never pass through."""
    elsewhere: tuple[str, ...] = ("text_model.", "logit_scale", "logit_bias", "vision_model.head.", "head.")
    """How tensors begin that a checkpoint may hold or lack: a text half, a pooling head."""

    def __init__(self, cfg: TowerConfig) -> None:
        super().__init__(cfg)
        self.prefix = self.extra_tokens(cfg)
        model_class, _ = self.hub_classes(self.model_type(cfg))
        with torch.device("meta"):  # transformers' own initialisation would only be overwritten
            self.encoder = self.cut(model_class(self.hub_config(cfg)))
        self.to_empty(device=torch.get_default_device())
        self.reset_parameters()
        self.reset_buffers()

    @torch.no_grad()
    def reset_buffers(self) -> None:
        """What no checkpoint holds and no generator draws; to be called after `to_empty`."""
        for ids in self.encoder.buffers():  # position ids
            ids.copy_(torch.arange(ids.numel(), device=ids.device).view_as(ids))

    def features(self, pixels: Tensor) -> Tensor:
        return self.encoder(pixel_values=pixels).last_hidden_state[:, self.prefix :]  # class and registers come first

    # ---- what a family says ---------------------------------------------------------------------------------

    @classmethod
    def model_type(cls, cfg: TowerConfig) -> str:
        """The one of `model_types` that a config asks for."""
        return next(iter(cls.model_types))

    @classmethod
    def own_keys(cls, cfg: TowerConfig) -> dict[str, Any]:
        """Keys of transformers' config beyond those that all families share."""
        raise NotImplementedError

    @classmethod
    def compared(cls, cfg: TowerConfig) -> tuple[str, ...]:
        """Those of them in which weights must agree with the config."""
        raise NotImplementedError

    @classmethod
    def cut(cls, model: Any) -> Any:
        """Remove what features never pass through."""
        setattr(model, cls.final_norm, nn.Identity())
        return model

    @classmethod
    def antialias(cls, cfg: TowerConfig) -> bool:
        """How the encoder's authors resized its positions."""
        return False

    # ---- weights and settings of others ---------------------------------------------------------------------

    @classmethod
    def hub_classes(cls, model_type: str) -> tuple[Any, Any]:
        """The classes of model and config in transformers."""
        model, config = cls.model_types[model_type]
        with without_torchao_s_notes():
            transformers = import_module("transformers")
            return getattr(transformers, model), getattr(transformers, config)

    @classmethod
    def hub_config(cls, cfg: TowerConfig) -> Any:
        """The config of transformers for the part of the encoder that is needed."""
        _, config_class = cls.hub_classes(cls.model_type(cfg))
        return config_class(
            hidden_size=cfg.width,
            num_hidden_layers=blocks_needed(cfg),
            num_attention_heads=cfg.heads,
            image_size=cfg.image_size,
            patch_size=cfg.patch_size,
            attn_implementation="sdpa",
            **cls.own_keys(cfg),
        )

    @classmethod
    def load_weights(cls, cfg: TowerConfig) -> dict[str, Tensor]:
        """Only safetensors are read. A position table of another image size is resized (bicubic).

        ValueError: the folder is missing, or holds another model than the config describes.
        """
        folder = Path(cfg.weights)
        if not (folder / "config.json").is_file():
            raise ValueError(f"weights: {folder} has no config.json; give a local folder in Hugging Face layout")
        model_class, config_class = cls.hub_classes(cls.model_type(cfg))
        found = config_class.from_pretrained(folder)
        wanted = cls.hub_config(cfg).to_dict()
        names = ("hidden_size", "num_attention_heads", "patch_size", "hidden_act", "layer_norm_eps", *cls.compared(cfg))
        wrong = [f"{k} is {getattr(found, k)}, not {wanted[k]}" for k in names if getattr(found, k) != wanted[k]]
        if found.num_hidden_layers != cfg.layers:
            wrong.append(f"num_hidden_layers is {found.num_hidden_layers}, not {cfg.layers}")
        if wrong:
            raise ValueError(f"weights: {folder} is not the encoder that the config describes: {'; '.join(wrong)}")
        found.num_hidden_layers = blocks_needed(cfg)
        found.vision_use_head = False  # SigLIP's pooling head
        options: dict[str, Any] = dict(dtype=torch.float32, local_files_only=True, use_safetensors=True)
        model, info = model_class.from_pretrained(folder, config=found, output_loading_info=True, **options)
        if info["missing_keys"]:
            raise ValueError(f"weights: {folder} lacks {sorted(info['missing_keys'])[:4]}")
        state = {f"encoder.{name}": p for name, p in cls.cut(model).state_dict().items()}
        side, antialias = cfg.image_size // cfg.patch_size, cls.antialias(cfg)
        tables = {name for name in state if "position_embedding" in name}
        return {n: _resize_positions(p, side, antialias) if n in tables else p for n, p in state.items()}

    @classmethod
    def read(cls, found: Any, model_type: str) -> dict[str, Any]:
        """The settings of `TowerConfig` beyond those that all families share, from transformers' config.

        Raises ValueError for an encoder that cannot be built here.
        """
        raise NotImplementedError


def _resize_positions(table: Tensor, side: int, antialias: bool) -> Tensor:
    """Position table `[..., P (+1 for the class token), C]` -> the same for side x side patches."""
    rows = table.flatten(0, -2)  # [P (+1), C]
    old = int(rows.shape[0] ** 0.5)
    lead = rows.shape[0] - old * old
    if old == side:
        return table
    grid = rows[lead:].T.view(1, -1, old, old)  # [1, C, old, old]
    grid = nnf.interpolate(grid, (side, side), mode="bicubic", antialias=antialias).flatten(2)[0].T  # [side * side, C]
    return torch.cat([rows[:lead], grid]).view(*table.shape[:-2], -1, table.shape[-1])  # [..., side * side (+1), C]
