"""`timeviper plan`: counts against real models and real shards, phases, verdicts, and what it says of bad input."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import cast

import pytest
import torch
import torch.distributed as dist
from bench_pieces import LiveBytes
from cost_helpers import make_pack
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.utils._pytree import tree_leaves
from tree import ROOT
from typer.testing import CliRunner

from timeviper.cli.main import app
from timeviper.config import LoraConfig, Recipe
from timeviper.config.load import load_recipe
from timeviper.config.presets import PRESETS
from timeviper.config.shape import PackShape, mean_tokens
from timeviper.errors import ConfigError
from timeviper.parallel import ShardedModel, parallelize
from timeviper.planning.advice import remedies
from timeviper.planning.hardware import GPUS, Assumptions
from timeviper.planning.memory import peak_memory
from timeviper.planning.parameters import count_parameters, parameter_counts, sharded_parameters, total
from timeviper.planning.phase_packs import longest_pack, phases_of
from timeviper.planning.stage import plan_stage
from timeviper.training.optim import build_optimizer
from timeviper.training.step import accumulate
from timeviper.weights.export import build_model, meta_model

RECIPES = ROOT / "recipes"
H200 = GPUS["h200"]


def recipe(name: str, *overrides: str) -> Recipe:
    return load_recipe(RECIPES / f"{name}.yaml", overrides)


# Parameters of the published checkpoints' language models.
PUBLISHED = {"nano9b": 8_888_227_328, "qwen25_7b": 7_615_616_512, "smollm2_135m": 134_515_008}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_parameter_counts_are_those_of_the_published_models(preset: str) -> None:
    made = Recipe(model=PRESETS[preset]())
    made.train.trainable = ["projector", "decoder"]
    counts = parameter_counts(made)
    assert counts["decoder"].total == counts["decoder"].trainable == PUBLISHED[preset]
    tower, width = made.model.towers["main"], made.model.decoder.width
    assert counts["projector"].total == (tower.width + 1) * width + (width + 1) * width
    assert counts["tower"].trainable == 0


def test_parameter_counts_are_those_of_the_model_that_trains() -> None:
    """Tied embeddings count once; with adapters, these alone learn in their part."""
    made = recipe("tiny/stage2_instruct")
    made.train.init_from = ""
    made.model.lora = LoraConfig(rank=4)
    model = build_model(made)
    counts = parameter_counts(made)
    assert counts == count_parameters(model)
    assert total(counts).total == sum(p.numel() for p in model.parameters())
    assert total(counts).trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    adapters = sum(p.numel() for name, p in model.named_parameters() if "lora" in name)
    assert 0 < counts["decoder"].trainable == adapters < counts["decoder"].total


@pytest.fixture
def mesh(tmp_path: Path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("changes", [(), ("parallel.param_dtype=bfloat16",)])
def test_units_are_those_that_fsdp_gathers(mesh, changes) -> None:
    """Elements and dtype of every group of parameters after `fully_shard`."""
    made = recipe("tiny/stage2_instruct", *changes)
    planned = sharded_parameters(meta_model(made), made.parallel)
    expected = Counter((sum(map(prod, u.shapes)), u.dtype_bytes) for u in planned)
    model = parallelize(meta_model(made), mesh, made.parallel)
    found = Counter()
    for module in model.modules():
        group = module._get_fsdp_state()._fsdp_param_group if isinstance(module, FSDPModule) else None
        if group is not None and group.modules[0] is module:
            dtype = group.mp_policy.param_dtype or torch.float32
            found[sum(p._orig_size.numel() for p in group.fsdp_params), dtype.itemsize] += 1
    assert found == expected


@pytest.mark.slow
@pytest.mark.parametrize("packs", [1, 2])
@pytest.mark.parametrize(
    "parallel",
    [
        ("param_dtype=float32",),
        ("param_dtype=bfloat16", "activation_checkpointing=all"),
        ("param_dtype=bfloat16", "reduce_every_pack=true"),
    ],
    ids=["float32", "bfloat16, checkpointed", "reduced every pack"],
)
def test_peak_memory_is_that_of_a_step_under_fsdp(mesh, parallel, packs: int) -> None:
    """All live tensors of a real second step: weights, moments, gradients, gathered units, activations. The law may be
    above by the shards of gradients that are not reduced yet at its fullest moment."""
    made = recipe("tiny/stage2_instruct", "model.decoder.width=256", "model.decoder.ssm_heads=16")
    made = replace(made, parallel=recipe("tiny/stage2_instruct", *(f"parallel.{p}" for p in parallel)).parallel)
    made.train.init_from = ""
    model = cast(ShardedModel, build_model(made, lambda m: parallelize(m, mesh, made.parallel)))
    optimizer, pack = build_optimizer(model, made.optim), make_pack((120,), (100,))
    labels = torch.tensor(5.0 * packs)
    accumulate(model, [pack] * packs, labels, 1, torch.device("cpu"))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    live = LiveBytes()
    for tensor in (*model.parameters(), *tree_leaves(list(optimizer.state.values())), pack.frames):
        if isinstance(tensor, torch.Tensor):
            live.add(tensor)
    with live:
        accumulate(model, [pack] * packs, labels, 1, torch.device("cpu"))
    units = sharded_parameters(meta_model(made), made.parallel)
    law = peak_memory(made, units, PackShape.of(pack), 1, packs, "cpu").peak.bytes
    unreduced = 4 * sum(u.trained_elements for u in units) if packs == 1 else 0
    assert 0.95 * live.peak < law < 1.08 * live.peak + unreduced


def test_shards_are_cut_by_rows_and_rounded_up() -> None:
    made = recipe("nano9b/stage2_instruct")
    units = sharded_parameters(meta_model(made), made.parallel)
    whole = total(parameter_counts(made))
    assert sum(u.shard_bytes(1) for u in units) == 4 * whole.total
    assert sum(u.shard_elements(1) for u in units) == whole.trainable
    eighth = sum(u.shard_elements(8) for u in units)
    assert whole.trainable / 8 <= eighth < whole.trainable / 8 * 1.001
    gate = next(u for u in units if (1,) in u.shapes)
    assert replace(gate, shapes=((1,),), trained=(True,)).shard_elements(8) == 1  # on one rank, none on the others


def test_phases_follow_the_curriculum() -> None:
    made = recipe("nano9b/stage3_long")
    found = phases_of(made, Assumptions())
    assert [(p.name, p.start, p.steps, p.frames.max_frames) for p in found] == [
        ("start", 0, 200, 256),
        ("quarter", 200, 200, 1024),
        ("hour", 400, 200, 4096),
        ("hours", 600, 200, 10240),
    ]
    assert found[-1].frames.fps == 2
    assert found[-1].weights["short"] == 0
    for phase in found:
        (pack,) = phase.packs
        one = PackShape(pack.frames[:1], pack.text[:1], 0)
        limit = made.data.tokens_per_pack
        assert mean_tokens(made.model, pack) <= limit < mean_tokens(made.model, pack) + mean_tokens(made.model, one)


def test_packs_come_from_the_index_where_there_is_one(world: Path) -> None:
    made = recipe("tiny/stage2_instruct", *(f"data.sources.{n}.shards={world}/train/{n}" for n in ("images", "clips")))
    for name in ("videos", "questions", "motion"):
        made.data.sources[name].shards = f"{world}/train/videos"  # pyright: ignore[reportOptionalMemberAccess]
    (phase,) = phases_of(made, Assumptions(index_steps=2))
    assert phase.source == "shard index"
    assert len(phase.packs) == 2
    for pack in phase.packs:
        assert len(set(pack.frames)) > 1
        assert mean_tokens(made.model, pack) == pytest.approx(made.data.tokens_per_pack, rel=0.1)


def test_a_stage_that_does_not_fit_is_told_what_helps() -> None:
    """One GPU holds neither weights, moments and gradients in float32 (16 bytes each of 9 G parameters) nor more."""
    made = recipe("nano9b/stage2_instruct")
    plan = plan_stage(made, 1, H200)
    assert not plan.fits
    assert plan.peak_gb > 16 * 9.02
    found = remedies(made, plan)
    assert all(remedy.peak_gb < plan.peak_gb for remedy in found)
    assert any(remedy.fits for remedy in found)
    more = next(remedy for remedy in found if remedy.change.startswith("--gpus"))
    gpus = int(more.change.split()[1])
    assert plan_stage(made, gpus, H200).fits
    assert not plan_stage(made, gpus // 2, H200).fits
    offload = next(remedy for remedy in found if "offload_params" in remedy.change)
    applied = recipe("nano9b/stage2_instruct", offload.change)
    assert plan_stage(applied, 1, H200).peak_gb == pytest.approx(offload.peak_gb)
    assert offload.hours > plan.hours


def test_changes_that_are_not_enough_alone_are_tried_together() -> None:
    """Adapters leave 36 GB of frozen weights in float32: on 48 GB their dtype must go, too."""
    made = recipe("nano9b/stage2_instruct")
    found = remedies(made, plan_stage(made, 1, GPUS["l40s"]))
    alone = [r for r in found if len(r.change.split()) <= 2 and "--gpus" not in r.change]
    assert [r.change for r in alone if r.fits] == ["parallel.offload_params=true"]
    (together,) = (r for r in found if "lora" in r.change and "frozen_dtype" in r.change)
    assert together.fits
    applied = recipe("nano9b/stage2_instruct", *together.change.split())
    assert plan_stage(applied, 1, GPUS["l40s"]).peak_gb == pytest.approx(together.peak_gb)


def test_checkpointing_and_sharding_trade_as_they_should() -> None:
    base = recipe("nano9b/stage2_instruct")
    kept = recipe("nano9b/stage2_instruct", "parallel.activation_checkpointing=none")
    a, b = plan_stage(base, 8, H200), plan_stage(kept, 8, H200)
    assert b.peak_gb > a.peak_gb
    assert b.hours < a.hours
    assert plan_stage(base, 16, H200).peak_gb < a.peak_gb
    assert plan_stage(base, 8, GPUS["l40s"]).hours > 2 * a.hours
    fast = plan_stage(base, 8, H200, Assumptions(efficiency=0.8))
    assert a.hours / 2 <= fast.hours < a.hours
    copies = recipe("nano9b/stage2_instruct", "parallel.replicas=2")
    weights = [plan_stage(r, 16, H200).phases[0].memory.peak.items["master weights"] for r in (base, copies)]
    assert weights[1] == pytest.approx(2 * weights[0], rel=0.01)


def test_gradients_wait_whole_between_packs_unless_each_is_reduced() -> None:
    """Without synchronisation FSDP2 keeps them unsharded: what one pack a rank does not need."""
    made = recipe("nano9b/stage2_instruct", "parallel.reduce_every_pack=false")
    units = sharded_parameters(meta_model(made), made.parallel)
    pack = longest_pack(made, 256, "", Assumptions())
    one, two = (peak_memory(made, units, pack, 64, packs).peak for packs in (1, 2))
    name = "gradients of earlier packs, whole"
    assert name not in one.items
    assert two.items[name] == 4 * sum(u.trained_elements for u in units)
    reduced = peak_memory(recipe("nano9b/stage2_instruct"), units, pack, 64, 2).peak
    assert name not in reduced.items
    assert reduced.items["gradients"] == 4 * sum(u.shard_elements(64) for u in units)


def test_every_recipe_can_be_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before there is any data: recipes name their shards relative to where they run."""
    monkeypatch.chdir(tmp_path)
    for path in sorted(RECIPES.glob("*/*.yaml")):
        made = load_recipe(path)
        plan = plan_stage(made, 1, H200)
        assert plan.hours > 0
        assert sum(p.steps for p in plan.phases) == made.train.steps, path
        assert all(0 < p.mfu < 1 for p in plan.phases), path


