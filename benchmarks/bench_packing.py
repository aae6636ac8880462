"""Packs filled and dealt by cost (after ToMe and TransV) against packs filled by length: how long ranks wait.

    python benchmarks/bench_packing.py

Nothing is timed: the packs are simulated, and a rank's work is the model FLOPs of its packs (tower, projector and
decoder, forward and backward; `timeviper.model.flops`). Three ways, with budgets that just hold the longest sample:

in order   packs are filled to a length one after the other, the next begins when a sample does not fit, and go
           round the ranks: what most loaders do
by length  the plan of this project, with tokens at the decoder's input as its only measure
by cost    the plan of this project: packs hold what memory holds after TransV, and are balanced by computation
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import date
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np

from timeviper.config import DataConfig, FramesConfig, Recipe, SourceConfig
from timeviper.config.load import load_recipe
from timeviper.config.shape import PackShape, kept_share
from timeviper.datamodules.build import frame_work
from timeviper.datamodules.mixture import Mixture, Source
from timeviper.datamodules.plan import CostModel, Item, Plan
from timeviper.datamodules.shards.index import Conversation, SampleRecord, ShardIndex
from timeviper.model.flops import model_flops

SAMPLES = 4000  # of each source
BYTES_PER_TOKEN = 4
ANSWER = 40  # tokens
WEIGHTS = {"video": 0.5, "image": 0.3, "none": 0.2}
FRAMES = FramesConfig(fps=1.0, max_frames=7200)

Steps = Iterator[list[list[Sequence[Item]]]]  # for each step and rank, its packs


def long_tail(seed: int) -> dict[str, Source]:
    """Texts, images, and videos whose lengths are spread evenly in the logarithm from 1 second to 2 hours."""
    rng = np.random.default_rng(seed)
    seconds = np.exp(rng.uniform(0.0, np.log(7200.0), SAMPLES))
    text = rng.lognormal(np.log(120.0), 1.0, (3, SAMPLES)).clip(20, 4000) * BYTES_PER_TOKEN

    def record(kind: str, i: int, words: float) -> SampleRecord:
        length = float(seconds[i]) if kind == "video" else 0.0
        frames = {"video": max(round(length), 1), "image": 1, "none": 0}[kind]
        said = (Conversation("chat", int(words), ANSWER * BYTES_PER_TOKEN),)
        return SampleRecord(f"{kind}{i}", {}, kind, length, 1.0 if length else 0.0, frames, said)

    records = {kind: tuple(record(kind, i, text[k, i]) for i in range(SAMPLES)) for k, kind in enumerate(WEIGHTS)}
    return {kind: Source(kind, [ShardIndex(f"{kind}.tar", 1, found)]) for kind, found in records.items()}


def tokens_per_frame(recipe: Recipe) -> int:
    return sum(t.tokens for t in recipe.model.towers.values())


def planned(recipe: Recipe, by: str, ranks: int, packs: int, seed: int) -> Steps:
    """Our plan, with `by` (cost or length) as its measure."""
    a_frame = tokens_per_frame(recipe)
    share, work = 1.0, float(a_frame)
    if by == "cost":
        share = kept_share(recipe.model.transv, len(recipe.model.decoder.layout))
        work = frame_work(recipe.model, recipe.train.trainable)
    cost, sources = _measure(a_frame, share, work), long_tail(seed)
    data = DataConfig({name: SourceConfig(weight=w) for name, w in WEIGHTS.items()}, frames=FRAMES)
    budget = int(max(_items(sources, cost), key=lambda item: item.cost).cost) + 1
    plan = Plan(sources, replace(data, tokens_per_pack=budget, packs_per_step=ranks * packs), {}, cost, seed)
    return ([list(step.share(rank, ranks).packs) for rank in range(ranks)] for step in plan.steps())


def in_order(recipe: Recipe, ranks: int, packs: int, seed: int) -> Steps:
    """Next fit by length, dealt in turn."""
    a_frame, sources = tokens_per_frame(recipe), long_tail(seed)
    cost, mixture = _measure(a_frame, 1.0, float(a_frame)), Mixture(sources, seed, 4096)
    mixture.set_weights(WEIGHTS)
    budget = max(_items(sources, cost), key=lambda item: item.tokens).tokens

    def filled() -> Iterator[list[Item]]:
        pack: list[Item] = []
        while True:
            (drawn,) = mixture.next(1)
            item = cost.item(sources[mixture.names[drawn["source"]]][int(drawn["row"])], FRAMES)
            if sum(i.tokens for i in pack) + item.tokens > budget:
                yield pack
                pack = []
            pack.append(item)

    stream = filled()
    while True:
        step: list[Sequence[Item]] = list(islice(stream, ranks * packs))
        yield [step[rank::ranks] for rank in range(ranks)]


def _measure(a_frame: int, share: float, work: float) -> CostModel:
    return CostModel(a_frame, share, work, lambda text, frames, turns: text // BYTES_PER_TOKEN)


def _items(sources: dict[str, Source], cost: CostModel) -> Iterator[Item]:
    return (cost.item(source[i], FRAMES) for source in sources.values() for i in range(len(source)))


def sample_flops(recipe: Recipe) -> Callable[[int, int], float]:
    """Model FLOPs of a sample of f frames and t text tokens: exactly a polynomial of second degree in f and t,
    but for the rounding of kept tokens, so that six samples tell it."""

    def exact(f: int, t: int) -> float:
        parts = model_flops(recipe.model, PackShape((f,), (t,), ANSWER), recipe.train.trainable)
        return sum(part.total for part in parts.values())

    def terms(f: float, t: float) -> list[float]:
        f, t = f / 1000, t / 1000
        return [1.0, f, t, f * f, f * t, t * t]

    points = [(f, t) for f in (100, 1000, 5000) for t in (100, 1000, 4000)]
    known = [exact(f, t) for f, t in points]
    factors, *_ = np.linalg.lstsq(np.array([terms(f, t) for f, t in points]), np.array(known), rcond=None)

    @cache
    def flops(f: int, t: int) -> float:
        return float(np.dot(factors, terms(f, t))) if f else exact(0, t)

    return flops


def idle(steps: Steps, count: int, a_frame: int, flops: Callable[[int, int], float]) -> float:
    """Share of their time that ranks wait for the one with the most work."""
    busy = longest = 0.0
    for ranks in islice(steps, count):
        work = [
            sum(flops(i.num_frames, i.tokens - i.num_frames * a_frame) for p in packs for i in p) for packs in ranks
        ]
        busy, longest = busy + sum(work), longest + max(work) * len(ranks)
    return 1 - busy / longest


def table(recipe: Recipe, ranks: int, steps: int, seeds: int) -> Iterator[str]:
    """Rows of the page, for 1 to 8 packs a rank."""
    yield "| packs a rank | in order | by length | by cost | cost against in order | cost against length |"
    yield "|---|---|---|---|---|---|"
    a_frame, flops = tokens_per_frame(recipe), sample_flops(recipe)
    for packs in (1, 2, 4, 8):
        ways = (
            lambda seed, packs=packs: in_order(recipe, ranks, packs, seed),
            lambda seed, packs=packs: planned(recipe, "length", ranks, packs, seed),
            lambda seed, packs=packs: planned(recipe, "cost", ranks, packs, seed),
        )
        order, length, cost = (
            float(np.mean([idle(way(seed), steps, a_frame, flops) for seed in range(seeds)])) for way in ways
        )
        shares = f"{order:.1%} | {length:.1%} | {cost:.1%}"
        yield f"| {packs} | {shares} | {cost / order - 1:+.0%} | {cost / length - 1:+.0%} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="recipes/nano9b/stage3_long.yaml")
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    args = parser.parse_args()
    head = f"{args.ranks} ranks, {args.steps} steps, mean of {args.seeds} seeds, {args.recipe}"
    lines = [f"# Idle time of ranks by the way packs are filled\n\n{date.today()}, {head}, made by\n"]
    lines += ["    python benchmarks/bench_packing.py\n", "```", (__doc__ or "").strip(), "```", ""]
    print(head)
    for row in table(load_recipe(args.recipe), args.ranks, args.steps, args.seeds):
        print(row, flush=True)
        lines.append(row)
    path = args.out / f"packing_simulated_{date.today()}.md"
    path.write_text("\n".join([*lines, ""]))
    print(f"written: {path}")


if __name__ == "__main__":
    main()
