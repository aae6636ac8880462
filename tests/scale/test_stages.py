"""The tiny stages one after the other, each sharded over two ranks: what is handed on, and what stays as it was."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from jobs import run, weights
from stage_options import options
from torch import Tensor
from tree import ROOT

from timeviper.config.load import load_recipe
from timeviper.datamodules.world.world import build_world

PHASES = ["train.phases.frames64.start=1", "train.phases.frames512.start=2", "data.tokens_per_pack=5000"]


def long_options(runs: Path) -> list[str]:
    """Stage 3 cut down to three steps, one in each of its phases."""
    long = runs / "long"
    build_world(long, scale=0.003, workers=1, kind="long")
    data = load_recipe(ROOT / "recipes/tiny/stage3_long.yaml").data
    made = ["recipes/tiny/stage3_long.yaml", f"out={runs / 'stage3_long'}", "train.steps=3", "train.validate_every=0"]
    made += ["data.packs_per_step=2", "train.validate_samples=2", "log.every=1", "log.tensorboard=false", *PHASES]
    for group, sources in (("sources", data.sources), ("val", data.val)):
        made += [f"data.{group}.{k}.shards={v.shards}".replace("data/long", str(long)) for k, v in sources.items()]
    return [*made, f"train.init_from={runs / 'stage2_instruct/export'}"]


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Parts of the model that a stage changed or added; all others are the same bit for bit."""
    return {
        "transv" if ".transv." in name else name.partition(".")[0]
        for name in after
        if name not in before or not torch.equal(before[name], after[name])
    }


@pytest.mark.slow
def test_stages_hand_over_under_sharding_and_frozen_parts_stay(world: Path, tmp_path: Path) -> None:
    chain = [
        ("stage0_tower", options(world, tmp_path, "stage0_tower", 3), set()),
        (
            "stage1_align",
            options(world, tmp_path, "stage1_align", 3, "stage0_tower"),
            {"projectors", "times", "decoder"},
        ),
        ("stage2_instruct", options(world, tmp_path, "stage2_instruct", 3, "stage1_align"), None),
        ("stage3_long", long_options(tmp_path), None),
    ]
    before: dict[str, Tensor] = {}
    for i, (stage, args, learns) in enumerate(chain):
        run(tmp_path, 2, "train", str(ROOT / args[0]), *args[1:], "data.workers=0")
        after = weights(tmp_path / stage)
        lineage = json.loads((tmp_path / stage / "export/lineage.json").read_text())
        if i:
            assert moved(before, after) == (learns or {"projectors", "times", "decoder", "transv"})
            assert lineage["from"]["name"] == chain[i - 1][0]
            assert any(name.startswith("towers.") for name in after)
        before = after
    assert os.path.isfile(tmp_path / "stage3_long/export/config.yaml")
