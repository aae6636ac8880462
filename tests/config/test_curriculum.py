"""The curriculum is a function of the step: ramps of TransV, parts that stand still, runs that continue in both."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jobs import Job, losses, run, weights, write_recipe

from timeviper.callbacks.guard import Guard
from timeviper.config import PhaseConfig, Recipe, TransVConfig, TransVStage
from timeviper.config.checks import recipe as validate
from timeviper.config.curriculum import keep_at, stretches, trainable_at, transv_at
from timeviper.config.load import load_recipe
from timeviper.config.shape import PackShape, mean_tokens, tokens_per_frame
from timeviper.datamodules.build import build_plan
from timeviper.errors import ConfigError
from timeviper.planning.hardware import GPUS, Assumptions
from timeviper.planning.phase_packs import phases_of
from timeviper.planning.stage import plan_stage
from timeviper.tokenizer import Tokenizer
from timeviper.weights.export import build_model

TRANSV = TransVConfig(stages={"early": TransVStage(1, 0.5), "late": TransVStage(3, 0.1, "attention")})
WHOLE = {"early": 1.0, "late": 1.0}
# Two steps of which the first two train the projector alone on whole videos; then TransV closes within four.
PHASES = ["train.phases.whole={start: 0, keep: {late: 1.0}, trainable: [projector]}",
          "train.phases.close={start: 2, keep: {late: 0.25}, ramp: 4}"]  # fmt: skip


def test_a_ramp_starts_from_what_held_before_and_arrives_after_its_steps() -> None:
    close = PhaseConfig(10, keep={"late": 0.2}, ramp=5)
    phases = {"whole": PhaseConfig(0, keep=WHOLE), "close": close, "end": PhaseConfig(20)}
    kept = [keep_at(step, TRANSV, phases) for step in range(25)]
    assert kept[0] == kept[9] == kept[10] == WHOLE
    assert kept[11] == pytest.approx({"early": 0.9, "late": 0.84})
    assert kept[15] == kept[19] == {"early": 0.5, "late": 0.2}, "what the phase does not name is the recipe's"
    assert kept[20] == kept[24] == {"early": 0.5, "late": 0.1}


@given(
    start=st.integers(0, 30),
    first=st.tuples(st.floats(0.5, 1), st.floats(0.01, 0.5)),
    second=st.tuples(st.floats(0.5, 1), st.floats(0.01, 0.5)),
    length=st.integers(1, 30),
    ramps=st.tuples(st.integers(0, 30), st.integers(0, 30)),
)
def test_no_step_of_a_ramp_breaks_the_rules_of_the_stages(start, first, second, length, ramps) -> None:
    a = PhaseConfig(start, keep=dict(zip(WHOLE, first)), ramp=ramps[0])
    b = PhaseConfig(start + length, keep=dict(zip(WHOLE, second)), ramp=ramps[1])
    phases = {"a": a, "b": b}
    before = {"early": 0.5, "late": 0.1}
    for step in range(start + length + 35):
        keep = keep_at(step, TRANSV, phases)
        assert keep["early"] >= keep["late"] > 0
        ramping = next((p.ramp for p in (b, a) if p.start <= step), 0)
        if step > 0 and not ramping and step not in (a.start, b.start):
            assert keep == before
        before = keep
    assert before == pytest.approx(b.keep)


def test_the_parts_that_learn_are_the_latest_phases() -> None:
    recipe = Recipe()
    recipe.train.trainable = ["projector", "decoder"]
    recipe.train.phases = {"only": PhaseConfig(2, trainable=["projector"]), "all": PhaseConfig(4)}
    learning = [trainable_at(step, recipe.train) for step in range(6)]
    assert learning == [["projector", "decoder"]] * 2 + [["projector"]] * 2 + [["projector", "decoder"]] * 2


def test_stretches_cut_the_stage_at_phases_and_within_ramps() -> None:
    recipe = Recipe()
    recipe.train.steps = 100
    ramp = PhaseConfig(10, keep={"late": 0.5}, ramp=40)
    recipe.train.phases = {"a": ramp, "b": PhaseConfig(45), "c": PhaseConfig(90)}
    assert stretches(recipe.train) == [(0, 10), (10, 10), (20, 10), (30, 10), (40, 5), (45, 45), (90, 10)]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("curriculum"))


def loaded(recipe: Path, *overrides: str) -> Recipe:
    return load_recipe(recipe, [*PHASES, *overrides])


def test_packs_are_filled_by_what_transv_keeps_at_the_step(recipe: Path) -> None:
    made = loaded(recipe)
    plan = build_plan(made, Tokenizer.load(made.model.tokenizer))
    a_frame, samples = tokens_per_frame(made.model), []
    for step, planned in zip(range(8), plan.steps()):
        model = replace(made.model, transv=transv_at(step, made.model.transv, made.train.phases))
        for pack in planned.packs:
            text = tuple(i.tokens - i.num_frames * a_frame for i in pack)
            shape = PackShape(tuple(i.num_frames for i in pack), text, 0)
            assert mean_tokens(model, shape) <= made.data.tokens_per_pack
            assert mean_tokens(model, shape) == pytest.approx(sum(i.cost for i in pack), rel=0.1)
        samples.append(sum(map(len, planned.packs)))
    assert samples[0] == samples[1] < samples[7], samples


def test_the_cost_plan_takes_a_ramp_in_pieces(recipe: Path) -> None:
    made = loaded(recipe)
    found = phases_of(made, Assumptions())
    assert [(p.name, p.start, p.steps) for p in found] == [
        ("whole", 0, 2), ("close", 2, 1), ("close from step 3", 3, 1), ("close from step 4", 4, 1),
        ("close from step 5", 5, 1), ("close from step 6", 6, 2),
    ]  # fmt: skip
    kept = [p.model.transv.stages["late"].keep for p in found]
    assert kept == pytest.approx([1.0, 1.0, 0.8125, 0.625, 0.4375, 0.25])


@pytest.mark.parametrize(
    ("phase", "says"),
    [
        ("{start: 0, keep: {lat: 0.2}}", "is no stage; model.transv.stages has late. Did you mean late?"),
        ("{start: 0, keep: {late: 0}}", "above 0 and at most 1"),
        ("{start: 0, ramp: 4}", "has nothing to move: name `keep`"),
        ("{start: 6, keep: {late: 0.2}, ramp: 4}", "longer than the phase, which ends before step 8: at most 2"),
        ("{start: 0, trainable: [tower]}", "names tower, which is not in train.trainable"),
        ("{start: 0, trainable: []}", "is empty"),
    ],
)
def test_what_cannot_work_is_named(recipe: Path, phase: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        load_recipe(recipe, [f"train.phases.odd={phase}"])


def test_a_curriculum_that_does_not_end_where_the_export_begins_is_told(
    recipe: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = loaded(recipe)
    found = {finding.key: finding.message for finding in validate.warnings(made)}
    assert "ends the training at 0.25, but validation and the export keep 0.5" in found["model.transv.stages.late.keep"]


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Path:
    """A run of one rank that keeps the checkpoint of every step."""
    options = ["train.checkpoint_every=1", "train.keep_checkpoints=9", "train.checkpoint_async=false"]
    job = run(recipe.parent, 1, "train", str(recipe), *PHASES, *options, f"out={recipe.parent / 'whole'}")
    read = "up to 1 frames at 1 fps; pictures 1"
    assert f"step 0: phase 'whole': {read}; TransV keeps late 1; trains projector" in job.said()
    assert f"step 2: phase 'close': {read}; TransV goes to late 0.25 in 4 steps" in job.said()
    return recipe.parent / "whole"


@pytest.mark.parametrize(("step", "world"), [(1, 1), (1, 2), (4, 1), (4, 2)])
def test_a_run_continues_before_and_within_a_ramp(recipe: Path, whole: Path, step: int, world: int) -> None:
    """From step 1 transv has not learned yet, and its optimizer state is still empty."""
    cut = whole.with_name(f"cut-{step}-{world}")
    shutil.copytree(whole, cut, ignore=shutil.ignore_patterns("export", "logs"))
    for checkpoint in (cut / "checkpoints").glob("step=*"):
        if int(checkpoint.name.removeprefix("step=")) > step:
            shutil.rmtree(checkpoint)
    (cut / "checkpoints/latest").unlink()
    run(recipe.parent, world, "train", str(recipe), *PHASES, f"out={cut}")
    told, again = losses(whole), losses(cut)
    assert sorted(again) == list(range(step, 8))
    assert [again[s] for s in again] == pytest.approx([told[s] for s in again], rel=2e-6)
    ours, theirs = weights(cut), weights(whole)
    for name, weight in ours.items():
        if world == 1:
            assert torch.equal(weight, theirs[name]), name
        else:
            # AdamW steps by the sign of a gradient, also of one that is nothing but rounding: of a single element then.
            apart = (weight - theirs[name]).abs() - 1e-3 * theirs[name].abs()
            assert (apart > 2e-5).float().mean() <= 0.005, f"{name}: {apart.flatten().topk(5).values.tolist()}"
            assert apart.max() <= 1e-3, f"{name}: {apart.max()}, of steps of at most 1e-2"


def test_parts_that_a_phase_does_not_name_keep_their_bits(recipe: Path) -> None:
    still = ["train.phases.still={start: 0, trainable: [projector]}", "optim.weight_decay=0.1"]
    run(recipe.parent, 2, "train", str(recipe), *still, f"out={recipe.parent / 'still'}")
    after = weights(recipe.parent / "still")
    before = build_model(load_recipe(recipe, still)).state_dict()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"projectors"}


def test_replay_takes_the_step_as_the_curriculum_had_it(recipe: Path) -> None:
    """A loss that no limit of the guard admits, in a step that ramps, and in one that holds parts still."""
    for step in (1, 4):
        out = recipe.parent / f"stopped-{step}"
        job = Job(recipe.parent, 2, "train", str(recipe), *PHASES, f"out={out}", first=unfit, step=step)
        assert job.end() == [1, 1], job.said()
        done = run(recipe.parent, 1, "replay", str(out / f"incidents/step={step}"))
        assert "\nreproduced" in done.said(), done.said()


def unfit(rank: int, *, step: int) -> None:
    """The guard finds fault with a step."""
    plain = Guard.admits

    def admits(self: Guard, module: Any, batch: Any, *figures: Any) -> bool:
        self._reason = lambda loss, norm: "told so" if batch.step == step else None  # type: ignore[method-assign]
        return plain(self, module, batch, *figures)

    Guard.admits = admits  # type: ignore[method-assign]


def test_model_flops_count_no_backward_pass_for_parts_that_stand_still(recipe: Path) -> None:
    """Though it is computed: otherwise MFU would praise work that nobody wants."""
    phases = [load_recipe(recipe, [f"train.phases.one={{trainable: {parts}}}"]) for parts in ("[projector]", "null")]
    still, learning = (plan_stage(made, 1, GPUS["h200"]).phases[0] for made in phases)
    for part in ("attention", "mamba"):
        assert still.model_flops[part].forward == learning.model_flops[part].forward
        assert 0 < still.model_flops[part].backward < learning.model_flops[part].backward
    assert still.executed_flops == learning.executed_flops