def run(*args: str):
    return CliRunner().invoke(app, ["plan", *args])


def test_one_recipe_and_two_as_json_and_as_tables() -> None:
    stage2, stage3 = (str(RECIPES / f"nano9b/{name}.yaml") for name in ("stage2_instruct", "stage3_long"))
    report = json.loads(run(stage2, "--gpus", "8", "--json", "data.frames.max_frames=128").stdout)
    (phase,) = report["phases"]
    assert phase["max_frames"] == 128
    assert report["fits"] is True
    assert report["hours"] == pytest.approx(phase["steps"] * phase["step_s"] / 3600)
    assert phase["memory"]["peak"]["items"]["master weights"] > 4e9
    both = json.loads(run(stage2, stage3, "--json").stdout)
    row = both["compared"]["hours"]
    assert row["difference"] == pytest.approx(both["b"]["hours"] - both["a"]["hours"])
    text = run(stage3, "--gpus", "2").stdout
    for said in ("DOES NOT FIT", "frames a second, at most", "tokens: after late, from block 39", "--gpus", "assumed:"):
        assert said in text
    assert "b - a" in run(stage3, stage2, "data.workers=1").stdout


def test_bad_input_is_named() -> None:
    stage3 = str(RECIPES / "nano9b/stage3_long.yaml")
    for args, words in (
        (("--gpu", "b200"), ("b200", "h200, h100")),
        (("--gpus", "0"), ("--gpus 0",)),
        (("--gpus", "7"), ("data.packs_per_step", "7 GPUs")),
        (("--gpus", "8", "parallel.replicas=3"), ("parallel.replicas", "8 GPUs")),
        (("--efficiency", "2"), ("--efficiency",)),
        ((stage3, stage3), ("3 recipes",)),
    ):
        error = run(stage3, *args).exception
        assert isinstance(error, ValueError), args
        assert all(word in str(error) for word in words), (args, str(error))
    made = recipe("nano9b/stage3_long")
    made.data.tokens_per_pack = 60_000
    with pytest.raises(ValueError, match=r"10,240 frames in phase 'hours' costs .* more than"):
        plan_stage(made, 8, H200)
    with pytest.raises(ConfigError):
        plan_stage(made, 6, H200)
