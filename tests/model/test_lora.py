"""Low-rank adapters: what learns, that they start as nothing, and that what is exported is what was trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from ranks import logits_of, open_gates, run_ranks, small_recipe, step_packs, train_and_export
from tree import ROOT

from timeviper.config import LORA_TARGETS, LoraConfig, Recipe, SourceConfig
from timeviper.config.checks.recipe import problems
from timeviper.config.load import load_recipe
from timeviper.errors import ConfigError
from timeviper.model import lora
from timeviper.model.parts import is_adapter, part_of
from timeviper.model.viper import TimeViper
from timeviper.tokenizer import Tokenizer
from timeviper.training.optim import build_optimizer
from timeviper.weights.export import ADAPTER, build_model, load_export, meta_model, write_export

torch.set_num_threads(1)
EVERYTHING = LoraConfig(rank=3, alpha=6.0, targets=["attention", "mamba", "mlp", "projector", "transv"])


def recipe_with(cfg: LoraConfig, **options) -> Recipe:
    recipe = small_recipe(cfg, **options)
    recipe.data.sources = {"none": SourceConfig(shards="none")}
    return recipe


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a stage that trained transfers: gates are open."""
    folder = tmp_path_factory.mktemp("before") / "export"
    recipe = recipe_with(LoraConfig())
    model = build_model(recipe)
    open_gates(model)
    write_export(folder, model.state_dict(), recipe, Tokenizer.load(""), step=1)
    return folder


def test_an_adapted_model_starts_as_the_model_itself_to_the_last_bit(before: Path) -> None:
    recipe = recipe_with(EVERYTHING)
    recipe.train.init_from = str(before)
    adapted = cast(TimeViper, build_model(recipe))
    plain, _, _ = load_export(before)
    assert sum(is_adapter(name) for name, _ in adapted.named_parameters()) == 2 * (3 * 2 + 2 * 4 + 3 * 2 + 2 + 2 * 4)
    for ours, theirs in zip(logits_of(adapted), logits_of(plain)):
        assert torch.equal(ours, theirs)
    out = adapted(step_packs(0)[0])
    out.loss_sum.backward()
    for name, p in adapted.named_parameters():
        assert (p.grad is not None) == is_adapter(name), name
        if name.endswith("lora_B"):
            assert p.grad is not None
            assert float(p.grad.abs().max()) > 0, name


def test_every_target_names_the_maps_of_its_kind() -> None:
    gated = recipe_with(LoraConfig())
    gated.model.decoder = replace(gated.model.decoder, family="qwen2", layout="*-*-*-*-")
    gated.model.transv.stages.clear()
    found = {t for r in (recipe_with(LoraConfig()), gated) for _, t in lora.adaptable(meta_model(r))}
    assert found == set(LORA_TARGETS)
    one = meta_model(recipe_with(LoraConfig(rank=2, targets=["mamba.in", "attention.q"])))
    names = {name.rpartition(".")[0].rpartition(".")[2] for name, _ in one.named_parameters() if is_adapter(name)}
    assert names == {"in_proj", "q_proj"}


@pytest.mark.parametrize(("ranks", "settings"), [(1, {}), (2, {"activation_checkpointing": "all"})])
def test_training_changes_the_adapters_alone_and_the_export_holds_what_was_trained(
    before: Path, tmp_path: Path, ranks: int, settings: dict
) -> None:
    cfg = LoraConfig(rank=3, alpha=6.0, targets=["attention", "mamba", "mlp", "transv"])
    recipe = recipe_with(cfg, trainable=("decoder", "transv"), **settings)
    recipe.train.init_from = str(before)
    results = run_ranks(ranks, train_and_export, recipe, tmp_path / "export")
    adapted = results[0][2]
    for first, last, _ in results:
        changed = {name for name in first if not torch.equal(first[name], last[name])}
        assert changed == {name for name in first if is_adapter(name)}
    merged, exported_recipe, _ = load_export(tmp_path / "export")
    assert not any(map(is_adapter, merged.state_dict()))
    for ours, theirs in zip(logits_of(merged), adapted):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
    plain, _, _ = load_export(before)
    assert max(float((a - b).abs().max()) for a, b in zip(logits_of(merged), logits_of(plain))) > 1e-2

    # The next stage starts from the merged weights, with or without adapters of its own.
    following = recipe_with(LoraConfig())
    following.train.init_from = str(tmp_path / "export")
    assert not any(is_adapter(name) for name, _ in build_model(following).named_parameters())
    # The adapter file alone, beside the weights it was trained on, is the same model again.
    again = replace(recipe, model=replace(recipe.model, lora=replace(cfg, weights=str(tmp_path / "export" / ADAPTER))))
    restored = build_model(again)
    restored.eval()
    for ours, theirs in zip(logits_of(restored), adapted):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)
    assert exported_recipe.model.lora.rank == 3
    assert json.loads((tmp_path / "export/lineage.json").read_text())["parts"] == [
        "decoder",
        "projector",
        "tower",
        "transv",
    ]


