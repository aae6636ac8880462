"""What takes the place of samples that turn out to be unreadable: chosen beforehand, the same in every run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from timeviper.config import FramesConfig
from timeviper.datamodules.cost import CostModel, Item
from timeviper.datamodules.source import Source

SPARES = 2  # for each unit ...
TRIES = 8  # ... from this many candidates


def chosen(
    source: Source, rows: Sequence[int], items: Sequence[Item], cost: CostModel, frames: FramesConfig
) -> Iterator[tuple[Item, ...]]:
    """The spares of some items of a source, whose units are those of `rows`: all together, for some 30 us an item."""
    keys = [item.unit.key for item in items]
    tries = [source.stand_ins(key, TRIES) for key in keys]
    measured = cost.measure(source, np.concatenate(tries), frames)
    sizes = np.stack(measured, 1).reshape(-1, TRIES, 2).tolist()
    costs = cost.of(*measured)[1].reshape(-1, TRIES).tolist()
    fitting: list[list[tuple[int, list[int]]]] = []
    for row, item, those in zip(rows, items, zip(tries, sizes, costs)):
        fitting.append([(i, size) for i, size, each in zip(*those) if each <= item.cost and i != row])

    def made(of: Sequence[tuple[int, list[int]]]) -> list[Item]:
        return cost.items(source.planned(np.array([i for i, _ in of], np.int64)), frames, [size for _, size in of])

    every = iter(made([one for some in fitting for one in some[:SPARES]]))
    for key, some in zip(keys, fitting):
        found = [*islice(every, len(some[:SPARES]))]
        if any(spare.unit.key == key for spare in found):  # there are two of this name; neither stands in for the other
            found = made([one for one in some if source.key(one[0]) != key][:SPARES])
        yield tuple(found)
