"""The plan at the size of the published recipe: where a step is found, and what planning costs each rank.

    python benchmarks/bench_plan.py

Sources are made up, in the proportions of the recipe; only what the plan reads of them exists (lengths and sizes in
columns, 18 bytes a sample). Times are CPU times of one thread, without that of reading an index.

planning   the steps as each of 64 ranks plans them, one pack a rank: time for each unit of the global step, the rank's
           own packs with their spares included, and how long ranks wait for the one with the most work. Every hundredth
           step is dealt to all ranks, whose packs are counted
to a step  seconds until a first step is there: from nothing; from the state in its checkpoint, as a resume or a rewind
           does it; from the states of every 500,000 units that a run folder holds, as `preview --start` and `replay`
           do. The state of the farthest step is that of the last one planned, so many whole epochs later
data       the listing of all shards, which a resume compares
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from itertools import islice
from pathlib import Path

import numpy as np

from timeviper.config import Recipe
from timeviper.config.load import load_recipe
from timeviper.datamodules.build import cost_model
from timeviper.datamodules.order import Listing, Rows, ShardEntry, digest
from timeviper.datamodules.plan import Plan
from timeviper.datamodules.plan_files import PlanFiles
from timeviper.datamodules.shards.index_file import Conversation, SampleRecord
from timeviper.datamodules.source import Sizes, Source, Unit
from timeviper.tokenizer import Tokenizer

SHARD = 256  # samples
RANKS = 64
STILLS = ("image", "single")  # words in the names of sources without videos


class MadeUp(Source):
    """A source of `count` samples of which only lengths and sizes exist."""

    def __init__(self, name: str, count: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.name = name
        stills = any(word in name for word in STILLS)
        self.seconds = np.zeros(count) if stills else np.exp(rng.normal(np.log(40.0), 1.0, count)).clip(1, 7200)
        self.text = rng.lognormal(np.log(480.0), 0.8, count).clip(60, 16_000).astype(np.int64)
        self.turns = rng.integers(1, 5, count).astype(np.int16)
        self.counts = np.full(-(-count // SHARD), SHARD)
        self.counts[-1] = count - SHARD * (len(self.counts) - 1)

    def __len__(self) -> int:
        return len(self.text)

    def sizes(self, rows: Rows) -> Sizes:
        seconds = self.seconds[rows]
        frames = np.where(seconds > 0, seconds * 24, 1).astype(np.int64)
        return Sizes(self.text[rows], self.turns[rows].astype(np.int64), np.ones(len(rows), np.int64), seconds, frames)

    def __getitem__(self, i: int) -> Unit:
        seconds = float(self.seconds[i])
        text, frames = int(self.text[i]), int(seconds * 24) if seconds else 1
        talk = Conversation("chat", text, text // 3)
        record = SampleRecord(f"{i:08d}", {}, "video" if seconds else "image", seconds, 24.0, frames, (talk,))
        return Unit(self.name, f"data/{self.name}/shard-{i // SHARD:06d}.tar", record, 0)

    def planned(self, rows: Rows) -> list[Unit]:
        return [self[row] for row in rows.tolist()]

    def key(self, i: int) -> str:
        return self[i].key

    @property
    def listing(self) -> Listing:
        ends = np.cumsum(self.counts)
        return tuple(
            ShardEntry(f"shard-{i:06d}.tar", int(n), digest(self.text[end - n : end].tobytes()))
            for i, (n, end) in enumerate(zip(self.counts, ends))
        )


def sources(recipe: Recipe, samples: int) -> dict[str, Source]:
    whole = sum(source.weight for source in recipe.data.sources.values())
    return {
        name: MadeUp(name, max(round(samples * source.weight / whole), 1), seed)
        for seed, (name, source) in enumerate(recipe.data.sources.items())
    }


def planned(recipe: Recipe, made: dict[str, Source], states: PlanFiles | None = None) -> Plan:
    cost = cost_model(recipe, Tokenizer.load(""))
    return Plan(made, recipe.data, recipe.train.phases, cost, recipe.seed, states=states)


def planning(recipe: Recipe, made: dict[str, Source], steps: int) -> Iterator[str]:
    """What each of `RANKS` ranks spends, and how evenly they are loaded."""
    plan = planned(recipe, made)
    units, waits, packs = 0, [], set()
    own = 0.0
    begun = time.process_time()
    for step in islice(plan.steps(), steps):
        units += sum(step.drawn.values())
        mine = time.process_time()
        step.share(0, RANKS)
        own += time.process_time() - mine
        if step.step % 100 == 0:
            outside = time.process_time()
            shares = [step.share(rank, RANKS) for rank in range(RANKS)]
            packs |= {len(share.packs) for share in shares}
            work = [sum(item.work for pack in share.packs for item in pack) for share in shares]
            waits.append(1 - sum(work) / (max(work) * RANKS))
            begun += time.process_time() - outside
    seconds = time.process_time() - begun
    assert packs == {recipe.data.packs_per_step // RANKS}, f"ranks get unequal packs: {packs}"
    yield "| steps | units a step | steps a second | us a unit of the global step | of these, own packs | ranks wait |"
    yield "|---|---|---|---|---|---|"
    each = 1e6 / units
    yield (
        f"| {steps:,} | {units / steps:,.0f} | {steps / seconds:,.0f} | {seconds * each:.2f} | {own * each:.2f} | "
        f"{np.mean(waits):.1%} |"
    )


def to_a_step(recipe: Recipe, made: dict[str, Source], steps: int, far: int) -> Iterator[str]:
    """Seconds until the first step is there."""
    yield "| first step | from | s |"
    yield "|---|---|---|"
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)

        def first(start: int, write: bool = False) -> float:
            plan = planned(recipe, made, PlanFiles(run, write=write))
            begun = time.process_time()
            next(plan.steps(start)).share(0, RANKS)
            return time.process_time() - begun

        yield f"| {steps:,} | nothing | {first(steps, write=True):.1f} |"
        plan = planned(recipe, made, PlanFiles(run))
        kept, state = len([*run.glob("plan/*")]), plan.state(steps)
        units = sum(next(plan.steps(steps)).drawn.values())
        later = (far - steps) * units // sum(map(len, made.values()))
        places = {n: replace(p, epoch=p.epoch + later) for n, p in state.standing.places.items()}
        for step, standing in ((steps, state.standing), (far, replace(state.standing, places=places))):
            file = run / f"checkpoints/step={step}/plan.json"
            file.parent.mkdir(parents=True)
            file.write_text(replace(state, step=step, standing=standing).encode(plan.identity(step)))
            yield f"| {step:,} | its checkpoint, {file.stat().st_size / 1e3:.0f} kB | {first(step):.2f} |"
        between = [first(int(steps * share)) for share in (0.123, 0.345, 0.678, 0.901)]
        yield f"| four in between | {kept} states | {min(between):.2f} to {max(between):.2f} |"


def data(made: dict[str, Source]) -> Iterator[str]:
    begun = time.process_time()
    shards = sum(len(source.listing) for source in made.values())
    yield f"digest of {shards:,} shards: {time.process_time() - begun:.1f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="recipes/nano9b/stage2_instruct.yaml")
    parser.add_argument("--samples", type=float, default=1e7)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--far", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    args = parser.parse_args()
    recipe = load_recipe(args.recipe)
    made = sources(recipe, int(args.samples))
    head = f"{sum(map(len, made.values())):,} samples, {args.recipe}, {RANKS} ranks, one thread of {platform.machine()}"
    lines = [f"# The plan at scale\n\n{date.today()}, {head}, made by\n"]
    lines += ["    python benchmarks/bench_plan.py\n", "```", (__doc__ or "").strip(), "```", ""]
    print(head, flush=True)
    parts = (planning(recipe, made, args.steps), to_a_step(recipe, made, args.steps, args.far), data(made))
    for part in parts:
        for row in part:
            print(row, flush=True)
            lines.append(row)
        lines.append("")
    path = args.out / f"plan_simulated_{date.today()}.md"
    path.write_text("\n".join(lines))
    print(f"written: {path}")


if __name__ == "__main__":
    main()
