"""Loader processes: the same steps as in one process, in order, in bounded memory, and gone at the end."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from itertools import islice, pairwise
from math import inf
from pathlib import Path
from typing import cast

import pytest
import torch
from bench_loader import Load, resident_mb
from hypothesis import given, settings
from hypothesis import strategies as st
from tree import ROOT
from video_helpers import write_clip

from timeviper.config import FramesConfig, Recipe, SourceConfig
from timeviper.config.load import load_recipe
from timeviper.datamodules.ahead import parts
from timeviper.datamodules.loader import Loader
from timeviper.datamodules.mixture import UsedUp
from timeviper.datamodules.plan import Item, SequenceShape, StepPlan
from timeviper.datamodules.processes import LostLoader, Processes
from timeviper.datamodules.reader import TOKEN_BYTES, PackReader, plan_bytes
from timeviper.datamodules.shards.pool import write_shards
from timeviper.pack import Pack
from timeviper.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Eight short clips, four packs a step."""
    folder = tmp_path_factory.mktemp("loader")
    talk = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "bars"}]
    clips = [write_clip(folder / f"{i}.mp4", 10 + 5 * i) for i in range(8)]
    write_shards([{"__key__": p.stem, "mp4": p, "json": {"messages": talk}} for p in clips], folder / "shards")
    settings = ["data.frames.fps=2", "data.tokens_per_pack=300", "data.packs_per_step=4", "data.workers=2"]
    recipe = load_recipe(ROOT / "recipes/tiny/stage2_instruct.yaml", settings)
    recipe.data.sources = {"clips": SourceConfig(shards=str(folder / "shards"))}
    return recipe


@pytest.fixture(scope="module")
def load(recipe: Recipe) -> Load:
    return Load(recipe)


def assert_equal(a: Pack, b: Pack) -> None:
    assert a.rest() == b.rest()
    assert a.tensors().keys() == b.tensors().keys()
    for name, tensor in a.tensors().items():
        assert torch.equal(tensor, b.tensors()[name]), name


@pytest.mark.parametrize(("gb", "workers"), [(2.0, 2), (2e-5, 1), (0.0, 1)])
def test_processes_deliver_what_one_process_reads_in_order_whatever_they_may_hold(load: Load, gb: float, workers: int):
    """Packs of about 15 KB: read whole, in parts, sample by sample."""
    plans = list(islice(load.plan.steps(), 7))
    for plan, found in zip(plans, Loader(load.reader, lambda: plans, workers=workers, prefetch_gb=gb), strict=True):
        expected = load.reader[plan.share(0, 1)]
        assert (found.step, found.used, found.skipped) == (plan.step, expected.used, expected.skipped)
        for pack, other in zip(found.packs, expected.packs, strict=True):
            assert_equal(pack, other)
            blocks = {t.untyped_storage().data_ptr() for t in pack.tensors().values() if t.numel()}
            assert gb < 2.0 or len(blocks) == 1


@given(sizes=st.lists(st.lists(st.integers(1, 50), max_size=9), max_size=5), most=st.integers(0, 120))
@settings(deadline=None)
def test_parts_hold_all_samples_in_order_and_no_more_than_they_may(load: Load, sizes: list[list[int]], most: int):
    some = next(load.plan.steps()).packs[0][0]
    items = [[replace(some, tokens=n, sequences=(SequenceShape(n, ()),)) for n in pack] for pack in sizes]
    share = StepPlan(3, FramesConfig(), tuple(map(tuple, items)), too_long=(some,))
    found = list(parts(share, most * TOKEN_BYTES, 32))
    packs: list[list[Item]] = [[] for _ in items]
    for number, part in found:
        if items:
            packs[number] += part.packs[0]
        assert plan_bytes(part, 32) <= most * TOKEN_BYTES or len(part.packs[0]) == 1
    assert packs == items
    assert [part.too_long for _, part in found] == [(some,), *[()] * (len(found) - 1)]
    for one, other in pairwise(p for p in found if items and items[p[0]]):
        fits = one[0] == other[0] and sum(plan_bytes(p, 32) for _, p in (one, other)) <= most * TOKEN_BYTES
        assert not fits or len(other[1].packs[0]) > 1, "a part that the one before had room for"


