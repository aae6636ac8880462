"""Drops against stages of the product, joint measurements against `eval`'s own overrides, and what the verb writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from export_helpers import random_run
from model_helpers import HYBRID, PLAIN, PUBLISHED, make_decoder
from viper_helpers import config, make_model, sample

from timeviper.analysis.drop import OWN, OWN_DROP, WHOLE, Drop, drops, measure, measure_jointly, stage
from timeviper.analysis.options import Words
from timeviper.analysis.redundancy_findings import findings, warnings
from timeviper.analysis.redundancy_study import (
    SETTINGS,
    Options,
    Redundancy,
    own_costs,
    read_options,
    stages_of,
    study,
    table_of,
)
from timeviper.analysis.samples import Samples
from timeviper.analysis.schedule import BudgetError, Schedule, Step, all_schedules
from timeviper.analysis.schedule_recipe import recipe_text, words_for_eval, write_recipe
from timeviper.analysis.scores import MEASURES, Judge, Scores
from timeviper.analysis.subject import load_subject
from timeviper.analysis.walk import Walk
from timeviper.cli.main import app
from timeviper.config import TransVConfig, TransVStage
from timeviper.config.load import load_recipe
from timeviper.config.shape import PackShape
from timeviper.errors import ConfigError
from timeviper.model.decoder import Decoder
from timeviper.model.transv_stages import other_stages
from timeviper.pack import Pack
from timeviper.weights.export import load_export


def asked(*words: str, decoder: Decoder | None = None) -> Options:
    return read_options(Words("analyse redundancy", words, SETTINGS), decoder or make_decoder(HYBRID))


def with_video() -> Pack:
    return Pack.join([sample("2c12v3i4a", 3, 1), sample("1c4v2i1a", 1, 3), sample("2c8v2i4v3i5a", 3, 4)])


def close(a: Scores, b: Scores) -> None:
    for name in MEASURES:
        torch.testing.assert_close(
            torch.tensor(getattr(a, name)), torch.tensor(getattr(b, name)), rtol=1e-9, atol=1e-12
        )


@torch.no_grad()
def test_a_drop_is_a_stage_that_transfers_nothing() -> None:
    """Of every rule and place, on a pack, continued from the middle: the same as the whole model with that stage."""
    model, pack = make_model(config(PUBLISHED)), with_video()
    every = drops(
        HYBRID.layout, [0, 2, 3, 5, 6], [1.0, 0.5, 0.1, 0.0], ["uniform", "random", "last", "question", "mamba"]
    )
    found = dict(measure(model, pack, every))
    with other_stages(model, TransVConfig()):
        judge = Judge(model.decoder, pack, Walk(model.decoder, model.embed(pack), pack).end())
    assert set(found) == {WHOLE, *every}
    for drop in every:
        if drop.keep == 1.0:
            assert max(found[drop].kl) == 0.0  # exactly
        elif drop.keep and drop.rule != "random":
            with other_stages(model, TransVConfig(stages={"probe": stage(drop.place, drop.keep, drop.rule)})):
                close(found[drop], judge.scores(Walk(model.decoder, model.embed(pack), pack).end()))
    draws = [found[Drop(3, 0.5, "random", seed)].kl for seed in range(3)]
    assert draws[0] != draws[1] != draws[2]
    uniform, nothing = found[Drop(0, 0.5, "uniform")], found[Drop(0, 0.0, "uniform")]
    assert nothing == found[Drop(0, 0.0, "random", 2)]  # whoever chooses, nothing is left
    assert uniform.kl != nothing.kl


def test_chance_is_a_samples_own() -> None:
    pack, model = with_video(), make_model()
    alone = sample("1c4v2i1a", 1, 3)
    drop = Drop(3, 0.5, "random", 1)
    together, single = dict(measure(model, pack, [drop]))[drop], dict(measure(model, alone, [drop]))[drop]
    assert together.kl[1] == pytest.approx(single.kl[0], abs=1e-12)


def test_a_rule_ranks_only_with_blocks_that_it_can_rank_with() -> None:
    found = drops("M-*", [0, 2], [0.5], ["uniform", "last", "mamba"])
    assert [(d.place, d.rule) for d in found] == [(0, "uniform"), (0, "mamba"), (2, "uniform"), (2, "last")]
    with pytest.raises(KeyError):
        stage(0, 0.5, "random")


def test_the_table_takes_the_best_rule_and_spares_the_mlp_before_it() -> None:
    options = asked("keep=.5,.1,1,0", "select=uniform,last,random")
    kl = {drop.name: 1.0 for drop in drops(HYBRID.layout, options.places, options.keeps, options.rules)}
    kl |= {"5 0.5 last 0": 0.25, "3 0.1 uniform 0": 0.5, "2 0.5 random 0": 0.0}
    table = table_of(HYBRID.layout, options, {name: Scores([v], [0.0], [0.0]) for name, v in kl.items()})
    assert table.ratios == (0.5, 0.1)  # no recipe keeps all or nothing
    place = {p: i for i, p in enumerate(options.places)}
    assert table.layer[:, 0].tolist() == [
        0,
        1,
        3,
        5,
        6,
    ]  # M-*M-*M-: behind the mixer before, but a ranking before its own
    assert table.layer[:, 1].tolist() == [0, 1, 3, 4, 6]
    assert table.rule[place[5]] == ("last", "uniform")
    assert table.loss[place[5]].tolist() == [0.25, 1.0]
    assert table.loss[place[2], 0] == 1.0  # chance is no rule of a recipe


@torch.no_grad()
def test_whole_schedules_and_the_runs_own() -> None:
    model, pack = make_model(config(PUBLISHED)), with_video()
    schedule = Schedule((Step(0, 0.5, "mamba"), Step(2, 0.25, "last"), Step(4, 0.1, "uniform")), 0.0, {})
    stages = stages_of(schedule, [*model.decoder.transv])
    found = dict(measure_jointly(model, pack, {"0": TransVConfig(stages=stages)}))
    assert set(found) == {"0", OWN, OWN_DROP}
    with other_stages(model, TransVConfig()):
        before = model(pack, label_logits=True)
    judge = Judge(model.decoder, pack, before.decoder.hidden[pack.labels[before.decoder.index] >= 0])
    own = model(pack)
    close(found[OWN], judge.scores(own.decoder.hidden[pack.labels[own.decoder.index] >= 0]))
    assert found[OWN].kl != found[OWN_DROP].kl
    assert stages_of(schedule, ["at2", "at2x"]).keys() == {"at0", "at2xx", "at4"}


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_run(tmp_path_factory.mktemp("run"), val=world / "val/videos")


def test_the_recipe_trains_and_its_words_evaluate_what_was_measured(run: Path, tmp_path: Path) -> None:
    """The file is a recipe with these stages alone; the run under the printed words gives the measured figures."""
    subject = load_subject(run)
    schedule = Schedule((Step(3, 0.5, "question"), Step(4, 0.1, "uniform")), 0.1, {})
    path = write_recipe(subject, schedule, tmp_path / "deep/schedule.yaml", ["why " * 60])
    recipe = load_recipe(path, to_train=False)
    assert recipe.name == "stage2_instruct_schedule"
    assert recipe.model.transv.stages == {
        "at3": TransVStage(3, 0.5, "attention", "question"),
        "at4": TransVStage(4, 0.1, "uniform"),
    }
    assert replace(recipe, name="", model=None) == replace(subject.recipe, name="", model=None)  # pyright: ignore[reportArgumentType]
    assert max(map(len, path.read_text().splitlines())) < 120
    words = words_for_eval(subject, schedule)
    model, changed, _ = load_export(run / "export", words)
    assert [s.transfer for s in changed.model.transv.stages.values()] == [False, False]
    options = asked(
        "budget.flops=.7", "samples=4", "keep=.5,.1", "select=uniform,question", decoder=subject.model.decoder
    )
    found = study(subject, options, tmp_path / "kept.jsonl", lambda *_: None)
    best = found.chosen[found.winner or 0]
    model, _, _ = load_export(run / "export", words_for_eval(subject, best))
    kl = []
    for items in (samples := Samples(subject, 4)).bins:
        pack = samples.pack(items)
        assert pack is not None
        with torch.no_grad(), other_stages(subject.model, TransVConfig()):
            judge = Judge(
                subject.model.decoder, pack, Walk(subject.model.decoder, subject.model.embed(pack), pack).end()
            )
        with torch.no_grad():
            kl += judge.scores(Walk(model.decoder, model.embed(pack), pack).end()).kl
    assert kl == pytest.approx(found.joint[str(found.winner)].kl, rel=1e-4, abs=1e-7)


def test_names_of_the_old_stages_are_not_taken_and_their_phases_go(world: Path, tmp_path: Path) -> None:
    settings = ["model.transv.stages.at4.layer=6", "model.transv.stages.at4.keep=0.4", "model.transv.stages.early=null"]
    settings += [
        "model.transv.stages.late=null",
        "train.phases.soon.start=10",
        "train.phases.soon.max_frames=9",
        "train.phases.soon.keep.at4=0.9",
    ]
    subject = load_subject(random_run(tmp_path / "run", *settings, val=world / "val/videos"))
    schedule = Schedule((Step(4, 0.1, "uniform"),), 0.1, {})
    recipe = load_recipe(write_recipe(subject, schedule, tmp_path / "schedule.yaml", []), to_train=False)
    assert recipe.model.transv.stages == {"at4x": TransVStage(4, 0.1, "uniform")}
    assert {name: (p.start, p.max_frames, p.keep) for name, p in recipe.train.phases.items()} == {
        "soon_as_before": (10, 9, {})
    }
    assert load_export(subject.export, words_for_eval(subject, schedule))[1].model.transv.stages["at4x"].layer == 4
    nothing = recipe_text(subject, Schedule((), 0.0, {}), tmp_path / "none.yaml")
    assert "at4: null" in nothing


def test_a_run_without_transv(world: Path, tmp_path: Path) -> None:
    """Nothing of its own is measured, and the recipe lets the transfers learn."""
    off = ["model.transv.stages.early=null", "model.transv.stages.late=null", "train.trainable=[projector,decoder]"]
    subject = load_subject(random_run(tmp_path / "run", *off, val=world / "val/videos"))
    options = asked("budget.kv=.9", "samples=2", "at=3,8", "select=last", decoder=subject.model.decoder)
    found = study(subject, options, tmp_path / "kept.jsonl", lambda *_: None)
    assert set(found.joint) == {str(i) for i in range(len(found.chosen))}
    assert found.own_costs == pytest.approx({"flops": 1.0, "tokens": 1.0, "kv": 1.0})
    assert "trained with stages" not in " ".join(warnings(found))
    recipe = load_recipe(write_recipe(subject, found.chosen[0], tmp_path / "schedule.yaml", []), to_train=False)
    assert recipe.train.trainable == ["projector", "decoder", "transv"]
    assert len(recipe.model.transv.stages) >= 1


def test_own_costs_are_those_of_the_runs_stages(run: Path) -> None:
    subject = load_subject(run)
    costs = own_costs(subject, [PackShape((12,), (40,), 0)])
    assert costs["tokens"] == pytest.approx((5 + 3 * 0.5 + 2 * 4 / 48) / 10)  # 48 tokens: 24 behind block 5, 4 behind 8
    assert costs["kv"] == pytest.approx((88 + 44) / 176)


def made_up(kl: float, predicted: float) -> Redundancy:
    """Two places whose uniform drops cost 0.4 and 0.01 nats, chance 0.2 and 0.01; 50 videos."""
    options = asked(
        "select=uniform,random", "keep=.1", "budget.tokens=.6", decoder=make_decoder(replace(HYBRID, layout="*M"))
    )
    means = {"0 0.1 uniform 0": 0.4, "1 0.1 uniform 0": predicted}
    means |= {f"{p} 0.1 random {s}": v for p, v in ((0, 0.2), (1, predicted)) for s in range(3)}
    scores = {name: Scores([v] * 50, [1.0 - v] * 50, [0.0] * 50) for name, v in means.items()}
    scores[WHOLE] = Scores([0.0] * 50, [1.0] * 50, [0.0] * 50)
    table = table_of("*M", options, scores)
    every = all_schedules(table, {"tokens": np.array([[0.5, 0.5], [0.05, 0.05]])})
    keys = [f"v{i}" for i in range(50)]
    found = Redundancy("*M", {}, scores, keys, [], options, table, every, every.best({"tokens": 0.6}))
    found.joint = {"0": Scores([kl] * 50, [0.9] * 50, [0.0] * 50)}
    return found


def test_what_the_figures_say() -> None:
    cliff, free, chance, chosen = findings(made_up(0.012, 0.01))
    assert "the cliff is at block 0 (attention). Before it a drop costs 0.4 nats and leaves 0.600 right" in cliff
    assert free.startswith("From block 1 on keep 0.1 costs less than 0.05 nats")
    assert (
        "uniform against chance, 2 places and shares: worse in 1 (most before block 0, keep 0.1: 0.4 against 0.2"
        in chance
    )
    assert "keep 0.1 (uniform) before block 1. Takes tokens 0.550 of what no stage takes. Predicted 0.0100" in chosen
    assert "measured 0.0120" in chosen
    assert warnings(made_up(0.012, 0.01)) == []
    assert "not additive" in warnings(made_up(0.03, 0.01))[0]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["select=best"], "has no best: write uniform, random, last, question or mamba"),
        (["keep=2"], "must be shares from 0 to 1"),
        (["keep=x"], "must be shares from 0 to 1"),
        (["keep="], "must be shares from 0 to 1"),
        (["at=1"], "names blocks of .* where tokens meet"),
        (["at=99"], "names blocks of .* where tokens meet"),
        (["stages=4"], "must be a whole number from 1 to 3"),
        (["budget.flops=0"], "must be a share above 0 and at most 1"),
        (["budget.flops=many"], "must be a share above 0 and at most 1"),
        (["budget.time=.5"], "is no setting of analyse redundancy, .*budget.tokens"),
        (["budget.kv=.5", "select=random"], "leaves nothing that a recipe can do"),
        (["budget.kv=.5", "keep=0,1"], "leaves nothing that a recipe can do"),
        (["budget.kv=.5", "select=last", "at=0"], "leaves nothing that a recipe can do"),
    ],
)
def test_settings_that_cannot_be(words: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        asked(*words)


def test_a_transformer_cannot_rank_by_mamba() -> None:
    options = asked(decoder=make_decoder(PLAIN))
    assert options.rules == ("uniform", "random", "last", "question")
    assert options.notes == ("No block that is looked at can rank by mamba: it is left out.",)


def test_the_verb(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["analyse", "redundancy", str(run), "samples=5", "at=0,3,8", "keep=.5,.1", "--out", str(tmp_path)]
    app([*common, "budget.tokens=.6"], standalone_mode=False)
    told = capsys.readouterr().out
    assert "keep 0.1, the rest dropped before a block: answers right (KL" in told
    assert f"timeviper train {tmp_path}/schedule.yaml" in told
    written = json.loads((tmp_path / "redundancy.json").read_text())
    assert len(written["drops"]) == 2 * (3 + 3 + 2 + 2 + 1)  # shares; uniform, chance, two at *, mamba at M
    assert [s["best"] for s in written["schedules"]].count(True) == 1
    assert all(s["costs"]["tokens"] <= 0.6 for s in written["schedules"])
    assert written["eval"][0] == "model.transv.stages.early=null"
    table = (tmp_path / "redundancy-drops.jsonl").read_bytes()
    page = (tmp_path / "redundancy.html").read_text()
    assert "Schedules that nothing beats" in page
    assert "What not to conclude" in page
    assert len([*tmp_path.glob("redundancy-*.svg")]) == 5
    (tmp_path / "schedule.yaml").unlink()
    app([*common, "--json"], standalone_mode=False)  # without a budget there is a table and a frontier
    assert json.loads(capsys.readouterr().out)["schedules"] == []
    assert not (tmp_path / "schedule.yaml").exists()
    assert (tmp_path / "redundancy-drops.jsonl").read_bytes() == table  # nothing was measured again
    with pytest.raises(BudgetError, match=r"budget\.kv=0\.01 cannot be met .* The nearest is budget\.kv=0\."):
        app([*common, "budget.kv=.01"], standalone_mode=False)
