"""Runs of the tiny recipe without training: random weights and open gates, for what asks no right answers."""

from __future__ import annotations

from pathlib import Path

import torch
from tree import ROOT

from timeviper.config import SourceConfig
from timeviper.config.load import load_recipe
from timeviper.tokenizer import Tokenizer
from timeviper.weights.export import build_model, write_export

torch.set_num_threads(1)  # so small a model: threads would only wait for each other


def random_run(folder: Path, *overrides: str, val: Path | None = None, seed: int = 0) -> Path:
    """A run folder of stage 2; val: its held-out shards."""
    recipe = load_recipe(ROOT / "recipes/tiny/stage2_instruct.yaml", [f"seed={seed}", *overrides])
    recipe.train.init_from = ""
    recipe.data.val = {"clips": SourceConfig(shards=str(val))} if val else {}
    state = build_model(recipe).state_dict()
    torch.manual_seed(seed)
    for name, tensor in state.items():
        if name.endswith("alpha"):
            tensor.fill_(0.7)
        elif tensor.ndim == 1 and not name.endswith(("A_log", "dt_bias")):
            tensor.add_(torch.randn_like(tensor) * 0.2)
    write_export(folder / "export", state, recipe, Tokenizer.load(recipe.model.tokenizer), step=0)
    return folder
