"""The encoder of a config."""

from __future__ import annotations

from importlib import import_module

from timeviper.config import TowerConfig
from timeviper.model.vision.tower import Tower

CLASSES: dict[str, type[Tower]] = {}


def tower_class(family: str) -> type[Tower]:
    """`TOWER` of the file beside this one that has the family's name."""
    if family not in CLASSES:
        CLASSES[family] = import_module(f"{__package__}.{family}").TOWER
    return CLASSES[family]


def build_tower(cfg: TowerConfig) -> Tower:
    """The encoder of a config: with the weights of `cfg.weights` where given, else random.

    On the meta device nothing is loaded (`initialize.py` does it).
    """
    tower = tower_class(cfg.family)(cfg)
    if cfg.weights and not next(tower.parameters()).is_meta:
        tower.load_state_dict(tower.load_weights(cfg))
    return tower
