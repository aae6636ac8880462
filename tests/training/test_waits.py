"""A training step tells the device what to do and does not wait for it: counted on the meta device.

What does wait stands outside of it, once a step: the guard reads loss and norm before the optimizer may use the
gradients, and of several ranks the checkpoints' callback reads whether one of them was asked to stop.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from model_helpers import GUIDED, PUBLISHED
from torch import Tensor
from viper_helpers import config, sample
from waits import counted_waits

from timeviper.config import ModelConfig
from timeviper.kernels import dispatch
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


def step(
    cfg: ModelConfig, kind: type = TimeViper, frozen: tuple[str, ...] = ("towers",), wide: bool = False
) -> list[str]:
    """What makes the host wait in one step: forward, backward, norm of the gradient."""
    with META:
        model = kind(cfg).double() if wide else kind(cfg)
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


def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int, **options: Any) -> Any:
    y = x * dt[..., None] * A[:, None] + (B.sum() + C.sum())
    final = x.new_zeros(1, *x.shape[2:], B.shape[-1]) + x.sum()
    return (y, final) if options.get("return_final_states") else y


# No vendor's arithmetic, but the shapes and the graph.
VENDORS = {
    "mamba_chunk_scan_combined": scan,
    "causal_conv1d_fn": lambda x, weight, bias, seq_idx, activation: x * weight[:, :1] + bias[:, None],
    "rmsnorm_fn": lambda x, weight, bias, z, **_: x * weight * (1 if z is None else z),
    "varlen_attn": lambda q, k, v, *_, **__: q + (k.sum() + v.sum()),
    "_flash_attention_forward": lambda q, *_, **__: (q * 1, q.new_zeros(q.shape[1], len(q)), None),
    "_flash_attention_backward": lambda dy, q, k, v, *_, **__: (q * 1, k * 1, v * 1),
}


@pytest.mark.parametrize("room", [1 << 31, 1500], ids=["whole", "in pieces"])
def test_a_step_with_kernels_of_vendors_does_not_wait_either(room: int) -> None:
    cfg = config(PUBLISHED)
    cfg = replace(cfg, decoder=replace(cfg.decoder, ssm_state=8))  # channels that causal_conv1d takes
    with (
        dispatch.stand_in(VENDORS, room),
        dispatch.use(**dict.fromkeys(("ssd", "conv1d", "attention", "norm"), "vendor")),
    ):
        assert step(cfg, wide=True) == []


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
