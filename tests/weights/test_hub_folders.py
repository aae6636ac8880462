"""Folders as downloads leave them: quantised, doubled, tied; and what is written for other programs."""

# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_folders import FAMILIES, damage, write_hub, write_tower
from jobs import write_recipe
from model_helpers import HYBRID
from safetensors.torch import load_file, save_file

from timeviper.config import LoraConfig, Recipe, TransVConfig
from timeviper.config.load import load_recipe
from timeviper.errors import ConfigError
from timeviper.model.parts import is_adapter
from timeviper.tokenizer import Tokenizer
from timeviper.training.inputs import check_inputs
from timeviper.weights.export import build_model, starting_points, write_export
from timeviper.weights.hub.convert import export_hf, import_hf, load_decoder
from timeviper.weights.peft import export_adapter
from timeviper.weights.tensors import TensorFolder, write_tensors

PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8])
@pytest.mark.parametrize("scales", [True, False])
def test_quantised_weights_are_refused_by_name(tmp_path: Path, dtype: torch.dtype, scales: bool) -> None:
    write_hub(tmp_path / "hub", FAMILIES["llama"])
    state = load_file(tmp_path / "hub/model.safetensors")
    state[PROJ] = state[PROJ].to(dtype)
    state |= {f"{PROJ}_scale": torch.ones(1)} if scales else {}
    save_file(state, tmp_path / "hub/model.safetensors")
    with pytest.raises(ValueError, match="quantised weights") as error:
        import_hf(tmp_path / "hub", tmp_path / "ours")
    assert f"{str(dtype).removeprefix('torch.')}: 1 tensors, such as {PROJ}" in str(error.value)
    assert not (tmp_path / "ours").exists()


def test_a_config_that_tells_of_quantisation_is_believed(tmp_path: Path) -> None:
    write_hub(tmp_path, FAMILIES["llama"], quantization_config={"quant_method": "fp8"})
    with pytest.raises(ValueError, match=r"quantization_config says that the weights are quantised \(fp8\)"):
        load_decoder(tmp_path)


def test_a_quantised_encoder_is_refused_by_name(tmp_path: Path) -> None:
    write_tower(tmp_path / "hub", "dinov2")
    state = load_file(tmp_path / "hub/model.safetensors")
    name = next(n for n in state if n.endswith("query.weight"))
    state[name] = state[name].to(torch.float8_e4m3fn)
    save_file(state, tmp_path / "hub/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"float8_e4m3fn: 1 tensors, such as {name}"):
        import_hf(tmp_path / "hub", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_one_tensor_in_two_files_is_refused_without_an_index_and_said_with_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_hub(tmp_path / "a", HYBRID)
    shutil.copytree(tmp_path / "a", tmp_path / "variant")
    shutil.copy(tmp_path / "a/model.safetensors", tmp_path / "variant/model.fp16.safetensors")
    with pytest.raises(ValueError, match=r"twice, in model\.fp16\.safetensors and in model\.safetensors"):
        load_decoder(tmp_path / "variant")
    whole = load_file(tmp_path / "a/model.safetensors")
    write_tensors(tmp_path / "both", whole.items(), shard_bytes=10_000)
    shutil.copy(tmp_path / "a/config.json", tmp_path / "both")
    save_file({k: t + 1 for k, t in whole.items()}, tmp_path / "both/model.safetensors")
    with caplog.at_level(logging.WARNING, "timeviper"):
        read = load_decoder(tmp_path / "both")
    assert torch.equal(read.norm_f.weight, whole["backbone.norm_f.weight"])
    assert "beside the shards of" in caplog.text


def test_a_tied_head_of_its_own_that_differs_is_refused(tmp_path: Path) -> None:
    cfg = replace(HYBRID, tie_embeddings=True)
    write_hub(tmp_path, cfg)
    same = load_file(tmp_path / "model.safetensors")["backbone.embeddings.weight"]
    damage(tmp_path, lm_head__weight=same.clone())
    load_decoder(tmp_path)
    damage(tmp_path, lm_head__weight=same + 1)
    with pytest.raises(ValueError, match="tie_word_embeddings, but lm_head"):
        load_decoder(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_tied_exports_are_what_transformers_loads(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    decoder = write_hub(tmp_path / "hub", replace(FAMILIES[family], tie_embeddings=True))
    import_hf(tmp_path / "hub", tmp_path / "ours")
    export_hf(tmp_path / "ours", tmp_path / "back")
    options: dict[str, Any] = dict(dtype=torch.float32, output_loading_info=True)
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "back", **options)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(model.lm_head.weight, decoder.embeddings.weight)
    assert torch.equal(load_decoder(tmp_path / "back").embeddings.weight, decoder.embeddings.weight)


def test_a_folder_that_holds_something_is_not_overwritten(tmp_path: Path) -> None:
    write_hub(tmp_path / "hub", HYBRID)
    (tmp_path / "ours").mkdir()  # empty: taken
    import_hf(tmp_path / "hub", tmp_path / "ours")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "ours").iterdir()}
    for call in (import_hf, export_hf):
        with pytest.raises(FileExistsError, match="not overwritten"):
            call(tmp_path / "hub", tmp_path / "ours")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "ours").iterdir()} == before
    (tmp_path / "note").write_text("mine")
    with pytest.raises(FileExistsError, match="not overwritten"):
        export_hf(tmp_path / "ours", tmp_path / "note")


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_have_the_mode_that_the_umask_leaves(tmp_path: Path, mask: int) -> None:
    write_hub(tmp_path / "hub", HYBRID)
    write_tower(tmp_path / "tower", "dinov2")
    before = os.umask(mask)
    try:
        import_hf(tmp_path / "hub", tmp_path / "ours", shard_bytes=10_000)
        import_hf(tmp_path / "tower", tmp_path / "encoder")
    finally:
        os.umask(before)
    made = [p for folder in ("ours", "encoder") for p in (tmp_path / folder).iterdir()]
    assert {stat.S_IMODE(p.stat().st_mode) for p in made} == {0o666 & ~mask}