def held_mb() -> float:
    """Of all blocks that this process and its children have mapped, each once. (The system counts their pages for who
    has touched them, and nobody touches what is not yet taken.)"""
    pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children() if child.pid)]
    lines = [line.split() for pid in pids for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    blocks = {line[4]: line[0].split("-") for line in lines if "timeviper-block" in line[-2]}
    return sum(int(end, 16) - int(start, 16) for start, end in blocks.values()) / 1e6


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="what is mapped is told in another way here")
def test_processes_hold_no_more_than_they_may_and_close_to_it(load: Load):
    """Packs of about 10 MB, when nobody takes a step."""
    large = PackReader(load.reader.tokenizer, replace(load.form, image_size=256))
    plans = list(islice(load.plan.steps(), 20))
    packs = [plan_bytes(replace(p, packs=(pack,)), 256) / 1e6 for p in plans for pack in p.packs]
    bound = 3.5 * max(packs)
    steps = Loader(large, lambda: plans, workers=1, prefetch=20, prefetch_gb=bound / 1e3).coming()
    first = next(steps)
    seen, end, ready = [0.0], time.monotonic() + 120, inf
    while time.monotonic() < min(ready + 2, end):  # then it would go on, if it did not mind
        time.sleep(0.05)
        seen.append(held_mb())
        ready = min(ready, time.monotonic() if seen[-1] >= bound - max(packs) else inf)
    assert bound - max(packs) <= max(seen) <= bound + max(packs)
    assert len(first.read().packs) == len(plans[0].packs)


def test_processes_may_be_started_beforehand(load: Load):
    plans = list(islice(load.plan.steps(), 3))
    processes = Processes(load.reader, 2)
    children = {child.pid for child in multiprocessing.active_children() if child.daemon}
    loader = Loader(load.reader, lambda: plans, workers=2, processes=processes)
    steps = iter(loader)
    assert next(steps).step == 0
    assert {child.pid for child in multiprocessing.active_children() if child.daemon} == children
    assert [batch.step for batch in steps] == [1, 2]
    assert [batch.step for batch in loader] == [0, 1, 2]  # with others
    assert not [child for child in multiprocessing.active_children() if child.daemon]


def test_processes_that_nobody_uses_end_with_the_object(load: Load):
    processes = Processes(load.reader, 1)
    (child,) = [child for child in multiprocessing.active_children() if child.daemon]
    del processes
    child.join(60.0)
    assert not child.is_alive()


def test_lightning_may_name_a_step_before_it_takes_the_one_before(load: Load):
    plans = list(islice(load.plan.steps(), 5))
    steps = Loader(load.reader, lambda: plans, workers=1, prefetch=1).coming()
    coming, taken = next(steps), []
    for later in steps:
        taken.append(coming.read().step)
        coming = later
    assert [*taken, coming.read().step] == [plan.step for plan in plans]


def test_no_descriptor_stays_open(load: Load):
    plans = list(islice(load.plan.steps(), 30))
    steps = iter(Loader(load.reader, lambda: plans, workers=1))
    kept, open_files = [next(steps)], len(os.listdir("/dev/fd"))
    kept += steps
    assert len(kept) == 30
    assert len(os.listdir("/dev/fd")) <= open_files


def test_an_error_of_the_plan_comes_behind_its_last_step(load: Load):
    def plans() -> Iterator[StepPlan]:
        yield from islice(load.plan.steps(), 3)
        raise UsedUp("source clips is used up")

    steps = iter(Loader(load.reader, plans, workers=1, prefetch=8))
    assert [next(steps).step for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UsedUp, match="clips is used up"):
        next(steps)


def test_an_error_that_nobody_foresaw_says_where_it_was_raised(load: Load):
    reader = copy(load.reader)
    reader.tokenizer = cast("Tokenizer", None)
    with pytest.raises(AttributeError, match="NoneType") as raised:
        next(iter(Loader(reader, load.plan.steps, workers=1)))
    assert "in build_pack" in "".join(raised.value.__notes__)


def test_a_process_that_is_killed_is_told(load: Load):
    steps = iter(Loader(load.reader, load.plan.steps, workers=2))
    next(steps)
    lost = next(child for child in multiprocessing.active_children() if child.daemon)
    lost.kill()
    with pytest.raises(LostLoader, match=f"pid {lost.pid}.*SIGKILL.*data.prefetch_gb"):
        list(islice(steps, 100))
    del steps
    assert not [child for child in multiprocessing.active_children() if child.daemon]


def test_a_program_that_fails_ends_although_its_loader_runs(recipe: Recipe):
    """The processes ignore SIGTERM, so at exit they must be ended in another way."""
    shards = recipe.data.sources["clips"]
    assert shards
    program = f"""
if __name__ == "__main__":
    from itertools import islice
    from timeviper.config import SourceConfig
    from bench_loader import Load
    from timeviper.config.load import load_recipe

    recipe = load_recipe("recipes/tiny/stage2_instruct.yaml")
    recipe.data.sources = {{"clips": SourceConfig(shards={shards.shards!r})}}
    load = Load(recipe)
    batches = load.loader(list(islice(load.plan.steps(), 9)), 1)
    next(batches)
    raise RuntimeError("on purpose")
"""
    command = [sys.executable, "-c", program]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("RuntimeError: on purpose")


@pytest.mark.slow
def test_memory_stays_flat_over_epochs(load: Load):
    epoch = list(islice(load.plan.steps(), 4))
    batches = load.loader(epoch * 20, 2)
    seen: list[float] = []
    for _ in range(20):
        for _ in epoch:
            next(batches)
        seen.append(resident_mb())
    assert max(seen[5:]) - seen[4] < 10, seen
