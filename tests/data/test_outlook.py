"""What a run will draw from each source, told before it starts, against what its plan draws."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from jobs import write_recipe

from timeviper.config.load import load_recipe
from timeviper.datamodules import outlook as module
from timeviper.datamodules.build import build_plan
from timeviper.datamodules.mixture import UsedUp
from timeviper.datamodules.outlook import Outlook, outlook, too_often
from timeviper.tokenizer import Tokenizer

TWO = ["data.sources.two.dataset=jobs:Pictures", "data.sources.two.options={count: 2}", "data.sources.two.weight=0.6"]


def told(folder: Path, *overrides: str) -> tuple[list[Outlook], Counter[str]]:
    """What is foreseen, and what a replay of the whole plan draws."""
    recipe = load_recipe(write_recipe(folder), overrides)
    plan = build_plan(recipe, Tokenizer.load(""))
    drawn: Counter[str] = Counter()
    try:
        for step in islice(plan.steps(), recipe.train.steps):
            drawn.update(item.unit.source for pack in step.packs for item in pack)
    except UsedUp:
        pass
    return outlook(plan, recipe.train), drawn


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.steps=40"],
        ["train.steps=60", *TWO],
        ["train.steps=60", *TWO, "data.mixture=tokens"],
        ["train.steps=60", *TWO, "train.phases.a.start=20", "train.phases.a.weights={two: 0}"],
        ["train.steps=30", *TWO, "data.sources.two.epochs=3"],
    ],
)
def test_shares_and_epochs_are_those_that_the_plan_draws(
    tmp_path: Path, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOKED_AT", 200)  # so that most of it is extrapolated
    found, drawn = told(tmp_path, *overrides)
    for source in found:
        # A phase begins with what waited for room in the one before: a step's worth here.
        assert source.drawn == pytest.approx(drawn[source.name], rel=0.05, abs=16)
        assert source.share == pytest.approx(drawn[source.name] / drawn.total(), rel=0.05, abs=0.03)
        assert source.epochs == source.drawn / source.conversations


def test_few_clips_beside_a_large_source_are_named_with_what_bounds_them(tmp_path: Path) -> None:
    large = ["data.sources.pictures.options={count: 4000}", "train.steps=800"]
    (note,) = too_often(told(tmp_path, *large, *TWO)[0])
    for words in ("two 38% of the samples, 2,", "epochs of 2", "data.sources.two.epochs=10", "data.sources.two.weight"):
        assert words in note
    assert too_often(told(tmp_path, *large, *TWO, "data.sources.two.epochs=10")[0]) == []
    (alone,) = too_often(told(tmp_path, "train.steps=2000")[0])
    assert "train.steps" in alone
    assert ".weight" not in alone


def test_a_late_phase_is_not_replayed_from_the_beginning(tmp_path: Path) -> None:
    """Else the start of a long stage would take as long as its whole plan: this one, hours."""
    late = ["train.steps=100000000", "train.phases.a.start=90000000", "train.phases.a.weights={two: 0}"]
    recipe = load_recipe(write_recipe(tmp_path), [*TWO, *late])
    found = outlook(build_plan(recipe, Tokenizer.load("")), recipe.train)
    assert [round(source.share, 2) for source in found] == [0.66, 0.34]
