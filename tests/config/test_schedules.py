"""Schedules of TransV by name become stages."""

from __future__ import annotations

import pytest

from timeviper.config.load import dump, load_recipe
from timeviper.errors import ConfigError

OFF = ["model.transv.stages.early=null", "model.transv.stages.late=null"]


def test_a_progressive_schedule_has_a_stage_before_each_attention_block(tmp_path) -> None:
    recipe = load_recipe("recipes/experiments/progressive.yaml")
    stages = recipe.model.transv.stages
    assert [stage.layer for stage in stages.values()] == [3, 8]
    assert [stage.keep for stage in stages.values()] == pytest.approx([0.1**0.5, 0.1])
    published = load_recipe("nano9b/stage2_instruct", ["model.transv.schedule=progressive", *OFF])
    stages = published.model.transv.stages
    assert [*stages] == ["at14", "at21", "at30", "at39"]
    assert [stage.keep for stage in stages.values()] == pytest.approx([0.1**0.25, 0.1**0.5, 0.1**0.75, 0.1])
    dump(recipe, tmp_path / "config.yaml")
    assert load_recipe(tmp_path / "config.yaml").model.transv == recipe.model.transv


def test_a_question_that_ranks_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    load_recipe("tiny/stage2_instruct", ["model.transv.stages.late.query=question"])
    assert "has no effect" not in caplog.text
    load_recipe("tiny/stage2_instruct", ["model.transv.stages.early.query=question"])
    assert "model.transv.stages.early.query = question" in caplog.text
    assert "has no effect with select = uniform" in caplog.text


def test_a_schedule_stands_in_place_of_stages() -> None:
    with pytest.raises(ConfigError, match="makes its own stages; there are early, late too"):
        load_recipe("tiny/stage2_instruct", ["model.transv.schedule=progressive"])
    with pytest.raises(ConfigError, match="must be one of"):
        load_recipe("tiny/stage2_instruct", ["model.transv.schedule=regressive", *OFF])
    with pytest.raises(ConfigError, match="above 0 and below 1"):
        load_recipe("tiny/stage2_instruct", ["model.transv.schedule=progressive", "model.transv.keep=0", *OFF])
