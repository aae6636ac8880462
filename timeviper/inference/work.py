"""What an evaluation has to do: questions in groups, and groups dealt to ranks.

Which questions are answered together depends on the questions and the settings alone, never on the number of ranks or
on what was answered before: the same products of the same shapes, so the same answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from timeviper.config import FramesConfig
from timeviper.datamodules.plan import Item, StepPlan

T = TypeVar("T")


def grouped(items: Sequence[Item], frames: FramesConfig, batch: int, tokens: int) -> list[StepPlan]:
    """Groups of at most `batch` questions in packs of at most `tokens`; longer questions each by itself, at the end.

    tokens 0: the packs of a group are one, and no question is long.
    """
    groups: list[list[list[Item]]] = []
    count = room = 0
    for item in items:
        if 0 < tokens < item.tokens:
            continue
        if not groups or count == batch:
            groups.append([])
            count = room = 0
        if not groups[-1] or (tokens and item.tokens > room):
            groups[-1].append([])
            room = tokens
        groups[-1][-1].append(item)
        count, room = count + 1, room - item.tokens
    groups += [[[item]] for item in items if 0 < tokens < item.tokens]
    return [StepPlan(i, frames, tuple(map(tuple, packs))) for i, packs in enumerate(groups)]


def keys(plan: StepPlan) -> list[str]:
    return [item.unit.key for pack in plan.packs for item in pack]


def dealt(tasks: Sequence[T], works: Sequence[float], rank: int, world: int) -> list[T]:
    """The tasks of one rank, in order: the most work goes first, each to whom has the least so far."""
    sums, mine = [0.0] * world, []
    for i in sorted(range(len(tasks)), key=lambda i: -works[i]):
        least = min(range(world), key=sums.__getitem__)
        sums[least] += works[i]
        if least == rank:
            mine.append(i)
    return [tasks[i] for i in sorted(mine)]


def work(plan: StepPlan) -> float:
    return sum(item.work for pack in plan.packs for item in pack)