@pytest.mark.parametrize("family", ["llama", "nemotron_h"])
def test_adapters_for_peft_make_the_merged_weights_out_of_those_before(family: str, tmp_path: Path) -> None:
    """By peft's rule, W + alpha / r B A, on the modules that its names find in transformers' model."""
    from transformers import AutoModelForCausalLM

    write_hub(tmp_path / "base", FAMILIES[family])
    recipe = load_recipe(write_recipe(tmp_path))
    recipe.train.trainable = ["decoder"]
    recipe.model.decoder = replace(FAMILIES[family], weights=str(tmp_path / "base"))
    recipe.model.transv = TransVConfig(stages={})
    recipe.model.lora = LoraConfig(rank=2, alpha=6.0, targets=["attention.q", "mlp"])
    state = build_model(recipe).state_dict()
    for name in (n for n in state if is_adapter(n)):
        state[name] = torch.randn_like(state[name])
    write_export(tmp_path / "export", state, recipe, Tokenizer.load(""), step=1)
    said = export_adapter(tmp_path / "export", tmp_path / "peft")
    assert str(tmp_path / "base") in said
    config = json.loads((tmp_path / "peft/adapter_config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    found = load_file(tmp_path / "peft/adapter_model.safetensors")
    with torch.no_grad():
        for name in config["target_modules"]:
            (path,) = [n for n, _ in model.named_modules() if n.endswith(f".{name}")]
            a, b = (found.pop(f"base_model.model.{path}.lora_{x}.weight") for x in "AB")
            model.get_submodule(path).weight += config["lora_alpha"] / config["r"] * b @ a
    assert not found
    export_hf(tmp_path / "export", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, merged[name], rtol=1e-6, atol=1e-6)
    assert len(TensorFolder(tmp_path / "peft").files) == 2 * len(config["target_modules"])


def adapted(folder: Path, family: str = "llama", **settings: Any) -> Recipe:
    """A stage with adapters on a language model of a hub folder, which is written where it is not there."""
    if not (folder / "base").is_dir():
        write_hub(folder / "base", FAMILIES[family])
    recipe = load_recipe(write_recipe(folder))
    recipe.train.trainable = ["decoder"]
    recipe.model.decoder = replace(FAMILIES[family], weights=str(folder / "base"))
    recipe.model.transv = TransVConfig(stages={})
    recipe.model.lora = LoraConfig(**{"rank": 2, "alpha": 6.0, "targets": ["attention.q", "mlp"]} | settings)
    return recipe


def written(folder: Path, family: str = "llama") -> dict[str, Any]:
    """Adapters in an export, `export`, and as peft keeps them, `peft`; the state that they are of."""
    recipe = adapted(folder, family)
    state = build_model(recipe).state_dict()
    for name in (n for n in state if is_adapter(n)):
        state[name] = torch.randn_like(state[name])
    write_export(folder / "export", state, recipe, Tokenizer.load(""), step=1)
    export_adapter(folder / "export", folder / "peft")
    return state


@pytest.mark.parametrize("family", ["llama", "nemotron_h"])
def test_a_stage_starts_from_adapters_of_peft(family: str, tmp_path: Path) -> None:
    """Or of a run, its export, or the file: the same weights. What peft has no place for adds nothing."""
    state = written(tmp_path, family)
    file = "export/adapter/adapter.safetensors"
    for place in ("peft", "export", file, "."):
        found = build_model(adapted(tmp_path, family, weights=str(tmp_path / place))).state_dict()
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], state[name]) for name in state if name.startswith("decoder."))
    more = adapted(tmp_path, family, weights=str(tmp_path / "peft"), targets=["attention.q", "mlp", "projector"])
    more.train.trainable = ["decoder", "projector"]
    found = build_model(more).state_dict()
    added = [name for name in found if name not in state]
    assert added
    assert all(name.startswith("projector") for name in added)
    assert not any(found[name].any() for name in added if name.endswith("lora_B"))
    assert "adapters from" in starting_points(more)[0]


