"""The same numbers on one rank and on several, and for every cut of a step into packs: through the real trainer."""

from __future__ import annotations

import os
import shutil
import signal
from itertools import islice
from pathlib import Path

import pytest
import torch
from jobs import Job, losses, run, weights
from scale_data import write_mixture

from timeviper.config.load import load_recipe
from timeviper.datamodules.build import build_plan
from timeviper.tokenizer import Tokenizer
from timeviper.weights.export import build_model

# Questions of such lengths that every sample costs 40 to 44 tokens: then any cut of a step has the same eight samples.
EVEN = {
    "texts": {"kind": "text", "letters": 128, "spread": 3},
    "pictures": {"kind": "image", "letters": 118, "spread": 3},
    "videos": {"kind": "video", "letters": 38, "spread": 3, "weight": 1.5},
}
SAMPLES, COST, STEPS = 8, 44, 20


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    train = {"steps": STEPS, "checkpoint_every": 100}
    return write_mixture(tmp_path_factory.mktemp("scale"), EVEN, train=train, optim={"lr": 3e-3})


def cut(packs: int) -> list[str]:
    """Settings that cut the samples of a step into so many packs."""
    return [f"data.packs_per_step={packs}", f"data.tokens_per_pack={SAMPLES // packs * COST}"]


@pytest.fixture(scope="module")
def alone(recipe: Path) -> Path:
    """One rank, four packs a step."""
    run(recipe.parent, 1, "train", str(recipe), f"out={recipe.parent / 'alone'}", *cut(4))
    return recipe.parent / "alone"


def keys(recipe: Path, packs: int) -> list[list[str]]:
    plan = build_plan(load_recipe(recipe, cut(packs)), Tokenizer.load(""))
    return [sorted(item.unit.key for pack in step.packs for item in pack) for step in islice(plan.steps(), STEPS)]


def test_every_cut_of_a_step_has_the_same_samples_of_every_kind(recipe: Path) -> None:
    whole = keys(recipe, 1)
    assert {len(step) for step in whole} == {SAMPLES}
    assert all({key.partition("/")[0] for key in step} == set(EVEN) for step in whole)
    for packs in (2, 4, 8):
        assert keys(recipe, packs) == whole


SLOW = ((1, 1), (1, 8), (2, 8), (4, 4), (4, 8))
SPLITS = [(2, 2, False), (2, 8, True), *(pytest.param(*split, False, marks=pytest.mark.slow) for split in SLOW)]


@pytest.mark.parametrize(("ranks", "packs", "reduced"), SPLITS)
def test_ranks_and_packs_change_no_loss(
    recipe: Path, alone: Path, tmp_path: Path, ranks: int, packs: int, reduced: bool
) -> None:
    """`reduced`: gradients are summed over ranks after every pack."""
    options = [*cut(packs), f"parallel.reduce_every_pack={reduced}"]
    run(tmp_path, ranks, "train", str(recipe), f"out={tmp_path / 'run'}", *options)
    found, expected = losses(tmp_path / "run"), losses(alone)
    assert len(expected) == STEPS
    assert min(expected.values()) < 0.9 * expected[0]
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_what_four_ranks_began_goes_on_on_one_and_two_and_frozen_parts_stay(
    recipe: Path, alone: Path, tmp_path: Path
) -> None:
    four = tmp_path / "four"
    job = Job(tmp_path, 4, "train", str(recipe), f"out={four}", *cut(4))
    job.until(f" 6/{STEPS} ")
    os.kill(job.ranks[3].pid or 0, signal.SIGUSR1)
    assert job.end() == [130] * 4
    first = build_model(load_recipe(recipe)).state_dict()
    for world in (1, 2):
        out = Path(shutil.copytree(four, tmp_path / str(world)))
        job = run(tmp_path, world, "train", str(recipe), f"out={out}", *cut(4))
        assert "continuing from step=" in job.said()
        assert losses(out) == pytest.approx(losses(alone), rel=1e-6)
        last = weights(out)
        assert last.keys() == first.keys()
        assert {name.partition(".")[0] for name in last if torch.equal(last[name], first[name])} == {"towers"}
        assert all(torch.equal(last[name], first[name]) for name in last if name.startswith("towers."))
