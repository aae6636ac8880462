"""What is new by its entries works everywhere: the examples of docs/extending.md, registered while a test runs."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

import json
import typing
from collections.abc import Collection
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import own_family
import own_selections
import own_tower
import pytest
import torch
from cost_helpers import ALL, build, counted, hybrid, make_pack, plain, saved_bytes
from model_helpers import HYBRID, PLAIN, PLAIN_GUIDED, make_decoder, make_prompts, run
from torch.testing import assert_close
from viper_helpers import TOWER, config, make_model, samples

from timeviper.config import DecoderConfig, ModelConfig, Recipe, TowerConfig, TransVConfig, TransVStage
from timeviper.config import model as settings
from timeviper.config.checks.model import model_problems
from timeviper.config.fields import field_types
from timeviper.config.presets import tiny
from timeviper.config.shape import PackShape, tokens_per_frame
from timeviper.datamodules.build import pack_format
from timeviper.inference.prefill import kept_bytes, prefill_chunks
from timeviper.inspection.transfer import Transferred, look_at
from timeviper.kernels.bounds import Bounds
from timeviper.model import selection
from timeviper.model.flops import Execution, executed_flops, total
from timeviper.model.layers import MLP, MLPS
from timeviper.model.state import Span
from timeviper.model.vision import build as towers
from timeviper.model.vision.build import build_tower, tower_class
from timeviper.model.vision.tower import Tower, to_pixels
from timeviper.pack import Kind
from timeviper.planning.activations import saved_activations
from timeviper.weights.hub import family as hub
from timeviper.weights.hub import towers as towers_hub
from timeviper.weights.hub.config import decoder_config, hub_config
from timeviper.weights.hub.convert import export_hf, import_hf, load_decoder
from timeviper.weights.hub.names import hub_names
from timeviper.weights.tensors import TensorFolder, write_tensors

CLOSE = dict(rtol=0, atol=1e-9)


def test_names_that_settings_take_are_those_of_the_tables() -> None:
    select = typing.get_args(field_types(TransVStage)["select"])
    assert select == tuple(settings.SELECTION_FACTS) == tuple(selection.SELECTIONS)
    families = typing.get_args(field_types(DecoderConfig)["family"])
    assert families == tuple(settings.FAMILY_FACTS)
    assert all(isinstance(hub.hub_family(name), hub.HubFamily) for name in families)
    encoders = typing.get_args(field_types(TowerConfig)["family"])
    assert encoders == tuple(settings.TOWER_FACTS)
    assert all(issubclass(tower_class(name), Tower) for name in encoders)
    assert {facts.mlp for facts in settings.FAMILY_FACTS.values()} <= MLPS.keys()


def assert_the_plan_is_right(cfg: ModelConfig, trainable: Collection[str] = ALL) -> None:
    """FLOPs and bytes of one pack as torch counts them."""
    pack = make_pack((6, 4, 0), (20, 30, 15), tokens_per_frame=tokens_per_frame(cfg))
    shape, execution = PackShape.of(pack), Execution("cpu")
    flops = total(executed_flops(cfg, shape, trainable, execution)).total
    assert flops == pytest.approx(sum(counted(build(cfg, trainable), pack)), rel=1e-3)
    kept = sum(saved.kept for saved in saved_activations(cfg, shape, trainable, execution, 4))
    assert kept == pytest.approx(saved_bytes(build(cfg, trainable), pack), rel=0.02)


# ---- a selection ----------------------------------------------------------------------------------------

STAGES = {"early": TransVStage(1, 0.5, "norm"), "late": TransVStage(4, 0.2, "latest")}  # both before an MLP


@pytest.fixture
def selections(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, facts in own_selections.FACTS.items():
        monkeypatch.setitem(settings.SELECTION_FACTS, name, facts)
        monkeypatch.setitem(selection.SELECTIONS, name, own_selections.SELECTIONS[name])


@pytest.mark.usefixtures("selections")
def test_an_own_selection_chooses_in_training() -> None:
    decoder, prompts = make_decoder(HYBRID, STAGES), make_prompts()
    out = run(decoder, prompts)
    expected, start = [], 0
    for prompt in prompts:
        bounds = Bounds([len(prompt.kind)])
        x = decoder.run(decoder.segments[0], prompt.x, bounds, None)  # as it is before the first transfer
        vision = torch.nonzero(prompt.kind == Kind.VISION).squeeze(1)
        half, fifth = (max(1, int(keep * len(vision))) if len(vision) else 0 for keep in (0.5, 0.2))
        best = vision[x[vision].norm(dim=1).topk(half).indices.sort().values]
        text = torch.nonzero(prompt.kind != Kind.VISION).squeeze(1)
        expected += (start + torch.cat([text, best[half - fifth :]]).sort().values).tolist()
        start += len(prompt.kind)
    assert out.index.tolist() == expected
    out.hidden.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in decoder.transv.parameters())


@pytest.mark.usefixtures("selections")
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_own_selection_chooses_in_pieces_of_a_prompt(size: int) -> None:
    decoder = make_decoder(HYBRID, STAGES)
    (prompt,) = make_prompts(["2c40v5i"])
    whole = run(decoder, [prompt])
    pieces = prefill_chunks(decoder, zip(prompt.x.split(size), prompt.kind.split(size)), prompt.vision, 7)
    assert pieces.kept == whole.kept
    assert_close(pieces.hidden[0], whole.hidden[-1], **CLOSE)
    pair = 2 * HYBRID.kv_heads * HYBRID.head_dim * 8  # key and value, float64
    dropped, cached = (40 - 20) + (20 - 8), (20 + 7) + (8 + 7)
    assert kept_bytes(decoder, 40, 7) == (cached + dropped) * pair + (40 + 7) * (HYBRID.width * 8 + 4)


@pytest.mark.usefixtures("selections")
def test_the_probe_sees_what_an_own_selection_drops() -> None:
    model, found = make_model(config(STAGES)).eval(), Transferred()
    with torch.no_grad():
        for pack in samples():
            look_at(model, pack, found)
    figures = found.figures(found.numbers())
    assert figures.keys() >= {"moved/early", "moved/late", "vision_attention/early", "kl"}
    assert not any(name.startswith("entropy") for name in figures)  # it is of stages that choose by attention
    assert 0 < figures["moved/early"] < figures["vision_attention/early"] < 1


@pytest.mark.usefixtures("selections")
def test_checks_and_the_plan_know_an_own_selection() -> None:
    model = replace(tiny(), transv=TransVConfig(stages=dict(STAGES)))
    assert list(model_problems(model)) == []
    assert pack_format(Recipe(model=model)).supervise == "all"
    cfg = hybrid()
    cfg.transv = TransVConfig(stages={"early": TransVStage(5, 0.5, "norm"), "late": TransVStage(8, 0.1, "latest")})
    assert_the_plan_is_right(cfg)


def test_a_name_without_an_entry_is_refused() -> None:
    model = replace(tiny(), transv=TransVConfig(stages={"early": TransVStage(1, 0.5, "norm")}))
    (finding,) = model_problems(model)
    assert (finding.key, finding.message) == (
        "model.transv.stages.early.select",
        "must be one of uniform, attention, mamba.",
    )


# ---- a decoder family -----------------------------------------------------------------------------------


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(settings.FAMILY_FACTS, "ungated", own_family.FACTS)
    monkeypatch.setitem(hub.FAMILIES, "ungated", own_family.Ungated())


UNREAD = {f.name: f.default for f in fields(DecoderConfig) if f.name.startswith(("ssm_", "chunk_"))}
UNGATED = replace(PLAIN, family="ungated", **UNREAD)


@pytest.mark.usefixtures("family")
def test_an_own_family_runs_whole_and_in_pieces() -> None:
    decoder = make_decoder(UNGATED, PLAIN_GUIDED)
    assert isinstance(decoder.blocks[1].mixer, MLP)
    assert decoder.blocks[0].mixer.q_proj.bias is None
    (prompt,) = make_prompts(["2c30v4i"])
    whole = run(decoder, [prompt])
    pieces = prefill_chunks(decoder, zip(prompt.x.split(7), prompt.kind.split(7)), prompt.vision, 4)
    assert_close(pieces.hidden[0], whole.hidden[-1], **CLOSE)
    assert decoder.with_rope(Span.fresh(Bounds([36]))).rope is not None


@pytest.mark.usefixtures("family")
def test_an_own_family_comes_from_hugging_face_and_goes_back(tmp_path: Path) -> None:
    decoder = make_decoder(UNGATED).float()
    names = hub_names(UNGATED)
    assert names["blocks.3.mixer.down_proj.weight"] == "model.layers.1.mlp.fc2.weight"
    write_tensors(tmp_path / "hub", [(names[name], p) for name, p in decoder.state_dict().items()])
    (tmp_path / "hub" / "config.json").write_text(json.dumps(hub_config(UNGATED, {}, "float32")))
    assert import_hf(tmp_path / "hub", tmp_path / "ours") == UNGATED
    export_hf(tmp_path / "ours", tmp_path / "back")
    for folder in ("hub", "ours", "back"):
        for name, tensor in load_decoder(tmp_path / folder).state_dict().items():
            assert torch.equal(tensor, decoder.state_dict()[name])
    with pytest.raises(ValueError, match="hidden_act is 'gelu'"):
        decoder_config(hub_config(UNGATED, {}, "float32") | {"hidden_act": "gelu"}, "config.json")


@pytest.mark.usefixtures("family")
def test_checks_and_the_plan_know_an_own_family() -> None:
    model = replace(tiny(), decoder=replace(tiny().decoder, family="ungated"))
    assert [f.message for f in model_problems(model)] == ["must repeat *- (attention, MLP) for ungated."]
    model.decoder.layout, model.decoder.head_dim = "*-*-", 31
    assert [f.message for f in model_problems(model)] == ["must be even: the rotary embedding turns pairs."]
    assert_the_plan_is_right(plain("ungated"))


# ---- a tower --------------------------------------------------------------------------------------------


@pytest.fixture
def tower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(settings.TOWER_FACTS, "clip", own_tower.FACTS)
    monkeypatch.setitem(towers.CLASSES, "clip", own_tower.CLIP)


CLIP = TowerConfig("clip", "", 28, 7, 24, 3, 2, 40, 0, -2, 4)


def whole_clip() -> Any:
    """Both halves, as published."""
    import transformers

    shared: dict[str, Any] = dict(hidden_size=24, num_hidden_layers=3, num_attention_heads=2, intermediate_size=40)
    vision = shared | dict(image_size=28, patch_size=7, hidden_act="gelu")
    text = shared | dict(vocab_size=30, bos_token_id=0, eos_token_id=1)
    torch.manual_seed(0)
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision))


@pytest.mark.usefixtures("tower")
def test_an_own_tower_comes_from_hugging_face_and_goes_back(tmp_path: Path) -> None:
    theirs = whole_clip()
    theirs.save_pretrained(tmp_path / "hub")
    found = import_hf(tmp_path / "hub", tmp_path / "ours")
    assert found == replace(CLIP, tokens=TowerConfig.tokens)
    assert not any("text" in name for name in TensorFolder(tmp_path / "ours").files)
    export_hf(tmp_path / "ours", tmp_path / "back")
    frames = torch.randint(256, (2, 3, 28, 28), dtype=torch.uint8)
    pixels = to_pixels(frames, 28, own_tower.CLIP.normalisation)
    hidden = theirs.vision_model(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    for folder in ("hub", "ours", "back"):
        encoder = build_tower(replace(CLIP, weights=str(tmp_path / folder)))
        assert_close(encoder(frames), hidden, rtol=1e-4, atol=1e-5)
    larger = build_tower(replace(CLIP, image_size=42, weights=str(tmp_path / "hub")))
    assert larger(frames, 4).shape == (2, 4, 24)
    with pytest.raises(ValueError, match=r"config\.json: hidden_act is 'quick_gelu'"):
        towers_hub.tower_config({"model_type": "clip_vision_model"}, "config.json")


@pytest.mark.usefixtures("tower")
def test_an_own_tower_learns_in_a_model() -> None:
    model = make_model(config(main=TOWER, other=replace(CLIP, image_size=14)))
    pack = samples()[0]
    assert model.encode(pack.frames).shape == (3, model.tokens_per_frame, HYBRID.width)
    model.encode(pack.frames).sin().sum().backward()
    assert all(p.grad is not None for p in model.towers["other"].parameters())


@pytest.mark.usefixtures("tower")
def test_checks_and_the_plan_know_an_own_tower() -> None:
    model = replace(tiny(), towers={"main": replace(CLIP, image_size=30, registers=2)})
    assert [f.key for f in model_problems(model)] == ["model.towers.main.registers", "model.towers.main.image_size"]
    encoder = replace(CLIP, image_size=32, patch_size=8, width=64, heads=4, mlp_width=128)
    assert_the_plan_is_right(hybrid(second=encoder), ("tower", *ALL))
