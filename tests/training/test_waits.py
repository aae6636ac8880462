"""A training step tells the device what to do and does not wait for it: counted on the meta device.

What does wait stands outside of it, once a step: the guard reads loss and norm before the optimizer may use the
gradients, and of several ranks the checkpoints' callback reads whether one of them was asked to stop.
"""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from model_helpers import GUIDED, PUBLISHED
from viper_helpers import config, sample
from waits import counted_waits

from timeviper.config import ModelConfig
from timeviper.model.tags import TagModel
from timeviper.model.viper import TimeViper
from timeviper.pack import Pack
from timeviper.training.step import accumulate

META = torch.device("meta")


def packs() -> list[Pack]:
    """Videos and text in one pack, of like lengths and of others; text alone; one short sequence."""
    shapes = (("2c12v3i4a", 3), ("2c12v2i4a", 3), ("3c2a", 0), ("1c4v2i1a", 1), ("2c8v2i4v3i5a", 3))
    parts = [sample(pattern, frames, seed=i) for i, (pattern, frames) in enumerate(shapes)]
    long = sample(f"2c{4 * 140}v3i4a", 140)
    return [Pack.join(parts), Pack.join([long, parts[0]]), parts[2], Pack.join(parts[3:])]


def step(cfg: ModelConfig, kind: type = TimeViper, frozen: tuple[str, ...] = ("towers",)) -> list[str]:
    """What makes the host wait in one step: forward, backward, norm of the gradient."""
    with META:
        model = kind(cfg)
    for name, p in model.named_parameters():
        p.requires_grad_(not name.startswith(frozen))
    # What sharding adds.
    model.set_requires_gradient_sync, model.reduce_every_pack = lambda _: None, True
    labels = torch.full((), 9.0, device=META)
    with counted_waits() as waits:
        accumulate(cast(Any, model), packs(), labels, 1, META)
        norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0)
    assert norm.is_meta
    return waits


@pytest.mark.parametrize("frozen", [("towers",), ("decoder", "projectors"), ("nothing",)])
@pytest.mark.parametrize("stages", [{}, PUBLISHED, GUIDED], ids=["off", "published", "guided"])
def test_a_step_does_not_wait_for_the_device(stages: dict, frozen: tuple[str, ...]) -> None:
    assert step(config(stages), frozen=frozen) == []


def test_a_step_of_the_tower_alone_does_not_wait_for_the_device() -> None:
    assert step(config({}), TagModel, frozen=("nothing",)) == []


def test_waits_are_seen() -> None:
    here = torch.arange(3)
    with counted_waits() as waits:
        there = here.to(META, non_blocking=True)
        assert waits == []
        here.to(META)
        there.copy_(here)
        torch.tensor([1, 2], device=META)
        there[torch.tensor([0, 1])]
        for ask in (lambda: there.sum().item(), lambda: there[there > 1], lambda: there.cpu(), lambda: bool(there[0])):
            with pytest.raises((RuntimeError, NotImplementedError)):
                ask()
    assert len(waits) == 8, waits
