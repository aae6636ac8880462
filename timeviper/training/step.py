"""Forward and backward of one rank's packs: the part of a training step that can be repeated without a trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from timeviper.pack import Pack
from timeviper.parallel import ShardedModel


def seed_step(seed: int, step: int, rank: int, world: int) -> None:
    """Set torch's generators, which dropout in adapters draws from, as a function of the step.

    So a run that continues, the guard's second look and a replay draw what the step drew.
    """
    torch.manual_seed(seed + 7919 * (step * world + rank))


def accumulate(
    model: ShardedModel,
    packs: Sequence[Pack],
    num_labels: Tensor,
    world: int,
    device: torch.device,
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> tuple[Tensor, Tensor]:
    """Add the gradient of `sum of losses / num_labels` over the packs of all ranks, distillation included.

    num_labels: label tokens of the whole step. Returns this rank's summed loss, that of the labels alone, and number of
    right labels, float32 scalars.
    """
    loss_sum, correct = num_labels.new_zeros(()), num_labels.new_zeros(())
    for i, pack in enumerate(packs):
        model.set_requires_gradient_sync(model.reduce_every_pack or i == len(packs) - 1)
        out = model(pack.to(device))
        # Gradients are averaged over ranks; times world makes that the sum.
        total = out.loss_sum if out.divergence_sum is None else out.loss_sum + out.divergence_sum
        backward(total * (world / num_labels))
        loss_sum += out.loss_sum.detach()
        correct += out.correct.sum()
    return loss_sum, correct