def test_other_parts_train_whole_beside_an_adapted_one(before: Path) -> None:
    recipe = recipe_with(LoraConfig(rank=2))
    model = meta_model(recipe)
    learn = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {part_of(name) for name in learn} == {"projector", "decoder", "transv"}
    assert all(is_adapter(name) for name in learn if part_of(name) == "decoder")
    assert not any(is_adapter(name) for name in learn if part_of(name) != "decoder")
    assert "decoder (LoRA)" in model.describe_trainable()
    adapters = {id(p) for name, p in model.named_parameters() if is_adapter(name)}
    for group in build_optimizer(model, recipe.optim).param_groups:
        if adapters & {id(p) for p in group["params"]}:
            assert group["weight_decay"] == 0.0
            assert group["part"] == "decoder"


def test_dropout_only_while_training(before: Path) -> None:
    recipe = recipe_with(replace(EVERYTHING, dropout=0.5))
    recipe.train.init_from = str(before)
    model = cast(TimeViper, build_model(recipe))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("lora_B"):
                p.fill_(0.1)
    packs = step_packs(0)[:1]
    model.train()
    assert not torch.equal(model(packs[0]).loss_sum, model(packs[0]).loss_sum)
    model.eval()
    assert torch.equal(model(packs[0]).loss_sum, model(packs[0]).loss_sum)


# ---- settings and files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "key", "said"),
    [
        ({"targets": ["atention"]}, "model.lora.targets", "Did you mean attention?"),
        ({"targets": ["mamba.inn"]}, "model.lora.targets", "Did you mean mamba.in?"),
        ({"targets": []}, "model.lora.targets", "name what gets adapters"),
        ({"rank": -1}, "model.lora.rank", "0 (no adapters) or more"),
        ({"alpha": 0.0}, "model.lora.alpha", "above 0"),
        ({"dropout": 1.0}, "model.lora.dropout", "below 1"),
    ],
)
def test_settings_that_cannot_be(settings: dict, key: str, said: str) -> None:
    recipe = load_recipe(ROOT / "recipes/experiments/lora.yaml")
    assert not list(problems(recipe))
    recipe.model.lora = replace(recipe.model.lora, **settings)
    (found,) = problems(recipe)
    assert found.key == key
    assert said in found.message


def test_adapters_of_a_part_that_does_not_learn() -> None:
    recipe = load_recipe(ROOT / "recipes/experiments/lora.yaml")
    recipe.train.trainable = ["projector", "transv"]
    messages = [found.message for found in problems(recipe)]
    assert messages[0] == "attention adapts the part decoder, which is not in train.trainable: add it there."


def test_adapters_behind_a_shut_gate_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing behind a shut gate learns"):
        build_model(recipe_with(EVERYTHING))


def test_a_target_that_this_model_lacks() -> None:
    with pytest.raises(ValueError, match=r"this model has no mlp\.gate to adapt; it has .*mlp\.down"):
        meta_model(recipe_with(LoraConfig(rank=2, targets=["mlp.gate"])))


def test_adapters_of_another_model_or_scale_are_refused(tmp_path: Path) -> None:
    cfg = LoraConfig(rank=2, alpha=4.0, targets=["mlp"])
    state = build_model(recipe_with(cfg)).state_dict()
    lora.save_adapter(tmp_path / "a.safetensors", {k: v for k, v in state.items() if is_adapter(k)}, cfg)
    weights = str(tmp_path / "a.safetensors")
    build_model(recipe_with(replace(cfg, weights=weights)))
    with pytest.raises(ValueError, match=r"model.lora.alpha is 8, the file was trained with 4"):
        build_model(recipe_with(replace(cfg, weights=weights, alpha=8.0)))
    with pytest.raises(ValueError, match=r"lora_A is \[2, 24\], not \[4, 24\]"):
        build_model(recipe_with(replace(cfg, weights=weights, rank=4)))
    with pytest.raises(ValueError, match=r"missing: decoder\.blocks\.0\.mixer\.in_proj\.lora_A"):
        build_model(recipe_with(replace(cfg, weights=weights, targets=["mlp", "mamba"])))
    (tmp_path / "b.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="is no adapter file"):
        build_model(recipe_with(replace(cfg, weights=str(tmp_path / "b.safetensors"))))
