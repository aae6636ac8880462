"""Held-out samples that stay the same, and a way to run the model on them that leaves no trace in training."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from timeviper.datamodules.datamodule import VideoDataModule
from timeviper.datamodules.plan import StepPlan, numbered
from timeviper.datamodules.reader import PackReader
from timeviper.pack import Pack

log = logging.getLogger("timeviper")

SPARES = 2  # samples that may stand in for one that cannot be read


def fixed_plans(data: VideoDataModule, count: int) -> list[StepPlan]:
    """`count` held-out samples with frames, one a plan, the same in every run: the first of a fixed shuffle.

    Samples that fit into a pack without any compression come before longer ones, and these by rising length, so that
    a pass without TransV needs no more memory than a training step where that is possible. Fewer, if there are fewer.
    """
    settings, total = data.recipe.data, sum(map(len, data.val_sources.values()))
    fitting, longer = [], []
    for unit in numbered(data.val_sources, np.random.default_rng(0).permutation(total).tolist()):
        if (item := data.cost.item(unit, settings.frames)).num_frames:
            (fitting if item.tokens <= settings.tokens_per_pack else longer).append(item)
        if len(fitting) == count * (1 + SPARES):  # no more of them can be chosen
            break
    items = [*fitting, *sorted(longer, key=lambda item: item.tokens)]
    chosen = items[:count]
    spares = [items[i + count :: count][:SPARES] for i in range(len(chosen))]
    filled = (replace(item, spares=tuple(others)) for item, others in zip(chosen, spares))
    return [StepPlan(i, settings.frames, ((item,),)) for i, item in enumerate(filled)]


def read_share(reader: PackReader, plans: list[StepPlan], rank: int, world: int) -> Iterator[Pack]:
    """This rank's samples, one a pack; as many packs on every rank, with a blank one where there is no sample.

    Read when they are asked for, each time again: an hour of video is not kept for the next time.
    As in training, a spare stands in for what cannot be read, and where there is none, a blank pack.
    """
    for first in range(0, len(plans), world):
        if first + rank >= len(plans):
            yield Pack.blank(reader.form.image_size)
            continue
        batch = reader[plans[first + rank]]
        for incident in batch.skipped:  # an error: of every rank it is heard
            log.error("held-out sample skipped %s: %s", incident.key, incident.reason)
        yield batch.packs[0]


@contextmanager
def apart_from_training(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode without gradients; afterwards generators and modes are as before, and no weight is left gathered.

    All ranks must run the model equally often within it.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        if isinstance(model, FSDPModule):
            model.reshard()  # the root stays gathered after a forward pass, waiting for a backward pass
