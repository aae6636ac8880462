"""A step that goes wrong: never applied, named by rank, sample and layer, written down, and repeated from that."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jobs import Job, Pictures, incident, losses, plant, run, weights, write_recipe
from model_helpers import HYBRID
from ranks import small_recipe, step_packs

from timeviper.callbacks.guard import Guard
from timeviper.config import ParallelConfig
from timeviper.config.load import load_recipe
from timeviper.datamodules.build import build_plan
from timeviper.datamodules.left_out import plan_step, read_left_out, steps_without, write_left_out
from timeviper.inspection.incident import Incident
from timeviper.inspection.probe import PackReport, Probe, layer_of
from timeviper.inspection.replay import replay
from timeviper.pack import Pack, StepBatch
from timeviper.parallel import wrap_blocks
from timeviper.tokenizer import Tokenizer
from timeviper.weights.export import build_model

WEIGHT = "decoder.blocks.1.mixer.q_proj.weight"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("guard"))


@pytest.fixture(scope="module")
def stopped(recipe: Path) -> Path:
    """The run folder of two ranks that met a NaN in an attention block at step 4."""
    job = Job(
        recipe.parent,
        2,
        "train",
        str(recipe),
        f"out={recipe.parent / 'stopped'}",
        first=plant,
        step=4,
        weight=WEIGHT,
        row=3,
    )
    assert job.end() == [1, 1]
    for rank in (0, 1):
        said = job.said(rank)
        assert "error: step 4: loss nan, gradient norm nan" in said
        assert "First not finite of the forward pass: decoder.blocks.1.mixer.q_proj, rank 0, pack 0" in said
        assert f"Weights not finite: {WEIGHT} (1 values)" in said
        assert "timeviper replay" in said
    return recipe.parent / "stopped"


def test_a_nan_in_a_layer_is_named_and_repeated_in_one_process(stopped: Path) -> None:
    bundle = stopped / "incidents/step=4"
    found = incident(bundle)
    assert (found["step"], found["ranks"], found["policy"]) == (4, 2, "stop")
    packs = found["findings"]["packs"]
    assert [(p["rank"], p["index"]) for p in packs] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all(p["keys"] and p["loss"] == "nan" for p in packs)
    assert packs[0]["activations"]["decoder.blocks.0"]["rms"] > 0
    low, high = packs[0]["steps"]["decoder.blocks.0.mixer.ssm"]
    assert 0 < low < high
    assert set(found["findings"]["gates"]) == {"decoder.transv.late"}
    assert found["checkpoint"].endswith("step=3")
    assert not list(bundle.rglob("*.pt"))
    job = run(stopped.parent, 1, "replay", str(bundle), "--layers")
    assert "reproduced" in job.said()
    assert "NOT" not in job.said()
    assert job.said().count("First not finite of the forward pass: decoder.blocks.1.mixer.q_proj, rank 0, pack 0") == 2


def test_what_cannot_be_replayed_is_one_message(stopped: Path, tmp_path: Path, recipe: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(stopped / "incidents/step=4", tmp_path / name))

    with pytest.raises(ValueError, match="is no incident"):
        replay(tmp_path)
    damaged = copy("damaged")
    (damaged / "incident.json").write_text('{"format": 1')
    with pytest.raises(ValueError, match="is damaged"):
        replay(damaged)
    newer = copy("newer")
    (newer / "incident.json").write_text(json.dumps(incident(newer) | {"format": 99, "timeviper": "9.9"}))
    with pytest.raises(ValueError, match=r"written by timeviper 9\.9 in format 99"):
        replay(newer)
    figures = copy("figures")
    shutil.rmtree(figures / "weights")
    with pytest.raises(ValueError, match="keep_weights"):
        replay(figures)
    with pytest.raises(ValueError, match="not those of the run"):
        replay(copy("other"), ["data.sources.pictures.options={count: 39}"])


def test_the_sample_whose_token_has_a_bad_embedding_is_named_with_its_rank(recipe: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load("")
    common = {i for text in ("What?", "ring ring ring ", " ring") for i in tokenizer.encode(text)}
    token = next(i for i in tokenizer.encode("purple") if i not in common)
    steps = islice(build_plan(load_recipe(recipe), tokenizer).steps(), 8)
    step, rank = next(
        (plan.step, rank)
        for plan in steps
        for rank in (0, 1)
        if any(item.unit.key == Pictures.KEY for pack in plan.share(rank, 2).packs for item in pack)
    )
    out = tmp_path / "run"
    planted = {"step": step, "weight": "decoder.embeddings.weight", "row": token}
    job = Job(tmp_path, 2, "train", str(recipe), f"out={out}", first=plant, **planted)
    assert job.end() == [1, 1]
    bundle = out / f"incidents/step={step}"
    bad = [p for p in incident(bundle)["findings"]["packs"] if p["first"]]
    assert [p["rank"] for p in bad] == [rank]
    assert bad[0]["first"] == {"phase": "forward", "layer": "decoder.embeddings", "keys": [Pictures.KEY]}
    assert f"decoder.embeddings, rank {rank}, pack {bad[0]['index']}, sample {Pictures.KEY}" in job.said()
    assert replay(bundle)


def test_a_skipped_step_changes_nothing_and_is_counted(recipe: Path, tmp_path: Path) -> None:
    options = ["train.guard.policy=skip", "train.checkpoint_every=1", "train.keep_checkpoints=9", "train.steps=5"]
    job = run(tmp_path, 1, "train", str(recipe), f"out={tmp_path}", *options, first=plant, step=2, weight=WEIGHT, row=3)
    assert "The step is skipped, incident 1 of 8" in job.said()
    found = losses(tmp_path)
    assert [math.isnan(found[s]) for s in range(5)] == [False, False, True, False, False]
    before, after, later = (shards(tmp_path / f"checkpoints/step={s}") for s in (2, 3, 4))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not all(torch.equal(before[k], later[k]) for k in before)


def shards(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors of a sharded checkpoint, whole."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.format_utils import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    state: dict[str, Any] = {}
    _load_state_dict(state, FileSystemReader(checkpoint), planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    return {f"{part}.{k}": v for part in ("state_dict",) for k, v in state[part].items()}


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_rewinding_gives_the_weights_of_a_run_that_never_saw_the_data(recipe: Path, tmp_path: Path, world: int) -> None:
    back, without = tmp_path / "back", tmp_path / "without"
    planted = {"step": 4, "weight": WEIGHT, "row": 3}
    job = run(tmp_path, world, "train", str(recipe), f"out={back}", "train.guard.policy=rewind", first=plant, **planted)
    assert "Going on without its data: step 4: back to step=3" in job.said()
    assert read_left_out(back) == {4}
    without.mkdir()
    write_left_out(without, {4})
    run(tmp_path, world, "train", str(recipe), f"out={without}")
    assert losses(back) == losses(without)
    a, b = weights(back), weights(without)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_more_incidents_than_the_limit_stop_the_run(recipe: Path, tmp_path: Path) -> None:
    options = [
        "train.guard.policy=skip",
        "train.guard.limit=2",
        "train.guard.keep_weights=1",
        "optim.lr=1e18",
        "optim.clip=0",
    ]
    job = Job(tmp_path, 1, "train", str(recipe), f"out={tmp_path}", *options)
    assert job.end() == [1]
    assert "Incident 3, more than train.guard.limit=2." in job.said()
    assert job.said().count("The step is skipped") == 2
    kept = sorted((tmp_path / "incidents").iterdir())
    assert [(p / "weights").is_dir() for p in kept] == [True, False, False]


def test_a_spike_is_a_multiple_of_the_running_median() -> None:
    settings = load_recipe("recipes/tiny/stage2_instruct.yaml")
    settings.train.guard.spike, settings.train.guard.window = 10.0, 8
    guard = Guard(settings, Path("nowhere"), frozenset(), "the same command")
    module: Any = SimpleNamespace(trainer=SimpleNamespace(world_size=1))
    for loss, norm in ((5.0, 1.0), (4.0, 900.0)):  # too early to know what is usual
        assert guard.admits(module, StepBatch(0, []), torch.tensor(loss), torch.tensor(norm), torch.tensor(1.0))
    assert guard._reason(41.0, 1.0) is None
    assert guard._reason(46.0, 1.0) == "loss 46, 10.2 times its running median 4.5"
    for _ in range(3):
        guard.admits(module, StepBatch(0, []), torch.tensor(1.0), torch.tensor(2.0), torch.tensor(1.0))
    assert guard._reason(1.0, 25.0) == "gradient norm 25, 12.5 times its running median 2"
    again = Guard(settings, Path("nowhere"), frozenset(), "the same command")
    again.load_state_dict(guard.state_dict())
    assert again._reason(1.0, 25.0) == guard._reason(1.0, 25.0)


@pytest.mark.slow
def test_an_exploding_step_is_repeated_too(recipe: Path, tmp_path: Path) -> None:
    options = ["train.guard.spike=5", "train.guard.window=4"]
    planted = {"step": 5, "weight": "decoder.lm_head.weight", "row": 1, "value": -1e3}
    job = Job(tmp_path, 2, "train", str(recipe), f"out={tmp_path}", *options, first=plant, **planted)
    assert job.end() == [1, 1]
    assert "times its running median" in job.said()
    assert "Largest loss per label" in job.said()
    assert replay(tmp_path / "incidents/step=5")


def test_the_probe_tells_the_backward_pass_from_the_forward_pass() -> None:
    model: Any = build_model(small_recipe())

    class Bad(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradient: torch.Tensor) -> torch.Tensor:
            return gradient[0] * math.inf

    pack = step_packs(0)[0]
    model.decoder.norm_f.register_forward_pre_hook(lambda _, args: (Bad.apply(args[0]),))
    with Probe(model, 0) as probe:
        model(pack).loss_sum.backward()
    (report,) = probe.reports
    last = f"decoder.blocks.{len(HYBRID.layout) - 1}"
    assert report.first is not None
    assert (report.first.phase, report.first.layer) == ("backward", last)
    assert math.isfinite(report.loss)
    assert report.gradients["decoder.norm_f"].not_finite == 0
    assert len(probe._hooks) == 0
    assert {layer_of(n) for n in ("decoder.blocks.3.mixer.q_proj.weight", "decoder.norm_f.weight")} == {
        "decoder.blocks.3",
        "decoder.norm_f",
    }
    assert len(report.steps) == HYBRID.layout.count("M")


def probed(pack: Pack, marked: int | None = None, **parallel: Any) -> PackReport:
    """Of both passes. Where the first norm meets the embedding of the id `marked`, it gives what is no number."""
    model: Any = build_model(small_recipe())
    marker = model.decoder.embeddings.weight[marked or 0]
    wrap_blocks(model, ParallelConfig(**parallel))

    def spoil(_: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
        return out.masked_fill((args[0] == marker).all(-1, keepdim=True), math.nan)

    if marked is not None:
        model.decoder.blocks[0].norm.register_forward_hook(spoil)
    with Probe(model, 0) as probe:
        model(pack).loss_sum.backward()
    return probe.reports[0]


def test_the_probe_sees_a_pack_in_pieces_as_it_sees_the_whole() -> None:
    pack = Pack.join(step_packs(0))
    whole = probed(pack)
    pieces = probed(pack, activation_checkpointing="all", tokens_per_piece=5)
    for kind in ("activations", "gradients"):
        a, b = getattr(whole, kind), getattr(pieces, kind)
        inner = {name for name in a if name.startswith("decoder.blocks.")}
        assert len(inner) > 30
        if kind == "gradients":  # in pieces, that norm runs once for keys and once for queries
            inner -= {f"decoder.blocks.{i}.norm" for i, letter in enumerate(HYBRID.layout) if letter == "*"}
        for name in inner:
            assert b[name].rms == pytest.approx(a[name].rms, rel=1e-4, abs=1e-7), (kind, name)
    for name, (low, high) in whole.steps.items():
        assert pieces.steps[name] == pytest.approx([low, high], rel=1e-5)


def test_the_probe_names_the_sample_of_a_piece() -> None:
    pack = Pack.join(step_packs(0))
    last = pack.lengths[-1]
    ids = pack.ids.clamp(max=HYBRID.vocab_size - 2)
    ids[-last] = HYBRID.vocab_size - 1  # the first token of the last sample
    pack = replace(pack, ids=ids)
    for parallel in ({}, {"activation_checkpointing": "all", "tokens_per_piece": 5}):
        first = probed(pack, HYBRID.vocab_size - 1, **parallel).first
        assert first is not None
        assert (first.layer, first.keys) == ("decoder.blocks.0.norm", pack.keys[-1:])


def test_steps_are_left_out_and_renumbered(recipe: Path) -> None:
    plan = build_plan(load_recipe(recipe), Tokenizer.load(""))
    whole = list(islice(plan.steps(), 9))
    assert [plan_step(s, {2, 3, 6}) for s in range(6)] == [0, 1, 4, 5, 7, 8]
    for start in range(6):
        rest = list(islice(steps_without(plan, start, {2, 3, 6}), 6 - start))
        assert [p.step for p in rest] == list(range(start, 6))
        assert [p.packs for p in rest] == [whole[i].packs for i in [0, 1, 4, 5, 7, 8][start:]]


def test_numbers_that_are_not_finite_survive_the_report(stopped: Path) -> None:
    found = Incident.read(stopped / "incidents/step=4")
    assert math.isnan(found.loss)
    assert found.findings.first() is not None
