"""What offloading takes on the host: the figure against what is really there, and the refusal before a start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cost_helpers import ALL, build, hybrid, make_pack
from tree import ROOT

from timeviper import trainer
from timeviper.config import BLOCK_TYPES, Recipe
from timeviper.config.load import load_recipe
from timeviper.config.shape import PackShape
from timeviper.errors import ConfigError
from timeviper.offload import HostActivations, Lane, Schedule
from timeviper.parallel import _blocks
from timeviper.planning import host
from timeviper.planning.host import check_host_memory, free_bytes, host_needs, offloaded_bytes

EVERY = frozenset(BLOCK_TYPES)
NANO = ROOT / "recipes/nano9b/stage3_long.yaml"


class Counting(Lane):
    def __init__(self) -> None:
        self.bytes = 0

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> Any:
        self.bytes += target.nbytes
        return super().copy(source, target)


@pytest.mark.parametrize("shape", [((60,), (40,)), ((20, 30, 0), (20, 30, 15))])
def test_the_figure_is_what_is_copied(shape: tuple) -> None:
    pack, lane = make_pack(*shape), Counting()
    model, schedule = build(hybrid(), ALL, EVERY), Schedule(lane)
    for parent, name, _ in list(_blocks(model)):
        parent.register_module(name, HostActivations(parent.get_submodule(name), schedule))
    out = model(pack)
    recipe = Recipe(model=hybrid())
    recipe.train.trainable = list(ALL)
    recipe.parallel.param_dtype, recipe.parallel.activation_checkpointing = "float32", "all"
    assert out.loss_sum.requires_grad
    # Never too little; indices of TransV that stand outside of its layer are counted, too, though they stay.
    assert lane.bytes <= offloaded_bytes(recipe, PackShape.of(pack), "cpu") < 1.08 * lane.bytes


def test_pinned_memory_comes_in_powers_of_two() -> None:
    recipe = load_recipe(NANO, ["parallel.offload_activations=true"])
    (on_cpu,), (on_gpu,) = (host_needs(recipe, 8, device).values() for device in ("cpu", "cuda"))
    assert on_cpu < on_gpu < 2 * on_cpu
    assert 35e9 < on_cpu < 50e9  # 56 inputs, of 1.6 GB before the first stage of TransV


def test_a_host_that_is_too_small_is_told_with_figures() -> None:
    recipe = load_recipe(NANO, ["parallel.offload_activations=true", "parallel.offload_params=true"])
    needs = host_needs(recipe, 8, "cuda")
    check_host_memory(recipe, 8, 1, "cuda", free=8 * sum(needs.values()))
    with pytest.raises(ConfigError) as error:
        check_host_memory(recipe, 8, 1, "cuda", free=256e9)
    (problem,) = error.value.problems
    assert problem.key == "parallel.offload_activations"
    for said in ("256.0 GB", f"{8 * sum(needs.values()) / 1e9:.1f} GB", "8 ranks", "data.tokens_per_pack"):
        assert said in problem.message
    check_host_memory(load_recipe(NANO), 8, 1, "cuda", free=1.0)  # which offloads nothing


def test_a_run_is_refused_before_anything_is_built(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [f"out={tmp_path / 'run'}", "parallel.offload_activations=true", "data.workers=0"]
    options += [f"data.sources.{n}.shards={world / 'train' / 'captions'}" for n in ("captions",)]
    recipe = load_recipe(ROOT / "recipes/tiny/stage1_align.yaml", options)
    monkeypatch.setattr(host, "free_bytes", lambda: 1e6)
    with pytest.raises(ConfigError, match=r"The host has 1\.0 MB of memory free, and 1 rank on it would need"):
        trainer.run_stage(recipe)
    assert not list(tmp_path.iterdir())


def test_free_memory_is_what_the_system_and_the_control_group_leave(tmp_path: Path) -> None:
    assert free_bytes(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:  9000 kB\nMemFree: 10 kB\nMemAvailable:    4000 kB\n")
    assert free_bytes(tmp_path) == 4000 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("1000000\n")
    for limit, free in (("max", 4000 * 1024), ("3000000", 2e6), ("500000", 0)):
        (group / "memory.max").write_text(f"{limit}\n")
        assert free_bytes(tmp_path) == free
