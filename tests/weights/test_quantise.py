"""Weights in eight bits: how far off answers are, what stays as it is, and adapters that learn on such a base."""

from __future__ import annotations

import math
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from export_helpers import random_run
from ranks import first_weights, logits_of, run_ranks, small_recipe, train_and_export
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing import assert_close
from torch.testing._internal.distributed.fake_pg import FakeStore
from tree import ROOT

from timeviper.config import LoraConfig
from timeviper.config.load import load_recipe
from timeviper.errors import ConfigError
from timeviper.inference.ask import LoadedModel, load
from timeviper.model.int8 import SCALE, Int8Map, frozen, quantisable, whole
from timeviper.model.viper import TimeViper
from timeviper.parallel import parallelize
from timeviper.planning.parameters import sharded_parameters
from timeviper.weights.export import meta_model
from timeviper.weights.quantise import check_quantise, int8_rows

pytest.importorskip("torchao")
LORA = LoraConfig(rank=2, alpha=8.0, targets=["attention", "mamba", "mlp"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_run(tmp_path_factory.mktemp("run"))


def hidden(model: LoadedModel) -> Tensor:
    """Of 200 tokens of text."""
    ids = torch.arange(200) * 7 % 1000
    with torch.inference_mode():
        return model.model.decoder.logits(ids).float()


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


# ---- answers ----------------------------------------------------------------------------------------------------


def rounding(weight: Tensor) -> float:
    """What int8 numbers with a scale a row are off by, relative to the weight `[m, n]`: a step is a row's largest
    weight / 127, and rounding to the nearest is off by a step / sqrt(12), in the mean square."""
    step = weight.abs().amax(1) / 127
    return float((step.square().sum() / 12 * weight.shape[1]).sqrt() / weight.norm())


def test_int8_errs_as_much_as_its_steps_say(run: Path) -> None:
    """Relative to float32. A map is off by its rounding. Logits come through two maps in each of the ten blocks, whose
    errors point nowhere in particular, so they add as squares: sqrt(20) of one. A block may double the one in it (the
    MLP squares what its first map gives; the gate of a scan is a product of two)."""
    plain = load(run, device="cpu")
    weights = [module.weight.detach() for _, module in quantisable(plain.model)]
    draws = torch.Generator().manual_seed(1)  # weights are drawn from seed 0: inputs of the same stream are like them
    for weight in weights:
        x = torch.randn(500, weight.shape[1], generator=draws)
        off = error(x @ whole(*int8_rows(weight)).T, x @ weight.T)
        assert off == pytest.approx(rounding(weight), rel=0.05)
    maps = 2 * len(plain.recipe.model.decoder.layout)
    bound = 2 * maps**0.5 * max(rounding(weight) for weight in weights)
    wanted = hidden(plain)
    errors = {
        (dtype, kind): error(hidden(load(run, device="cpu", dtype=dtype, overrides=[f"eval.quantise={kind}"])), wanted)
        for dtype, kind in (("float32", "int8"), ("bfloat16", "none"), ("bfloat16", "int8"))
    }
    print(f"bound {bound:.3f}, found {errors}")
    assert errors["float32", "int8"] < bound, errors
    assert errors["bfloat16", "int8"] < math.hypot(errors["bfloat16", "none"], bound), errors


def test_only_maps_of_blocks_and_transfers_are_quantised(run: Path) -> None:
    model = load(run, device="cpu", overrides=["eval.quantise=int8"]).model
    plain = dict(load(run, device="cpu").model.named_parameters())
    kinds = {name: type(p).__module__.split(".")[0] == "torchao" for name, p in model.named_parameters()}
    maps = {f"{name}.weight" for name, _ in quantisable(model)}
    assert {name for name, quantised in kinds.items() if quantised} == maps
    ends = Counter(name.split(".")[-2] for name in maps)
    assert set(ends) == {"in_proj", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"}
    for name, p in model.named_parameters():
        if not kinds[name]:
            assert torch.equal(p, plain[name]), name
    stored = sum(p.qdata.nbytes + p.scale.nbytes for n, p in model.named_parameters() if kinds[n])  # pyright: ignore
    assert stored < 0.27 * sum(plain[name].nbytes for name in maps)  # of float32


def test_the_numbers_are_those_of_a_scale_a_row() -> None:
    torch.manual_seed(0)
    weight = torch.randn(9, 40) * torch.logspace(-3, 3, 9)[:, None]
    weight[4] = 0
    numbers, scale = int8_rows(weight)
    assert numbers.dtype == torch.int8
    assert scale.shape == (9,)
    assert_close(whole(numbers, scale), weight, rtol=0, atol=float(scale.max()) / 2 + 1e-6)
    assert bool(((whole(numbers, scale) - weight).abs() <= scale[:, None] * 0.51).all())
    assert int8_rows(weight[:0])[0].shape == (0, 40)


def test_what_cannot_be_quantised(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    with pytest.raises(
        ConfigError, match=r"eval.quantise = fp8\s+needs a GPU that multiplies in fp8, and this is a cpu"
    ):
        load(run, device="cpu", overrides=["eval.quantise=fp8"])
    with pytest.raises(ConfigError, match="one of none, int8, fp8"):
        load(run, device="cpu", overrides=["eval.quantise=int4"])
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ConfigError, match=r"needs torchao .*timeviper\[quant\]"):
        check_quantise("int8", cpu, torch.float32)
    check_quantise("none", cpu, torch.float32)


# ---- as the base of adapters ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
def test_the_map_is_that_of_the_whole_weight_with_its_gradient(bias: bool) -> None:
    torch.manual_seed(0)
    numbers, scale = int8_rows(torch.randn(6, 10))
    b = torch.randn(6, dtype=torch.float64) if bias else None
    weight = whole(numbers, scale).double()
    x = torch.randn(2, 5, 10, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(2, 5, 6, dtype=torch.float64)
    wanted = F.linear(x, weight, b)
    (dx,) = torch.autograd.grad(wanted, x, dy)
    found = cast(Tensor, Int8Map.apply(x, numbers, scale.double(), b, False))
    assert_close(found, wanted, rtol=0, atol=1e-6)  # the reference weight was rounded to float32
    (got,) = torch.autograd.grad(found, x, dy)
    assert_close(got, dx, rtol=0, atol=1e-6)
    unneeded = cast(Tensor, Int8Map.apply(x, numbers, scale.double(), b, True))
    assert torch.equal(torch.autograd.grad(unneeded, x, dy)[0], got)


@pytest.mark.parametrize("world", [1, 2])
def test_adapters_learn_on_an_int8_base_and_the_export_has_them_merged(world: int, tmp_path: Path) -> None:
    recipe = small_recipe(LORA, frozen_dtype="int8", activation_checkpointing="all", tokens_per_piece=5)
    before, after, logits = run_ranks(world, train_and_export, recipe, tmp_path / "export")[0]
    int8 = {name for name, t in before.items() if t.dtype == torch.int8}
    assert len(int8) == len(frozen(meta_model(recipe)))
    learned = {name for name in before if not torch.equal(before[name], after[name])}
    assert learned
    assert not any(name in int8 or name.endswith(SCALE) for name in learned)
    plain = run_ranks(1, first_weights, small_recipe(LORA))[0]
    for name in int8:
        numbers, scale = int8_rows(plain[name])
        assert torch.equal(before[name], numbers)
        assert torch.equal(before[name.replace("weight", SCALE)], scale)
    state = load_file(tmp_path / "export/model.safetensors")
    assert all(t.dtype == torch.float32 for t in state.values())
    model = TimeViper(recipe.model)
    model.load_state_dict(state)
    model.eval()
    for found, wanted in zip(logits_of(model), logits):
        assert_close(found, wanted, rtol=0, atol=2e-4)


def test_the_frozen_9b_takes_a_byte_a_weight() -> None:
    """Of nano9b on eight ranks, without memory: 8.2e9 of 9.4e9 weights are maps of blocks and transfers."""
    words = ["model.lora.rank=16", "parallel.frozen_dtype=int8"]
    recipe = load_recipe(ROOT / "recipes/nano9b/stage2_instruct.yaml", words)
    model = meta_model(recipe)
    maps = sum(module.weight.numel() for module in frozen(model))
    planned = sum(unit.shard_bytes(8) for unit in sharded_parameters(model, recipe.parallel))
    dist.init_process_group("fake", rank=3, world_size=8, store=FakeStore())
    try:
        parallelize(model, init_device_mesh("cpu", (8,)), recipe.parallel)
        stored = sum(cast(Any, p).to_local().nbytes for p in model.parameters())
        scales = sum(b.nbytes for name, b in model.named_buffers() if name.endswith(SCALE))
    finally:
        dist.destroy_process_group()
    assert 7.5e9 < maps < 9e9
    assert stored == pytest.approx(planned, rel=0.01)
    assert scales < 10e6
    words[1] = "parallel.frozen_dtype=bfloat16"
    model = meta_model(recipe := load_recipe(ROOT / "recipes/nano9b/stage2_instruct.yaml", words))
    bfloat16 = sum(unit.shard_bytes(8) for unit in sharded_parameters(model, recipe.parallel))
    assert bfloat16 - planned == pytest.approx(maps / 8, rel=0.01)


def test_why_torchao_s_own_tensors_are_not_sharded() -> None:
    """Once this passes, `model/int8.py` may go."""
    from torchao.quantization import Int8Tensor, PerRow

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29999"}
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        module = nn.Linear(16, 8, bias=False)
        weight = Int8Tensor.from_hp(torch.randn(8, 16), granularity=PerRow())
        module.weight = nn.Parameter(weight, requires_grad=False)
        with pytest.raises(NotImplementedError, match=r"aten\.split"):
            fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
    finally:
        dist.destroy_process_group()
