"""A run whose shards have moved, or have come or gone, when it goes on: through the command line."""

from __future__ import annotations

import shutil
from collections import Counter
from copy import deepcopy
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from jobs import RECIPE, Job, weights

from timeviper.config.load import load_recipe
from timeviper.datamodules.build import build_plan
from timeviper.datamodules.on_change import adopt
from timeviper.datamodules.plan_files import PlanFiles
from timeviper.datamodules.shards.pool import write_shards
from timeviper.datamodules.world.render import encode_image
from timeviper.tokenizer import Tokenizer

PATIENT = 600  # seconds


def pictures(folder: Path, name: str, count: int) -> None:
    rng = np.random.default_rng(count)
    samples = [
        {
            "__key__": f"{name}-{i}",
            "png": encode_image(rng.integers(0, 255, (16, 16, 3), np.uint8), "png"),
            "json": {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "a ring " * 2}]},
        }
        for i in range(count)
    ]
    write_shards(samples, folder, samples_per_shard=8, name=name)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("change")
    pictures(folder / "shards", "old", 40)
    content = deepcopy(RECIPE)
    content["data"]["sources"] = {"pictures": {"shards": str(folder / "shards")}}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def done(recipe: Path) -> Path:
    out = recipe.parent / "whole"
    job = Job(recipe.parent, 1, "train", str(recipe), f"out={out}")
    assert job.end(PATIENT) == [0], job.said()
    return out


def stopped(done: Path, out: Path) -> Path:
    """The run as it was at step 6 of 8."""
    shutil.copytree(done, out)
    shutil.rmtree(out / "export")
    (out / "checkpoints/latest").write_text("step=6\n")
    return out


def test_moved_shards_and_lost_states_change_nothing(recipe: Path, done: Path, tmp_path: Path) -> None:
    out = stopped(done, tmp_path / "run")
    assert (out / "checkpoints/step=6/plan.json").is_file()
    (out / "checkpoints/step=6/plan.json").write_text("spoilt")
    moved = shutil.copytree(recipe.parent / "shards", tmp_path / "elsewhere")
    job = Job(tmp_path, 1, "train", str(recipe), f"out={out}", f"data.sources.pictures.shards={moved}")
    assert job.end(PATIENT) == [0], job.said()
    then, now = weights(done), weights(out)
    assert all(torch.equal(then[name], now[name]) for name in then)


def test_appended_shards_are_refused_by_name_and_then_wait_for_the_next_epoch(
    recipe: Path, done: Path, tmp_path: Path
) -> None:
    out = stopped(done, tmp_path / "run")
    shards = shutil.copytree(recipe.parent / "shards", tmp_path / "shards")
    pictures(shards, "new", 16)
    more = f"data.sources.pictures.shards={shards}"
    job = Job(tmp_path, 1, "train", str(recipe), f"out={out}", more)
    assert job.end(PATIENT) == [1]
    assert "2 appended: new-00000.tar, new-00001.tar" in job.said()
    assert "data.on_change=finish_epoch" in job.said()
    assert "Traceback" not in job.said()
    job = Job(tmp_path, 1, "train", str(recipe), f"out={out}", more, "data.on_change=finish_epoch")
    assert job.end(PATIENT) == [0], job.said()
    assert "the epoch under way ends with the shards of before" in job.said()
    # Its own steps are those of before; whoever looks further ahead sees each sample once an epoch.
    tokenizer = Tokenizer.load("")
    before = build_plan(load_recipe(done / "config.yaml"), tokenizer)
    plan = build_plan(load_recipe(out / "config.yaml"), tokenizer, PlanFiles(out))
    adopt(plan, out)
    read: Counter[str] = Counter()
    under_way = before.state(6).standing.places["pictures"].epoch
    for step in chain(islice(before.steps(), 6), plan.steps(6)):
        read.update(item.unit.key for pack in step.packs for item in pack)
        if read.total() > 40 * (under_way + 1) + 2 * 56:
            break
    old, new = ({k: n for k, n in read.items() if f"/{name}-" in k} for name in ("old", "new"))
    assert (len(old), len(new)) == (40, 16)
    assert max(new.values()) <= 3  # those of a third epoch in place of those that wait for room
    assert min(old.values()) >= under_way + 2
