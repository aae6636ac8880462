"""Launches on more ranks than a recipe or its data were made for: one message, or it just works."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from jobs import Job, losses, run
from scale_data import write_mixture
from tree import ROOT

from timeviper.config import Recipe
from timeviper.config.load import load_recipe
from timeviper.errors import ConfigError
from timeviper.training.launch import check_ranks

FEW = {"texts": {"kind": "text", "letters": 20, "count": 2}, "pictures": {"kind": "image", "count": 1}}


def tiny(stage: str, **data: int) -> Recipe:
    recipe = load_recipe(ROOT / f"recipes/tiny/{stage}.yaml")
    return replace(recipe, data=replace(recipe.data, **data))


@pytest.mark.parametrize("stage", ["stage0_tower", "stage1_align", "stage2_instruct"])
def test_the_message_names_settings_that_do(stage: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_ranks(tiny(stage), 2)
    assert "must be a multiple of the 2 ranks" in str(caught.value)
    assert "Set data.packs_per_step=2 data.tokens_per_pack=1200 for about as many samples a step" in str(caught.value)
    overrides = ["data.packs_per_step=2", "data.tokens_per_pack=1200"]
    check_ranks(load_recipe(ROOT / f"recipes/tiny/{stage}.yaml", overrides), 2)


def test_packs_are_not_made_smaller_than_the_longest_video() -> None:
    with pytest.raises(ConfigError, match=r"Set data\.packs_per_step=8: takes 8 times as many samples a step\."):
        check_ranks(tiny("stage3_long"), 8)


def test_packs_and_replicas_are_refused_in_one_message_that_comes_once(tmp_path: Path) -> None:
    recipe = write_mixture(tmp_path, FEW)
    options = ["data.packs_per_step=3", "parallel.replicas=3", f"out={tmp_path / 'run'}"]
    job = Job(tmp_path, 2, "train", str(recipe), *options)
    assert job.end() == [2, 2]
    said = job.said(0) + job.said(1)
    assert "must be a multiple of the 2 ranks" in said
    assert "must divide the 2 ranks: each replica is sharded over equally many. Set one of 1, 2." in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_more_ranks_than_shards_or_samples_and_a_list_that_is_slow_on_one_rank(tmp_path: Path) -> None:
    """Three samples in two shards for four packs of two ranks; what all ranks would say, one says."""
    slow = {name: {**options, "slow": 1.5} for name, options in FEW.items()}
    recipe = write_mixture(tmp_path, slow, train={"steps": 3})
    job = run(tmp_path, 2, "train", str(recipe), f"out={tmp_path / 'run'}")
    assert len(losses(tmp_path / "run")) == 3
    assert all(job.said().count(line) == 1 for line in ("trains ", "mixture 3/3 ", "samples used: ", "exported "))
    assert job.said(1) == ""


@pytest.mark.slow
def test_more_ranks_than_samples_that_may_be_read_once(tmp_path: Path) -> None:
    """A bound on epochs leaves less than a step: said before training, as on one rank."""
    recipe = write_mixture(tmp_path, FEW, train={"steps": 3})
    bounds = [f"data.sources.{name}.epochs=1" for name in FEW]
    job = Job(tmp_path, 4, "train", str(recipe), f"out={tmp_path / 'run'}", *bounds)
    assert job.end() == [1] * 4
    assert "raise data.sources.<name>.epochs or lower train.steps" in job.said()
    assert "Traceback" not in job.said()
