"""From shards to packs through real loader processes: every sample once, whatever stops, fails or changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
import torch
from tree import ROOT

from timeviper.config import Recipe, SourceConfig
from timeviper.config.load import load_recipe
from timeviper.datamodules.build import build_plan, load_index, load_sources, pack_format
from timeviper.datamodules.loader import Loader
from timeviper.datamodules.mixture import UsedUp
from timeviper.datamodules.plan import StepPlan
from timeviper.datamodules.reader import PackReader
from timeviper.datamodules.shards.pool import write_shards
from timeviper.datamodules.world.render import encode_image
from timeviper.pack import StepBatch
from timeviper.tokenizer import Tokenizer

DAMAGED = 3  # samples of the source "images" whose picture is spoilt


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Two sources of pictures, one of which has spoilt samples, each gone through twice; eight packs a step."""
    folder = tmp_path_factory.mktemp("shards")
    made = load_recipe(ROOT / "recipes/tiny/stage2_instruct.yaml")
    made.data.sources = {}
    for name, count in (("images", 40), ("others", 17)):
        write_shards(pictures(name, count), folder / name, samples_per_shard=7)
        made.data.sources[name] = SourceConfig(shards=str(folder / name), epochs=2.0, weight=1.0 + (name == "others"))
    first = load_index(folder / "images")[0]
    for record in first.samples[:DAMAGED]:
        offset, size, *_ = record.members["png"]
        with (folder / "images" / first.name).open("r+b") as file:
            file.seek(offset)
            file.write(b"\0" * size)
    made.data.tokens_per_pack, made.data.packs_per_step, made.data.shuffle_window = 60, 4, 16
    return made


def pictures(name: str, count: int) -> Iterator[dict]:
    rng = np.random.default_rng(count)
    for i in range(count):
        text = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "a ring " * (i % 5 + 1)}]
        yield {
            "__key__": f"{name}-{i:02d}",
            "png": encode_image(rng.integers(0, 255, (16, 16, 3), np.uint8), "png"),
            "json": {"messages": text},
        }


def read(recipe: Recipe, start: int, steps: int, world: int, workers: int) -> list[list[StepBatch]]:
    """What each of `world` ranks gets, step by step."""
    tokenizer = Tokenizer.load("")
    plan = build_plan(recipe, tokenizer)
    reader = PackReader(tokenizer, pack_format(recipe))

    def rank(number: int) -> list[StepBatch]:
        return list(Loader(reader, lambda: islice(plan.steps(start), steps), number, world, workers=workers))

    return [list(step) for step in zip(*(rank(r) for r in range(world)))]


def length(recipe: Recipe) -> int:
    """Steps until both sources are used up."""
    steps = build_plan(recipe, Tokenizer.load("")).steps()
    return sum(1 for _ in iter(lambda: next_or_none(steps), None))


def next_or_none(steps: Iterator[StepPlan]) -> StepPlan | None:
    try:
        return next(steps)
    except UsedUp:
        return None


def test_every_sample_twice_in_two_epochs_over_stops_worlds_workers_and_spoilt_samples(recipe: Recipe) -> None:
    total = length(recipe)
    assert total > 6
    pieces = [(0, 3, 1, 0), (3, 2, 4, 0), (5, 1, 2, 1), (6, total - 6, 1, 2)]  # start, steps, world, workers
    found, skipped, replaced = Counter(), Counter(), 0
    for start, steps, world, workers in pieces:
        for ranks in read(recipe, start, steps, world, workers):
            assert {len(batch.packs) for batch in ranks} == {4 // world}
            for batch in ranks:
                found.update(k for pack in batch.packs for k in pack.keys)
                skipped.update(i.key for i in batch.skipped)
                replaced += sum(batch.replaced.values())
    sources = load_sources(recipe.data.sources)
    every = [s[i].key for s in sources.values() for i in range(len(s))]
    assert set(found) | set(skipped) == set(every)
    spoilt = {k for k in skipped if k not in found}
    assert len(spoilt) == len(skipped) == DAMAGED
    # Each unit is used or skipped twice; stand-ins come on top, and may have tried a spoilt sample once more.
    assert all(found[k] >= 2 for k in every if k not in spoilt)
    assert sum(found.values()) == 2 * (len(every) - DAMAGED) + replaced
    assert all(skipped[k] >= 2 for k in spoilt)
    assert 0 < replaced <= 2 * DAMAGED


def test_the_stream_does_not_depend_on_workers_or_on_when_it_is_read(recipe: Recipe) -> None:
    alone = [batch for (batch,) in read(recipe, 0, 5, 1, 0)]
    again = [batch for (batch,) in read(recipe, 0, 5, 1, 2)]
    for a, b in zip(alone, again, strict=True):
        assert (a.step, a.used, a.skipped, a.replaced) == (b.step, b.used, b.skipped, b.replaced)
        for p, q in zip(a.packs, b.packs, strict=True):
            assert p.keys == q.keys
            assert all(torch.equal(getattr(p, n), getattr(q, n)) for n in ("ids", "labels", "kind", "frames"))
