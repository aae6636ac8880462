"""Loader processes: the same steps as in one process, in order, in bounded memory, and gone at the end."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from bench_loader import Load, resident_mb
from tree import ROOT
from video_helpers import write_clip

from timeviper.config import Recipe, SourceConfig
from timeviper.config.load import load_recipe
from timeviper.datamodules.loader import SHARED, PlanSampler, make_loader, most_bytes, plan_bytes, that_fit
from timeviper.datamodules.plan import StepPlan
from timeviper.datamodules.shards.pool import write_shards
from timeviper.pack import Pack


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


def test_processes_deliver_what_one_process_reads_in_order_and_in_one_block(load: Load):
    plans = list(islice(load.plan.steps(), 7))
    for plan, found in zip(plans, load.loader(plans, workers=2), strict=True):
        expected = load.reader[plan.share(0, 1)]
        assert (found.step, found.used, found.skipped) == (plan.step, expected.used, expected.skipped)
        assert len(found.packs) == 4
        for pack, other in zip(found.packs, expected.packs):
            assert_equal(pack, other)
        blocks = {t.untyped_storage().data_ptr() for pack in found.packs for t in pack.tensors().values() if t.numel()}
        assert len(blocks) == 1


def test_no_more_is_read_ahead_than_memory_allows(load: Load):
    plans = list(islice(load.plan.steps(), 12))
    most = max(plan_bytes(plan, load.form.image_size) for plan in plans)
    drawn = 0

    def counted() -> Iterator[StepPlan]:
        nonlocal drawn
        for plan in plans:
            drawn += 1
            yield plan

    allowed = 2.5 * most / 1e9
    sampler = PlanSampler(counted, 0, 1)
    loader = make_loader(load.reader, sampler, 2, 4, False, step_bytes=most, prefetch_gb=allowed)
    for taken, _ in enumerate(loader):
        assert drawn <= taken + 1 + 2


def test_no_step_is_larger_than_the_largest(load: Load):
    data, form = load.recipe.data, load.form
    most = most_bytes(4, data.tokens_per_pack, form.tokens_per_frame, load.cost.vision_share, form.image_size)
    for plan in islice(load.plan.steps(), 20):
        size = sum(t.nbytes for pack in load.reader[plan].packs for t in pack.tensors().values())
        assert size <= 1.1 * plan_bytes(plan, form.image_size) <= 1.1 * most


@pytest.mark.parametrize(
    ("workers", "prefetch", "step_mb", "gb", "ahead"),
    [(2, 2, 1, 2.0, 2), (2, 8, 100, 1.0, 5), (3, 8, 100, 1.0, 3), (1, 2, 900, 1.0, 1), (4, 4, 0, 0.001, 4)],
)
def test_steps_ahead(workers: int, prefetch: int, step_mb: int, gb: float, ahead: int):
    assert that_fit(workers, prefetch, step_mb * 10**6, gb) == (workers, ahead)


def test_one_step_a_process_may_exceed_the_bound_but_not_silently(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "timeviper"):
        assert that_fit(2, 2, 700 * 10**6, 1.0) == (2, 1)
    (record,) = caplog.records
    assert "2 loader processes" in record.getMessage()
    assert "data.prefetch_gb = 1" in record.getMessage()


@pytest.mark.skipif(not os.path.isdir(SHARED), reason="shared memory is elsewhere here")
@pytest.mark.parametrize(("share", "left", "words"), [(0.7, 1, "1 processes"), (1.5, 0, "the training process")])
def test_too_little_shared_memory(caplog: pytest.LogCaptureFixture, share: float, left: int, words: str):
    """Writing beyond it would kill the process with a bus error."""
    step = int(shutil.disk_usage(SHARED).free * share)
    with caplog.at_level(logging.WARNING, "timeviper"):
        assert that_fit(2, 2, step, 1e6) == (left, 1)
    (record,) = caplog.records
    assert f"reading in {words}; give the container more shared memory" in record.getMessage()


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
