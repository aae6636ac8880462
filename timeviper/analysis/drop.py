"""What it costs to lose vision tokens at some depth: D(layer, keep, rule), with nothing transferred.

After the redundancy study of the paper (arXiv 2511.16595, 3.2, figure 4). The model without any TransV stage is what
others are compared with; a drop before a block leaves `keep` of the vision tokens to it and to all behind it.

    D(l, r, rule) = mean over samples of KL(answers without a drop || answers with this one)         nats a token

A drop before an MLP gives the bits of one before the next mixer, so places are blocks where tokens meet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain

import torch
from torch import Tensor

from timeviper.analysis.scores import Judge, Scores
from timeviper.analysis.walk import Walk
from timeviper.config import TransVConfig, TransVStage
from timeviper.config.model import SELECTION_FACTS
from timeviper.config.shape import kept_counts
from timeviper.model.decoder import Decoder
from timeviper.model.selection import SELECTIONS, View, select_ranked
from timeviper.model.transv import Stream, shorten
from timeviper.model.transv_stages import other_stages
from timeviper.model.viper import TimeViper
from timeviper.pack import Kind, Pack

SEEDS = 3  # draws of the random rule, whose mean stands in the table
WHOLE, OWN, OWN_DROP = "whole", "own", "own, pure drop"


@dataclass(frozen=True)
class Rule:
    """Which vision tokens stay: a `select` and a `query` of a recipe, or chance."""

    select: str
    query: str = "last"

    @property
    def block(self) -> str:
        """The letter of the blocks before which it can rank; empty: any."""
        return "" if self.select == "random" else SELECTION_FACTS[self.select].block


RULES = {
    "uniform": Rule("uniform"),
    "random": Rule("random"),
    "last": Rule("attention", "last"),
    "question": Rule("attention", "question"),
    "mamba": Rule("mamba", "question"),
}


@dataclass(frozen=True)
class Drop:
    """One entry of the table; of the random rule one draw."""

    place: int
    keep: float
    rule: str
    seed: int = 0

    @property
    def name(self) -> str:
        """The same for the same drop, in every process."""
        return f"{self.place} {self.keep:g} {self.rule} {self.seed}"


def drops(layout: str, places: Sequence[int], keeps: Sequence[float], rules: Sequence[str]) -> list[Drop]:
    """All that can be measured: a rule that ranks with a kind of block only before such blocks."""
    return [
        Drop(place, keep, rule, seed)
        for place in places
        for rule in rules
        if RULES[rule].block in ("", layout[place])
        for keep in keeps
        for seed in range(SEEDS if rule == "random" else 1)
    ]


@torch.no_grad()
def measure(model: TimeViper, pack: Pack, asked: Sequence[Drop]) -> Iterator[tuple[Drop | str, Scores]]:
    """Scores of every sequence of a pack without a drop (`WHOLE`), and under each of them.

    One pass each from its block on; the tower runs once.
    """
    decoder = model.decoder
    with other_stages(model, TransVConfig()):
        walk = Walk(decoder, model.embed(pack), pack)
        judge = Judge(decoder, pack, walk.end())
        yield WHOLE, judge.scores(judge.hidden)
        for place in sorted({drop.place for drop in asked}):
            stream = walk.to(place)
            views = {query: decoder.view([stream], place, query=query) for query in ("last", "question")}
            for drop in (d for d in asked if d.place == place):
                yield drop, judge.scores(walk.end(dropped(decoder, stream, pack, drop, views)))


def dropped(decoder: Decoder, stream: Stream, pack: Pack, drop: Drop, views: Mapping[str, View]) -> Stream:
    """What a drop leaves of the stream before its block. views: of that stream, by who ranks."""
    kept = [kept_counts(drop.keep, n, n) if drop.keep else [0] * len(n) for n in stream.groups]
    rule, wanted = RULES[drop.rule], [*chain(*kept)]
    if rule.select == "random":
        mask = select_ranked(chances(pack, drop.seed), [*chain(*stream.groups)], wanted)
    else:
        mask = SELECTIONS[rule.select].choose(views[rule.query], wanted)
    return shorten(stream, mask, kept, None, decoder.transv_cfg)


def chances(pack: Pack, seed: int) -> Tensor:
    """`[V]` random numbers, by the keys of samples: a sample loses the same tokens whatever stands beside it."""
    parts = []
    for key, kind in zip(pack.keys, pack.kind.split(pack.lengths)):
        number = int.from_bytes(sha256(f"{key} {seed}".encode()).digest()[:6], "big")
        generator = torch.Generator().manual_seed(number)
        parts.append(torch.rand(int((kind == Kind.VISION).sum()), generator=generator))
    return torch.cat(parts).to(pack.kind.device)


@torch.no_grad()
def measure_jointly(
    model: TimeViper, pack: Pack, schedules: Mapping[str, TransVConfig]
) -> Iterator[tuple[str, Scores]]:
    """Scores under whole schedules, by name, and under the run's own stages, with and without what they transfer.

    Stages of `schedules` transfer nothing, and none has the name of one of the run's transfers.
    """
    decoder = model.decoder
    x = model.embed(pack)
    with other_stages(model, TransVConfig()):
        judge = Judge(decoder, pack, Walk(decoder, x, pack).end())
    for name, transv in schedules.items():
        with other_stages(model, transv):
            yield name, judge.scores(Walk(decoder, x, pack).end())
    if any(segment.stage is not None for segment in decoder.segments):
        yield OWN, judge.scores(Walk(decoder, x, pack).end())
        with decoder.transfer(False):
            yield OWN_DROP, judge.scores(Walk(decoder, x, pack).end())


def stage(layer: int, keep: float, rule: str, transfer: bool = False) -> TransVStage:
    """A stage of a recipe that drops as a rule does. KeyError for chance, which no recipe has."""
    found = RULES[rule]
    if found.select not in SELECTION_FACTS:
        raise KeyError(rule)
    return TransVStage(layer, keep, found.select, found.query, transfer)  # pyright: ignore[reportArgumentType]
