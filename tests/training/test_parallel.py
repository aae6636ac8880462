"""Sharding, activation checkpointing, offloading and initialisation without ever holding the whole model."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import bench_sharding
import pytest
import torch
import torch.distributed as dist
from ranks import Trained, first_weights, run_ranks, small_recipe, train_all
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from tree import ROOT
from viper_helpers import TOWER

from timeviper.config import BLOCK_TYPES, Recipe, SourceConfig, TowerConfig, TransVConfig
from timeviper.config.checks.recipe import problems
from timeviper.config.load import load_recipe
from timeviper.errors import ConfigError
from timeviper.model.tags import TagModel
from timeviper.model.viper import TimeViper
from timeviper.parallel import parallelize, sharding_plan, unwrapped
from timeviper.tokenizer import Tokenizer
from timeviper.weights.export import build_model, load_export, meta_model, write_export

torch.set_num_threads(1)
SETTINGS = [
    small_recipe(),
    small_recipe(activation_checkpointing="all"),
    small_recipe(activation_checkpointing="mamba, transv"),
    small_recipe(offload_activations=True),
    small_recipe(activation_checkpointing="all", offload_activations=True, offload_params=True),
]
BF16 = [
    small_recipe(param_dtype="bfloat16"),
    small_recipe(param_dtype="bfloat16", activation_checkpointing="all", offload_activations=True),
]


def distilling(recipe: Recipe) -> Recipe:
    return replace(recipe, train=replace(recipe.train, distill=0.5))


DISTILLING = [distilling(recipe) for recipe in (SETTINGS[0], SETTINGS[-1])]


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def assert_same(a: Trained, b: Trained) -> None:
    assert b.losses == pytest.approx(a.losses, abs=1e-6)
    assert largest_difference(a.gradients, b.gradients) <= 1e-6
    assert max(a.norms) > 0.1


@pytest.fixture(scope="module")
def one_rank() -> list[Trained]:
    return run_ranks(1, train_all, [*SETTINGS, *BF16, *DISTILLING])[0]


@pytest.mark.parametrize("which", range(1, len(SETTINGS)))
def test_checkpointing_and_offloading_change_no_gradient(one_rank: list[Trained], which: int) -> None:
    assert_same(one_rank[0], one_rank[which])
    assert one_rank[which].after.keys() == one_rank[0].after.keys()


def test_checkpointing_and_offloading_change_no_gradient_in_bfloat16(one_rank: list[Trained]) -> None:
    assert_same(*one_rank[-4:-2])
    assert one_rank[-3].losses != one_rank[0].losses


def test_distilling_sharded_checkpointed_and_offloaded_has_the_same_gradients(one_rank: list[Trained]) -> None:
    assert_same(*one_rank[-2:])
    assert one_rank[-1].losses[0] == pytest.approx(one_rank[0].losses[0], abs=1e-6)  # of the labels alone
    assert largest_difference(one_rank[-1].gradients, one_rank[0].gradients) > 1e-3
    for found in run_ranks(2, train_all, DISTILLING[:1])[1]:
        assert_same(one_rank[-2], found)


def test_two_ranks_have_the_gradients_and_the_first_weights_of_one(one_rank: list[Trained]) -> None:
    for found in run_ranks(2, train_all, [SETTINGS[0], SETTINGS[-1]])[1]:
        assert_same(one_rank[0], found)
        for name, tensor in one_rank[0].before.items():
            assert torch.equal(tensor, found.before[name]), name


def test_four_ranks_in_two_replicas_have_the_gradients_of_one(one_rank: list[Trained]) -> None:
    (found,) = run_ranks(4, train_all, [small_recipe(replicas=2)])[3]
    assert_same(one_rank[0], found)


# ---- what is sharded how --------------------------------------------------------------------------------


@pytest.fixture
def eight_ranks():
    dist.init_process_group("fake", rank=3, world_size=8, store=FakeStore())
    yield init_device_mesh("cpu", (8,))
    dist.destroy_process_group()


def local_numel(model: nn.Module) -> int:
    return sum(cast(DTensor, p).to_local().numel() for p in model.parameters())


@pytest.mark.parametrize("stage", ["stage1_align", "stage2_instruct", "stage3_long"])
def test_every_nano9b_stage_is_planned_for_eight_ranks_without_memory(stage: str, eight_ranks: Any) -> None:
    recipe = load_recipe(ROOT / f"recipes/nano9b/{stage}.yaml")
    model = meta_model(recipe)
    counts = {name: p.numel() for name, p in model.named_parameters()}
    learn = {name for name, p in model.named_parameters() if p.requires_grad}
    total = sum(counts.values())
    plan = sharding_plan(model, recipe.parallel)
    once = [id(p) for unit in plan[:-1] for m in unit.modules for p in m.parameters()]
    parallelize(model, eight_ranks, recipe.parallel)
    assert all(isinstance(p, DTensor) and p.is_meta and p.dtype == torch.float32 for p in model.parameters())
    assert 9.3e9 < total < 9.5e9
    assert local_numel(model) == pytest.approx(total / 8, rel=1e-4)
    assert len(set(once)) > 400
    assert {
        name.replace("_checkpoint_wrapped_module.", "") for name, p in model.named_parameters() if p.requires_grad
    } == learn
    decoder = cast(TimeViper, model).decoder
    assert len(decoder.blocks) == 56
    assert all(unwrapped(b) is not b for b in decoder.blocks)
    transfers = {name: s.layer for name, s in recipe.model.transv.stages.items()}
    assert transfers == ({} if stage == "stage1_align" else {"early": 7, "late": 39})
    assert set(decoder.transv) == set(transfers)


def test_frozen_matrices_are_kept_short_where_asked(eight_ranks: Any) -> None:
    recipe = small_recipe(trainable=("projector",), param_dtype="bfloat16", frozen_dtype="bfloat16")
    model = parallelize(meta_model(recipe), eight_ranks, recipe.parallel)
    for name, p in model.named_parameters():
        short = p.ndim > 1 and not name.startswith("projectors.")
        assert p.dtype == (torch.bfloat16 if short else torch.float32), name


def test_in_bfloat16_norms_gates_and_the_scan_are_gathered_in_float32() -> None:
    recipe = small_recipe(param_dtype="bfloat16")
    model = meta_model(recipe)
    names = {p: name for name, p in model.named_parameters()}
    dtypes: dict[str, torch.dtype | None] = {}
    for unit in sharding_plan(model, recipe.parallel):
        for p in (p for module in unit.modules for p in module.parameters()):
            dtypes.setdefault(names[p], unit.dtype)
    assert dtypes.keys() == set(names.values())
    wide = {name for name, dtype in dtypes.items() if dtype is None}
    ends = ("norm.weight", "norm_f.weight", "A_log", "D", "dt_bias", "alpha")
    assert wide == {name for name in dtypes if name.startswith("decoder.") and name.endswith(ends)}


def test_ranks_that_replicas_do_not_divide(eight_ranks: Any) -> None:
    recipe = small_recipe(replicas=3)
    with pytest.raises(ConfigError, match=r"replicas = 3\s+must divide the 8 ranks"):
        parallelize(meta_model(recipe), eight_ranks, recipe.parallel)


# ---- first values ---------------------------------------------------------------------------------------

SIGLIP = TowerConfig(family="siglip", image_size=30, patch_size=7, width=32, layers=2, heads=2, mlp_width=64, tokens=4)


@pytest.mark.parametrize("objective", ["answer", "tags"])
def test_random_weights_are_those_of_the_constructors(objective: str) -> None:
    recipe = small_recipe()
    recipe.train.objective = cast(Any, objective)
    towers = {"main": TOWER, "other": SIGLIP, "third": replace(SIGLIP, family="dinov2", image_size=28, registers=2)}
    recipe.model.towers = dict(towers)
    recipe.train.trainable = ["projector", "decoder"]
    built = build_model(recipe)
    torch.manual_seed(recipe.seed)
    direct = (TimeViper if objective == "answer" else TagModel)(recipe.model)
    state = {**dict(built.named_parameters()), **dict(built.named_buffers())}
    expected = {**dict(direct.named_parameters()), **dict(direct.named_buffers())}
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, state[name]), name


def export_of(recipe: Recipe, folder: Path) -> dict[str, Tensor]:
    """A stage before with other random weights, in several files."""
    model = build_model(replace(recipe, seed=11))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recipe = replace(recipe, data=replace(recipe.data, sources={"none": SourceConfig(shards="none")}))
    write_export(folder, state, recipe, Tokenizer.load(""), step=1, shard_bytes=10_000)
    assert len(list(folder.glob("*.safetensors"))) > 2
    return state


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_stage_starts_from_the_files_before_it_on_any_number_of_ranks(ranks: int, tmp_path: Path) -> None:
    """Frozen parts, new random parts and new transfers: as loading into a whole model would give."""
    before = small_recipe()
    before.model = replace(before.model, transv=TransVConfig())
    before.train.trainable = ["projector", "decoder"]
    state = export_of(before, tmp_path / "export")
    recipe = small_recipe()
    recipe.train.init_from = str(tmp_path / "export")
    for found in run_ranks(ranks, first_weights, recipe):
        for name, tensor in state.items():
            assert torch.equal(found[name], tensor), name
        assert torch.equal(found["decoder.transv.early.q_proj.weight"], state["decoder.blocks.2.mixer.q_proj.weight"])
        assert torch.equal(found["decoder.transv.late.norm.weight"], state["decoder.blocks.5.norm.weight"])
        assert float(found["decoder.transv.late.alpha"]) == 0.0


def test_what_no_file_holds_has_the_numbers_of_a_model_that_is_all_random(tmp_path: Path) -> None:
    """A tower comes from a file, the decoder after it does not: its numbers must not depend on that."""
    tower = small_recipe()
    tower.train.objective = "tags"
    tower.train.trainable = ["tower", "projector", "decoder"]
    state = export_of(tower, tmp_path / "export")
    recipe = small_recipe()
    plain = build_model(recipe).state_dict()
    recipe.train.init_from = str(tmp_path / "export")
    found = build_model(recipe).state_dict()
    assert {"towers.main.positions", "projectors.main.0.weight", "decoder.embeddings.weight"} <= state.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, state[name] if name in state else plain[name]), name


def test_a_damaged_tensor_is_named(tmp_path: Path) -> None:
    recipe = small_recipe()
    state = build_model(recipe).state_dict()
    state["decoder.blocks.3.mixer.in_proj.weight"][5, 2] = torch.nan
    recipe.data.sources = {"none": SourceConfig(shards="none")}
    write_export(tmp_path / "export", state, recipe, Tokenizer.load(""), step=1)
    recipe.train.init_from = str(tmp_path / "export")
    with pytest.raises(ValueError, match=r"decoder\.blocks\.3\.mixer\.in_proj\.weight holds NaN"):
        build_model(recipe)


# ---- settings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("activation_checkpointing", "mambas", "Did you mean mamba?"),
        ("activation_checkpointing", "all of them", "none, all, or some of mamba, attention, mlp, transv, tower"),
        ("frozen_dtype", "bfloat16", "set parallel.param_dtype = bfloat16"),
    ],
)
def test_settings_that_cannot_be(key: str, value: str, said: str) -> None:
    recipe = load_recipe(ROOT / "recipes/tiny/stage2_instruct.yaml")
    assert not list(problems(recipe))
    setattr(recipe.parallel, key, value)
    (found,) = problems(recipe)
    assert found.key == f"parallel.{key}"
    assert said in found.message


@pytest.mark.parametrize(
    ("text", "types"),
    [
        ("none", set()),
        ("false", set()),
        ("all", {"mamba", "attention", "mlp", "transv", "tower", "projector"}),
        ("true", {"mamba", "attention", "mlp", "transv", "tower", "projector"}),
        ("mamba,mlp", {"mamba", "mlp"}),
    ],
)
def test_activation_checkpointing_is_written_as(text: str, types: set[str]) -> None:
    override = f"parallel.activation_checkpointing={text}"
    recipe = load_recipe(ROOT / "recipes/tiny/stage2_instruct.yaml", [override])
    assert recipe.parallel.checkpointed == types


# ---- the published layout -------------------------------------------------------------------------------

DIVIDED = [
    'model.tokenizer=""',
    *(f"model.towers.main.{k}" for k in ("image_size=28", "patch_size=7", "width=32", "layers=3", "heads=2")),
    *(f"model.towers.main.{k}" for k in ("mlp_width=64", "tokens=4", 'weights=""')),
    *(f"model.decoder.{k}" for k in ("vocab_size=1024", "width=64", "mlp_width=96", "heads=4", "kv_heads=2")),
    *(f"model.decoder.{k}" for k in ("head_dim=16", "ssm_heads=8", "ssm_head_dim=8", "ssm_state=16", "ssm_groups=2")),
    *(f"model.decoder.{k}" for k in ("chunk_size=16", 'weights=""')),
    *("train.steps=2", "train.validate_every=0", "train.validate_samples=4", "log.every=1", "log.tensorboard=false"),
    *("data.packs_per_step=2", "data.tokens_per_pack=512", "data.workers=0", "data.frames.max_frames=12"),
]


@pytest.mark.slow
def test_every_nano9b_stage_runs_with_all_sizes_divided(world: Path, tmp_path: Path) -> None:
    """56 blocks, TransV at 7 and 39, bfloat16, checkpointing and sharding over two ranks, as the recipes say."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    before = ""
    for stage in ("stage1_align", "stage2_instruct", "stage3_long"):
        recipe = load_recipe(ROOT / f"recipes/nano9b/{stage}.yaml")
        options = [*DIVIDED, f"out={tmp_path / stage}"]
        for group, folder in (("sources", "train"), ("val", "val")):
            first, *others = getattr(recipe.data, group)
            options += [f"data.{group}.{first}.shards={world / folder / 'videos'}"]
            options += [f"data.{group}.{name}=null" for name in others]
        options += [f"train.phases.{name}=null" for name in recipe.train.phases]
        options += [f"train.init_from={tmp_path / before / 'export'}"] if before else []
        command = [*torchrun, "-m", "timeviper.cli", "train", f"recipes/nano9b/{stage}.yaml", *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        before = stage
    model, recipe, _ = load_export(tmp_path / before / "export")
    assert len(model.decoder.blocks) == 56
    assert [s.blocks.start for s in model.decoder.segments] == [0, 7, 39]
    assert recipe.parallel.checkpointed == set(BLOCK_TYPES)
    alphas = [float(cast(Any, t).alpha.detach()) for t in model.decoder.transv.values()]
    assert all(alphas), "the gates have learned"


@pytest.mark.slow
def test_no_rank_ever_holds_the_whole_model(tmp_path: Path) -> None:
    """320 M parameters on two ranks, random and from files: half of the model, the largest tensor, and little else."""
    bench_sharding.run(1, bench_sharding.export, bench_sharding.middle_recipe(), tmp_path / "export")
    stored = bench_sharding.middle_recipe()
    stored.train.init_from = str(tmp_path / "export")
    for recipe in (bench_sharding.middle_recipe(), stored):
        for peak, whole_model in bench_sharding.run(2, bench_sharding.build, recipe):
            assert whole_model > 1.2e9
            assert peak < 0.68 * whole_model