def test_adapters_of_peft_that_would_compute_something_else_are_refused(tmp_path: Path) -> None:
    written(tmp_path)
    folder, config = tmp_path / "peft", json.loads((tmp_path / "peft/adapter_config.json").read_text())

    def refused(match: str, **settings: Any) -> None:
        with pytest.raises(ValueError, match=match):
            build_model(adapted(tmp_path, weights=str(folder), **settings))

    refused(r"model\.lora\.alpha is 16, there lora_alpha is 6", alpha=16.0)
    refused(r"(?s)model\.lora\.rank is 4, there r is 2.*lora_A\.weight is \[2, \d+\], not \[4", rank=4)
    refused(r"missing: decoder\.blocks\.\d\.mixer\.k_proj\.lora_A", targets=["attention", "mlp"])
    refused(r"unexpected: base_model\.model\.model\.layers\.0\.mlp", targets=["attention.q"])
    for key, value in {
        "use_rslora": True,
        "use_dora": True,
        "peft_type": "IA3",
        "bias": "all",
        "alpha_pattern": {"q_proj": 8},
        "modules_to_save": ["lm_head"],
    }.items():
        (folder / "adapter_config.json").write_text(json.dumps(config | {key: value}))
        refused(f"{key} is .* there: only .* is computed here")
    (folder / "adapter_config.json").write_text("{")
    refused("adapter_config.json: no JSON")
    (folder / "adapter_config.json").write_text(json.dumps(config | {"modules_to_save": None, "use_dora": None}))
    build_model(adapted(tmp_path, weights=str(folder)))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    refused(r"no adapter_model\.safetensors")
    folder = tmp_path / "base"
    refused("holds no adapters: it takes")
    recipe = adapted(tmp_path)
    for name, key in (("peft", "model.lora.weights"), ("base", "model.decoder.weights")):
        recipe.train.init_from = str(tmp_path / name)
        with pytest.raises(ConfigError, match=rf"no.* the export of a finished stage(?s:.*){key}=.*{name}"):
            build_model(recipe)
    with pytest.raises(ConfigError, match=r"model\.lora\.weights"):
        check_inputs(adapted(tmp_path, weights=str(tmp_path / "nowhere")))


def test_an_export_without_adapters_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no adapters .* without model\.lora"):
        export_adapter(tmp_path, tmp_path / "peft")
