"""Units into the packs of a step: each goes to the pack with the least work that has room for it."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field

PATIENCE = 8  # units a pack that may find no room anywhere before the packs of a step count as full


@dataclass
class Filled:
    """What became of the units of a queue, by their numbers in it."""

    packs: list[list[int]]
    too_long: list[int] = field(default_factory=list)
    """What no pack can hold."""
    left: list[int] = field(default_factory=list)
    """What found no room."""
    seen: int = 0
    """Units of the queue that were looked at; those behind are for the next step, too."""
    ended: bool = False
    """Whether the queue did not go on."""


def fill(
    costs: list[float],
    work: list[float],
    packs: int,
    limit: float,
    more: Callable[[], bool],
    refuse: Callable[[int], object],
) -> Filled:
    """Fill `packs` packs of `limit` tokens with units that cost `costs` and are `work`.

    more: makes both lists longer, or returns False where nothing is left. refuse: told of each unit that no pack can
    hold. A microsecond a unit: packs stand in order of their work, so that the first ones are looked at only.
    """
    found = Filled([[] for _ in range(packs)])
    room, most = [limit] * packs, limit  # of no pack is there more room than `most`
    least = [(0.0, pack) for pack in range(packs)]
    patience = PATIENCE * packs
    number, left = 0, found.left
    while len(left) < patience:
        if number == len(costs) and not more():
            found.ended = True
            break
        cost = costs[number]
        if cost > most:
            if cost > limit:
                found.too_long.append(number)
                refuse(number)
            else:
                left.append(number)
        else:
            for place, (done, pack) in enumerate(least):
                if cost <= room[pack]:
                    del least[place]
                    insort(least, (done + work[number], pack))
                    room[pack] -= cost
                    found.packs[pack].append(number)
                    break
            else:
                most = max(room)
                left.append(number)
        number += 1
    found.seen = number
    return found
