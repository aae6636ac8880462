"""The encoder of a config."""

from __future__ import annotations

from timeviper.config import TowerConfig
from timeviper.model.vision.tower import Tower
from timeviper.model.vision.vit import ViT


def build_tower(cfg: TowerConfig) -> Tower:
    """The encoder of a config: with the weights of `cfg.weights` where given, else random.

    On the meta device nothing is loaded (`initialize.py` does it).
    """
    if cfg.family == "vit":
        return ViT(cfg)
    from timeviper.model.vision import pretrained  # transformers takes seconds to import: only where needed

    tower = pretrained.Pretrained(cfg)
    if cfg.weights and not next(tower.parameters()).is_meta:
        tower.load_state_dict(pretrained.load_weights(cfg))
    return tower
