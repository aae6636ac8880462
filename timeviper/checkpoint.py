"""The hand-over between stages: what a stage exports and what the next one accepts.

An export folder holds `model.safetensors` (full tensors, float32 or as trained), `config.yaml` (the whole
resolved recipe), the tokenizer, and `lineage.json` (this stage, its step, its ancestors).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from timeviper.config import ModelConfig, Recipe
from timeviper.errors import ConfigError, Problem
from timeviper.hub import load_weights
from timeviper.model.tags import TagModel
from timeviper.model.viper import TimeViper, part_of
from timeviper.recipe import dump, load_recipe
from timeviper.tokenizer import Tokenizer

WEIGHTS, CONFIG, LINEAGE = "model.safetensors", "config.yaml", "lineage.json"


def build_model(recipe: Recipe) -> TimeViper | TagModel:
    """The model of a stage: random under the recipe's seed, then pretrained weights, then the previous stage's."""
    torch.manual_seed(recipe.seed)
    model = TimeViper(recipe.model) if recipe.train.objective == "answer" else TagModel(recipe.model)
    if recipe.model.decoder.weights and isinstance(model, TimeViper):
        load_weights(model.decoder, recipe.model.decoder.weights)
    if recipe.train.init_from:
        load_previous_stage(model, recipe)
    model.freeze(recipe.train.trainable)
    return model


def write_export(folder: Path, state: dict[str, Tensor], recipe: Recipe, tokenizer: Tokenizer, step: int) -> None:
    """Write an export next to its place and move it there whole, so that a half export never has the name."""
    partial = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    # Tied tensors are stored once; loading ties them again.
    seen: dict[int, str] = {}
    unique = {}
    for name, tensor in state.items():
        if seen.setdefault(tensor.data_ptr(), name) == name or tensor.numel() == 0:
            unique[name] = tensor.contiguous()
    save_file(unique, partial / WEIGHTS, metadata={"format": "pt"})
    dump(recipe, partial / CONFIG)
    tokenizer.save(partial)
    ancestors = read_lineage(Path(recipe.train.init_from)) if recipe.train.init_from else None
    lineage = {
        "name": recipe.name,
        "size": recipe.size,
        "step": step,
        "seed": recipe.seed,
        "parts": sorted({part_of(name) for name in state} - {""}),
        "trained": sorted(recipe.train.trainable),
        "from": ancestors,
    }
    (partial / LINEAGE).write_text(json.dumps(lineage, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def read_lineage(export: Path) -> dict[str, Any]:
    return json.loads((export / LINEAGE).read_text())


def is_export(folder: Path) -> bool:
    return all((folder / f).is_file() for f in (WEIGHTS, CONFIG, LINEAGE))


def differences(ours: Any, theirs: Any, prefix: str) -> list[str]:
    """Dotted paths where two nested dicts differ, with both values."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = sorted(set(ours) | set(theirs))
        return [d for k in keys for d in differences(ours.get(k), theirs.get(k), f"{prefix}.{k}")]
    return [] if ours == theirs else [f"{prefix}: {theirs!r} there, {ours!r} here"]


# What may differ between a stage and its predecessor without touching a tensor.
_FREE = ("weights", "chunk_size", "max_tokens")


def _shape_of(model: ModelConfig, parts: list[str]) -> dict[str, Any]:
    """The settings that fix the tensors of the given parts."""
    shape: dict[str, Any] = {}
    if "tower" in parts:
        shape["towers"] = {n: asdict(t) for n, t in model.towers.items() if t is not None}
    if "decoder" in parts:
        shape["decoder"] = asdict(model.decoder)
    for section in (*shape.get("towers", {}).values(), shape.get("decoder", {})):
        for key in _FREE:
            section.pop(key, None)
    return shape


def _refused(recipe: Recipe, message: str) -> ConfigError:
    return ConfigError(recipe.name, [Problem("train.init_from", recipe.train.init_from, message)])


def check_previous_stage(recipe: Recipe) -> list[str]:
    """The parts that `train.init_from` holds (none without one).

    Raises ConfigError when the folder is no export or its model has another shape.
    """
    if not recipe.train.init_from:
        return []
    export = Path(recipe.train.init_from)
    if not is_export(export):
        raise _refused(
            recipe,
            f"This is not the export of a finished stage. Run the stage before {recipe.name!r} first "
            "(make train-stage1 and so on), or name another folder.",
        )
    previous = load_recipe(export / CONFIG)
    parts = read_lineage(export)["parts"]
    if found := differences(_shape_of(recipe.model, parts), _shape_of(previous.model, parts), "model"):
        listed = "\n        ".join(found)
        raise _refused(
            recipe,
            f"The export of {previous.name!r} holds another model than this recipe builds:\n        {listed}\n"
            "      Use the model settings of that stage, or name another folder.",
        )
    return parts


def load_previous_stage(model: nn.Module, recipe: Recipe) -> None:
    """Copy the tensors of `train.init_from` into the model.

    Parts that the previous stage did not have stay at random (a new transfer stage, the decoder after
    stage 0). Raises ConfigError as `check_previous_stage` does.
    """
    export = Path(recipe.train.init_from)
    parts = check_previous_stage(recipe)
    state = load_file(export / WEIGHTS)
    own = model.state_dict()
    carried = {k: v for k, v in state.items() if k in own}
    stray = [k for k in state if k not in own and part_of(k) in ("projector", "decoder")]
    if stray:
        raise _refused(recipe, f"The export has tensors that this model lacks: {', '.join(stray[:5])}")
    model.load_state_dict(carried, strict=False)
    if isinstance(model, TimeViper) and "transv" not in parts and "decoder" in parts:
        model.decoder.init_transv_from_attention()


def load_export(export: Path, overrides: Sequence[str] = ()) -> tuple[TimeViper, Recipe, Tokenizer]:
    """A finished model, in eval mode, with its recipe (as overridden) and tokenizer.

    Raises FileNotFoundError with what to run when there is none, ValueError when it is a tower alone.
    """
    if not is_export(export):
        raise FileNotFoundError(
            f"{export} is not an export (no {WEIGHTS}, {CONFIG} and {LINEAGE}). It appears when a training "
            "stage has finished; give the run folder or its export/."
        )
    recipe = load_recipe(export / CONFIG, overrides)
    if recipe.train.objective != "answer":
        raise ValueError(f"{export} is a vision tower without a language model; it cannot answer questions")
    model = TimeViper(recipe.model)
    missing, unexpected = model.load_state_dict(load_file(export / WEIGHTS), strict=False)
    own = model.state_dict()
    tied = {own[k].data_ptr() for k in own if k not in missing}
    missing = [k for k in missing if own[k].data_ptr() not in tied]
    if missing or unexpected:
        raise ValueError(f"{export}: tensors missing: {missing[:5]}, unexpected: {unexpected[:5]}")
    return model.eval().requires_grad_(False), recipe, Tokenizer.load(str(export))
