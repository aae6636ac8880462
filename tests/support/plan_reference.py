"""The plan in its plainest form, one unit after the other from the beginning: what `datamodules/plan.py` must equal."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from timeviper.config.curriculum import Phase, phase_at
from timeviper.datamodules.cost import CostModel, Item
from timeviper.datamodules.plan import Plan
from timeviper.datamodules.source import Source


class Step(NamedTuple):
    packs: list[list[Item]]
    too_long: list[Item]


def epoch(source: Source, seed: int, number: int, window: int) -> list[int]:
    rng = np.random.default_rng([seed, zlib.crc32(source.name.encode()), number])
    shards = np.split(np.arange(len(source)), np.cumsum(source.counts)[:-1])
    order = np.concatenate([shards[i] for i in rng.permutation(len(shards))])
    for start in range(0, len(order), window):
        rng.shuffle(order[start : start + window])
    return order.tolist()


def stream(source: Source, seed: int, window: int, epochs: float | None) -> Iterator[int]:
    left = float("inf") if epochs is None else round(epochs * len(source))
    number = 0
    while left > 0:
        yield from epoch(source, seed, number, window)[: int(min(left, len(source)))]
        left, number = left - len(source), number + 1


def steps(plan: Plan) -> Iterator[Step]:
    """Until every source is used up."""
    data = plan.data
    epochs = {name: data.sources[name].epochs for name in plan.sources}
    streams = {n: stream(s, plan.seed, data.shuffle_window, epochs[n]) for n, s in plan.sources.items()}
    coming = {name: next(rows, None) for name, rows in streams.items()}
    waiting: list[tuple[str, int]] = []
    weights, passes, step = {}, {}, 0
    while True:
        phase, cost = phase_at(step, data, plan.phases), plan.cost.at(step)

        def item(name: str, row: int, cost: CostModel = cost, phase: Phase = phase) -> Item:
            return cost.item(plan.sources[name].planned(np.array([row]))[0], phase.frames)

        active = {n: float(w) for n, w in phase.weights.items() if w > 0}
        if active != weights:
            weights, passes = active, dict.fromkeys(active, 0.0)
        room = [float(data.tokens_per_pack)] * data.packs_per_step
        work = [0.0] * len(room)
        made = Step([[] for _ in room], [])
        left: list[tuple[str, int]] = []
        queue = iter(waiting)
        while len(left) < 8 * len(room):
            if (drawn := next(queue, None)) is None:
                rows = {name: row for name in weights if (row := coming[name]) is not None}
                if not rows:
                    if any(made.packs) or left or made.too_long:
                        break
                    return
                by_tokens = data.mixture == "tokens"
                worth: dict[str, int] = {n: item(n, row).tokens if by_tokens else 1 for n, row in rows.items()}
                name = min(worth, key=lambda n: (passes[n] + worth[n] / weights[n], n))
                passes[name] += worth[name] / weights[name]
                drawn = name, rows[name]
                coming[name] = next(streams[name], None)
            one: Item = item(*drawn)
            if one.cost > data.tokens_per_pack:
                made.too_long.append(one)
                continue
            fitting = [i for i in range(len(room)) if one.cost <= room[i]]
            if not fitting:
                left.append(drawn)
                continue
            pack = min(fitting, key=work.__getitem__)
            made.packs[pack].append(one)
            room[pack] -= one.cost
            work[pack] += one.work
        waiting = [*left, *queue]
        yield made
        step += 1
