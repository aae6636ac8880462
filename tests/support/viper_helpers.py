"""A small TimeViper and packs for it, for tests of whatever takes a model as a whole."""

from __future__ import annotations

import torch
from model_helpers import HYBRID, PUBLISHED, kinds

from timeviper.config import ModelConfig, TowerConfig, TransVConfig
from timeviper.model.viper import TimeViper
from timeviper.pack import IGNORE, Kind, Pack

TOWER = TowerConfig(
    family="vit", image_size=16, patch_size=4, width=16, layers=2, heads=2, mlp_width=32, feature_layer=-1, tokens=4
)


T = TOWER.tokens


def config(stages=PUBLISHED, **towers: TowerConfig) -> ModelConfig:
    return ModelConfig(
        preset="", towers=dict(towers or {"main": TOWER}), decoder=HYBRID, transv=TransVConfig(stages=dict(stages))
    )


def make_model(cfg: ModelConfig | None = None, kind: type = TimeViper):
    """In float64, with gains, biases and gates away from where they start."""
    torch.manual_seed(0)
    model = kind(cfg or config()).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.add_(torch.randn_like(p) * 0.3 if not name.endswith("A_log") else torch.rand_like(p))
    return model


def sample(pattern: str, num_frames: int, seed: int = 0) -> Pack:
    """One sequence, such as `"2c8v3i2a"`; every answer token is supervised."""
    g = torch.Generator().manual_seed(seed)
    kind = kinds(pattern)
    ids = torch.randint(1, HYBRID.vocab_size, kind.shape, generator=g).masked_fill(kind == Kind.VISION, 0)
    labels = torch.full_like(ids, IGNORE)
    answer = torch.nonzero(kind == Kind.ANSWER).squeeze(1)
    labels[answer - 1] = ids[answer]
    return Pack(
        ids=ids,
        labels=labels,
        kind=kind,
        lengths=[len(ids)],
        frames=torch.randint(0, 256, (num_frames, 3, 16, 16), dtype=torch.uint8, generator=g),
        frame_times=torch.arange(num_frames, dtype=torch.float64),
        frame_counts=[num_frames],
        keys=[f"{pattern}#{seed}"],
    )


def samples() -> list[Pack]:
    """Videos, an image, text only, and two media in one prompt."""
    return [
        sample("2c12v3i4a", 3, 1),
        sample("3c2a", 0, 2),
        sample("1c4v2i1a", 1, 3),
        sample("2c8v2i4v3i5a", 3, 4),
    ]
