"""What a rank does in the tests of the TransV meter; in a module of its own, so that ranks can import it."""

from __future__ import annotations

from typing import cast

import torch
import torch.distributed as dist
from ranks import open_gates, sharded
from viper_helpers import TOWER, sample

from timeviper.callbacks.held_out import apart_from_training
from timeviper.config import Recipe
from timeviper.inspection.transfer import StageSums, Transferred, look_at, stages_of
from timeviper.model.viper import TimeViper
from timeviper.pack import Pack


def shared_out(recipe: Recipe, count: int) -> list[float]:
    """Numbers summed over ranks, each of which looks at its share of `count` samples, filled up with blank packs."""
    model = cast(TimeViper, sharded(recipe))
    open_gates(model)
    patterns = [("2c12v3i4a", 3), ("1c4v2i1a", 1), ("2c8v2i4v3i5a", 3), ("1c16v4i2a", 4), ("3c20v2i2a", 5)][:count]
    packs = [sample(pattern, frames, seed=i) for i, (pattern, frames) in enumerate(patterns)]
    rank, world = dist.get_rank(), dist.get_world_size()
    mine = packs[rank::world]
    mine += [Pack.blank(TOWER.image_size)] * (-(-count // world) - len(mine))
    found = Transferred({s.name: StageSums() for s in stages_of(model.decoder)})
    with apart_from_training(model, torch.device("cpu")):
        for pack in mine:
            look_at(model, pack, found)
    sums = torch.tensor(found.numbers(), dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.tolist()
