"""Folders of weights: round trips in bounded memory, and an error for everything that does not fit."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_folders import FAMILIES, damage, write_hub, write_tower
from model_helpers import HYBRID
from safetensors.torch import load_file, save_file

from timeviper.config import Recipe, TowerConfig, TrainConfig, TransVConfig, TransVStage
from timeviper.errors import ConfigError
from timeviper.model.vision.build import build_tower
from timeviper.weights.export import build_model
from timeviper.weights.hub.config import decoder_config, hub_config, read_config
from timeviper.weights.hub.convert import export_hf, import_hf, load_decoder, open_weights
from timeviper.weights.tensors import TensorFolder, write_tensors


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip(family: str, tmp_path: Path) -> None:
    cfg = FAMILIES[family]
    decoder = write_hub(tmp_path / "hub", cfg, bos_token_id=7, auto_map={"AutoConfig": "x.y"})
    (tmp_path / "hub" / "tokenizer.json").write_text("{}")
    assert import_hf(tmp_path / "hub", tmp_path / "ours", shard_bytes=10_000) == cfg
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 3
    export_hf(tmp_path / "ours", tmp_path / "back")
    raw = read_config(tmp_path / "back")
    assert raw["bos_token_id"] == 7
    assert "auto_map" not in raw
    assert (tmp_path / "back" / "tokenizer.json").is_file()
    for folder in ("hub", "ours", "back"):
        loaded = load_decoder(tmp_path / folder)
        assert not loaded.training
        for name, tensor in loaded.state_dict().items():
            assert torch.equal(tensor, decoder.state_dict()[name]), (folder, name)


def test_only_one_shard_is_in_memory_at_a_time(tmp_path: Path) -> None:
    written: list[int] = []

    def tensors():
        for i in range(6):
            written.append(len(list(tmp_path.glob("*"))))
            yield f"t{i}", torch.full((100,), float(i))

    write_tensors(tmp_path, tensors(), shard_bytes=800)
    assert written == [0, 0, 0, 1, 1, 2]
    assert len(list(tmp_path.glob("model-*-of-00003.safetensors"))) == 3
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2400
    write_tensors(tmp_path, [("t", torch.zeros(1))])
    assert [path.name for path in tmp_path.glob("*")] == ["model.safetensors"]


def test_dtypes(tmp_path: Path) -> None:
    """The recurrence stays in float32 (float64 in a float64 model)."""
    write_hub(tmp_path, HYBRID)
    for dtype, wide in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        for name, p in load_decoder(tmp_path, dtype).named_parameters():
            assert p.dtype == (wide if name.rsplit(".")[-1] in ("A_log", "D", "dt_bias") else dtype), name


def test_transfers_start_from_loaded_attention(tmp_path: Path) -> None:
    write_hub(tmp_path, HYBRID)
    transv = TransVConfig(stages={"a": TransVStage(3, 0.5)})
    decoder = load_decoder(tmp_path, torch.float64, transv=transv)
    assert torch.equal(decoder.transv["a"].q_proj.weight, decoder.blocks[5].mixer.q_proj.weight)
    assert decoder.transv["a"].alpha.item() == 0


def test_a_stage_starts_from_a_folder_row_by_row(tmp_path: Path) -> None:
    write_hub(tmp_path, HYBRID)
    recipe = Recipe(train=TrainConfig(trainable=["decoder"]))
    recipe.model.decoder = replace(HYBRID, weights=str(tmp_path), rope_theta=7.0)  # which nothing here reads
    recipe.model.transv = TransVConfig(stages={"a": TransVStage(3, 0.5)})
    decoder = load_decoder(tmp_path, torch.float64, transv=recipe.model.transv)
    own = dict(build_model(recipe).named_parameters())
    for name, p in decoder.named_parameters():
        assert torch.equal(own[f"decoder.{name}"].double(), p), name
    recipe.model.decoder.norm_eps = 0.1
    with pytest.raises(ValueError, match=r"model\.decoder\.norm_eps is 0\.1, the folder says 1e-05"):
        build_model(recipe)


def test_every_tensor_that_does_not_fit_is_listed_at_once(tmp_path: Path) -> None:
    write_hub(tmp_path, HYBRID)
    damage(
        tmp_path,
        backbone__layers__0__mixer__D=None,
        backbone__norm_f__weight=torch.ones(25),
        backbone__layers__8__norm__weight=torch.ones(24),
        lm_head__bias=torch.ones(61),
    )
    with pytest.raises(ValueError, match="does not hold") as error:
        load_decoder(tmp_path)
    for line in (
        "missing: backbone.layers.0.mixer.D",
        "another shape: backbone.norm_f.weight is [25], the config asks for [24]",
        "unexpected: backbone.layers.8.norm.weight [24]",
        "unexpected: lm_head.bias [61]",
    ):
        assert line in str(error.value)


def test_damaged_folders(tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_decoder(folder)
    write_hub(folder, HYBRID)
    damage(folder, backbone__layers__0__mixer__D=torch.tensor([1.0, math.nan, 1, 1, 1, 1]))
    with pytest.raises(ValueError, match=r"backbone\.layers\.0\.mixer\.D holds NaN"):
        load_decoder(folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated"):
        load_decoder(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is a pickle"):
        load_decoder(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_decoder(folder)
    write_hub(folder, HYBRID)
    import_hf(folder, tmp_path / "ours", shard_bytes=10_000)
    gone = sorted((tmp_path / "ours").glob("model-*"))[1]
    gone.unlink()
    with pytest.raises(ValueError, match=gone.name):
        load_decoder(tmp_path / "ours")
    with pytest.raises(ValueError, match="same folder"):
        import_hf(folder, folder)


def nemotron(**changes: Any) -> dict[str, Any]:
    return hub_config(HYBRID, {}, "float32") | changes


def test_both_spellings_of_the_pattern() -> None:
    for layers in (
        ["linear_attention", "mlp", "full_attention", "linear_attention"],
        ["mamba", "mlp", "attention", "mamba"],
    ):
        for key in ("layers_block_type", "layer_types"):
            raw = nemotron(num_hidden_layers=4)
            del raw["hybrid_override_pattern"], raw["layers_block_type"]
            assert decoder_config(raw | {key: layers}, "config").layout == "M-*M"


def test_both_forms_of_infinity(tmp_path: Path) -> None:
    for text in ('{"__float__": "Infinity"}', "Infinity"):
        raw = json.dumps(nemotron(time_step_limit=[0.0, "X"])).replace('"X"', text)
        (tmp_path / "config.json").write_text(raw)
        assert decoder_config(read_config(tmp_path), "config") == HYBRID


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(model_type="gpt2"), "model_type 'gpt2'"),
        (dict(hybrid_override_pattern="M-*x", num_hidden_layers=4), "'x'"),
        (dict(hybrid_override_pattern="M-M-", num_hidden_layers=4), "no attention layer"),
        (dict(hybrid_override_pattern="M-*"), "3 layers, but num_hidden_layers is 8"),
        (dict(hybrid_override_pattern="ME*", num_hidden_layers=3), "mixture-of-experts"),
        (dict(time_step_limit=[0.001, math.inf]), "time_step_limit"),
        (dict(mlp_hidden_act="silu"), "mlp_hidden_act is 'silu'"),
        (dict(use_bias=True), "use_bias is True"),
        (dict(model_type="llama", rope_scaling={"rope_type": "llama3"}, rope_parameters=None), "llama3"),
        (dict(model_type="qwen2", use_sliding_window=True), "use_sliding_window"),
        (dict(model_type="llama", attention_bias=True), "attention_bias"),
    ],
)
def test_models_that_cannot_be_built_say_why(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoder_config(nemotron(**changes), "config.json")


def test_groups_that_do_not_divide_heads(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(nemotron(n_groups=4)))
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="ssm_groups"):
        open_weights(tmp_path)


# ---- vision encoders --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["siglip", "dinov2", "dinov2_with_registers"])
def test_encoders_come_in_and_go_out(kind: str, tmp_path: Path) -> None:
    cfg = write_tower(tmp_path / "hub", kind)
    found = import_hf(tmp_path / "hub", tmp_path / "ours")
    assert isinstance(found, TowerConfig)
    assert found == replace(TowerConfig(), **{k: v for k, v in asdict(cfg).items() if k not in ("tokens",)})
    assert not any("text" in name for name in TensorFolder(tmp_path / "ours").files)
    export_hf(tmp_path / "ours", tmp_path / "back")
    frames = torch.randint(256, (2, 3, 28, 28), dtype=torch.uint8)
    expected = build_tower(replace(cfg, weights=str(tmp_path / "hub")))(frames)
    for folder in ("ours", "back"):
        tower = build_tower(replace(cfg, weights=str(tmp_path / folder)))
        assert torch.equal(tower(frames), expected)


def test_encoders_with_wrong_tensors_are_refused(tmp_path: Path) -> None:
    write_tower(tmp_path / "hub", "dinov2")
    state = load_file(tmp_path / "hub" / "model.safetensors")
    del state["layernorm.bias"]
    state["layernorm.weight"] = torch.ones(25)
    state["extra.weight"] = torch.ones(2)
    save_file(state, tmp_path / "hub" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="does not hold the encoder") as error:
        import_hf(tmp_path / "hub", tmp_path / "ours")
    for line in ("missing: layernorm.bias", "unexpected: extra.weight", "another shape: layernorm.weight is [25]"):
        assert line in str(error.value)
