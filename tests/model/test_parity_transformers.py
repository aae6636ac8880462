"""Against transformers on random models of every family: logits, greedy continuations, export read back."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from model_helpers import HYBRID  # noqa: F401  (one thread: small tensors)
from transformers import AutoModelForCausalLM, LlamaConfig, NemotronHConfig, Qwen2Config

from timeviper.inference.generate import generate
from timeviper.weights.hub.convert import export_hf, import_hf, load_decoder

LENGTHS = (1, 2, 3, 16, 17, 127, 128, 129, 300)
NEMOTRON = dict(
    hidden_size=60,
    vocab_size=97,
    intermediate_size=92,
    num_attention_heads=6,
    num_key_value_heads=3,
    head_dim=12,
    mamba_num_heads=10,
    mamba_head_dim=7,
    n_groups=5,
    ssm_state_size=9,
    conv_kernel=4,
    chunk_size=32,
    max_position_embeddings=512,
)
PLAIN = dict(
    hidden_size=56,
    vocab_size=97,
    intermediate_size=100,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_hidden_layers=3,
    max_position_embeddings=512,
)
CONFIGS: dict[str, Any] = {
    "nemotron_h": lambda: NemotronHConfig(hybrid_override_pattern="M-M*-MM*-", num_hidden_layers=9, **NEMOTRON),
    "nemotron_h two groups": lambda: NemotronHConfig(
        hybrid_override_pattern="*M-M", num_hidden_layers=4, **NEMOTRON | dict(n_groups=2, conv_kernel=3)
    ),
    "llama": lambda: LlamaConfig(head_dim=14, rope_theta=500.0, rms_norm_eps=1e-5, **PLAIN),
    "qwen2 tied": lambda: Qwen2Config(rope_theta=1000.0, tie_word_embeddings=True, **PLAIN),
}


def make_theirs(name: str) -> Any:
    """A random model of transformers, with no weight left at its starting constant."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]()).float().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * (0.05 if p.ndim > 1 else 0.2))
    return without_clamp(model)


def without_clamp(model: Any) -> Any:
    """The published models do not limit dt; transformers' torch path does, from below at 0.001."""
    for module in model.modules():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = (0.0, math.inf)
    return model


def compare(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    error = (ours - theirs).abs().max() / theirs.abs().max()
    assert error < 1e-4, f"logits differ by {error:.1e} of their scale"


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    theirs = make_theirs(request.param)
    folder = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder)
    return theirs, folder


@torch.inference_mode()
def test_logits_and_greedy_continuations(pair: tuple[Any, Path]) -> None:
    theirs, folder = pair
    decoder = load_decoder(folder)
    ids = [torch.randint(97, (n,)) for n in LENGTHS]
    packed = decoder.logits(torch.cat(ids), torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32))
    for part, one in zip(packed.split(LENGTHS), ids):
        compare(part, theirs(one[None]).logits[0])
    prompts = [one for one in ids if 2 < len(one) < 200]
    for mine, prompt in zip(generate(decoder, prompts, 24), prompts):
        options = dict(max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)
        mask = torch.ones_like(prompt[None])  # else every id that equals the pad would be hidden
        out = theirs.generate(prompt[None], attention_mask=mask, **options)
        assert mine.tolist() == out[0, len(prompt) :].tolist()


@torch.inference_mode()
def test_export_is_read_back_by_transformers(pair: tuple[Any, Path], tmp_path: Path) -> None:
    theirs, folder = pair
    import_hf(folder, tmp_path / "ours", shard_bytes=40_000)
    export_hf(tmp_path / "ours", tmp_path / "back", shard_bytes=60_000)
    assert len(list((tmp_path / "back").glob("model-*.safetensors"))) > 1
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "back", output_loading_info=True, dtype=torch.float32)
    again, info = loaded
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    ids = torch.randint(97, (1, 70))
    assert torch.equal(without_clamp(again)(ids).logits, theirs(ids).logits)
    assert torch.equal(load_decoder(tmp_path / "ours").logits(ids[0]), load_decoder(folder).logits(ids[0]))


@torch.inference_mode()
def test_a_hub_style_folder(tmp_path: Path) -> None:
    """As published: pattern string, other spellings, a bare Infinity, files of remote code, draft heads."""
    from safetensors.torch import load_file, save_file

    theirs = make_theirs("nemotron_h")
    theirs.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    for key in ("layers_block_type", "layer_types", "head_dim", "dtype", "n_groups", "conv_kernel", "chunk_size"):
        raw.pop(key, None)
    raw |= dict(
        hybrid_override_pattern="M-M*-MM*-",
        num_hidden_layers=9,
        attention_head_dim=12,
        mamba_n_groups=5,
        mamba_d_conv=4,
        mamba_chunk_size=32,
        time_step_limit=[0.0, math.inf],
        torch_dtype="bfloat16",
        auto_map={"AutoConfig": "configuration_nemotron_h.NemotronHConfig"},
    )
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert "Infinity]" in (tmp_path / "config.json").read_text()
    state = load_file(tmp_path / "model.safetensors")
    assert "backbone.embeddings.weight" in state
    state["backbone.embedding.weight"] = state.pop("backbone.embeddings.weight")
    state["mtp.layers.0.norm.weight"] = torch.ones(3)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ids = torch.randint(97, (40,))
    compare(load_decoder(tmp_path).logits(ids), theirs(ids[None]).logits[0])
    renamed = {name.replace("backbone.", "model."): tensor for name, tensor in state.items()}
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    compare(load_decoder(tmp_path).logits(ids), theirs(ids[None]).logits[0])
