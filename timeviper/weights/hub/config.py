"""A decoder's settings out of a Hugging Face `config.json`, and back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from timeviper.config import DecoderConfig

MODEL_TYPES = ("nemotron_h", "llama", "qwen2")
# Both spellings of the layer pattern, and those of older versions.
_LETTERS = {
    "linear_attention": "M",
    "mamba": "M",
    "full_attention": "*",
    "attention": "*",
    "mlp": "-",
    "moe": "E",
}
_WORDS = {"M": "linear_attention", "*": "full_attention", "-": "mlp"}


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` with infinity as a float, whether written bare or as `{"__float__": "Infinity"}`."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no config.json: give a local folder in Hugging Face layout")
    try:
        return json.loads(path.read_text(), object_hook=lambda d: float(d["__float__"]) if "__float__" in d else d)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def decoder_config(raw: dict[str, Any], where: str) -> DecoderConfig:
    """The decoder that a `config.json` describes.

    Raises ValueError that lists everything in it that this decoder cannot compute.
    """
    kind = raw.get("model_type")
    if kind not in MODEL_TYPES:
        raise ValueError(f"{where}: model_type {kind!r} is no decoder known here ({', '.join(MODEL_TYPES)})")
    problems: list[str] = []
    cfg = _nemotron_h(raw, problems) if kind == "nemotron_h" else _transformer(raw, kind, problems)
    if problems:
        raise ValueError("\n  ".join([f"{where} describes a model that cannot be built here:", *problems]))
    return cfg


def _nemotron_h(raw: dict[str, Any], problems: list[str]) -> DecoderConfig:
    # (a setting, the only value that the blocks compute, what an absent key means)
    for key, wanted in (
        ("mlp_hidden_act", "relu2"),
        ("mamba_hidden_act", "silu"),
        ("use_bias", False),
        ("mlp_bias", False),
        ("attention_bias", False),
        ("use_conv_bias", True),
    ):
        if raw.get(key, wanted) != wanted:
            problems.append(f"{key} is {raw[key]!r}; only {wanted!r} is computed")
    limit = _first(raw, "time_step_limit", "mamba_dt_limit", default=[0.0, math.inf])
    if [float(v) for v in limit] != [0.0, math.inf]:
        problems.append(f"time_step_limit is {limit}; only [0, Infinity] (no limit) is computed")
    return DecoderConfig(
        family="nemotron_h",
        layout=_layout(raw, problems),
        vocab_size=raw.get("vocab_size", 131072),
        width=raw.get("hidden_size", 4096),
        mlp_width=raw.get("intermediate_size", 21504),
        heads=raw.get("num_attention_heads", 32),
        kv_heads=raw.get("num_key_value_heads", 8),
        head_dim=_first(raw, "head_dim", "attention_head_dim", default=128),
        ssm_heads=raw.get("mamba_num_heads", 128),
        ssm_head_dim=raw.get("mamba_head_dim", 64),
        ssm_state=raw.get("ssm_state_size", 128),
        ssm_groups=_first(raw, "n_groups", "mamba_n_groups", default=8),
        conv_kernel=_first(raw, "conv_kernel", "mamba_d_conv", default=4),
        chunk_size=_first(raw, "chunk_size", "mamba_chunk_size", default=128),
        norm_eps=_first(raw, "layer_norm_epsilon", "rms_norm_eps", default=1e-5),
        tie_embeddings=raw.get("tie_word_embeddings", False),
        max_tokens=raw.get("max_position_embeddings", 4096),
    )


def _layout(raw: dict[str, Any], problems: list[str]) -> str:
    pattern = raw.get("hybrid_override_pattern")
    if not pattern:
        words = _first(raw, "layers_block_type", "layer_types", default=[])
        if unknown := sorted(set(words) - set(_LETTERS)):
            problems.append(f"layers_block_type has {', '.join(unknown)}; known: {', '.join(_LETTERS)}")
        pattern = "".join(_LETTERS.get(word, "?") for word in words)
    if not pattern:
        problems.append("neither hybrid_override_pattern nor layers_block_type says what the layers are")
    if "E" in pattern:
        problems.append("the pattern has mixture-of-experts layers (E, moe), which are not supported")
    elif unknown := sorted(set(pattern) - set("M*-?")):
        problems.append(f"hybrid_override_pattern has {' '.join(map(repr, unknown))}; letters are M, * and -")
    if pattern and "*" not in pattern:
        problems.append("the pattern has no attention layer (*)")
    count = raw.get("num_hidden_layers", len(pattern))
    if count != len(pattern):
        problems.append(f"the pattern has {len(pattern)} layers, but num_hidden_layers is {count}")
    return pattern


def _transformer(raw: dict[str, Any], kind: str, problems: list[str]) -> DecoderConfig:
    for key, wanted in (("hidden_act", "silu"), ("mlp_bias", False), ("use_sliding_window", False)):
        if raw.get(key, wanted) != wanted:
            problems.append(f"{key} is {raw[key]!r}; only {wanted!r} is computed")
    if kind == "llama" and raw.get("attention_bias"):
        problems.append("attention_bias is true; llama attention has no biases here")
    if other := sorted(set(raw.get("layer_types") or []) - {"full_attention"}):
        problems.append(f"layer_types has {', '.join(other)}; only full_attention is computed")
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type != "default":
        problems.append(f"the rotary embedding is scaled ({rope_type}); only the default one is computed")
    heads = raw.get("num_attention_heads", 32)
    return DecoderConfig(
        family="llama" if kind == "llama" else "qwen2",
        layout="*-" * raw.get("num_hidden_layers", 32),
        vocab_size=raw.get("vocab_size", 32000 if kind == "llama" else 151936),
        width=raw.get("hidden_size", 4096),
        mlp_width=raw.get("intermediate_size", 11008 if kind == "llama" else 22016),
        heads=heads,
        kv_heads=_first(raw, "num_key_value_heads", default=heads),
        head_dim=_first(raw, "head_dim", default=raw.get("hidden_size", 4096) // heads),
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        rope_theta=float(_first(rope, "rope_theta", default=raw.get("rope_theta", 10000.0))),
        tie_embeddings=raw.get("tie_word_embeddings", False),
        max_tokens=raw.get("max_position_embeddings", 2048 if kind == "llama" else 32768),
    )


def _first(raw: dict[str, Any], *keys: str, default: Any) -> Any:
    """The value of the first key that is there and not null."""
    return next((raw[key] for key in keys if raw.get(key) is not None), default)


def hub_config(cfg: DecoderConfig, original: dict[str, Any], dtype: str) -> dict[str, Any]:
    """`config.json` of a decoder for transformers 5.15 and later, which also older readers understand.

    original: the config that the weights were imported with, for what a decoder does not know (token ids).
    """
    shared = {
        "model_type": cfg.family,
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.width,
        "intermediate_size": cfg.mlp_width,
        "num_hidden_layers": len(cfg.layout) // (1 if cfg.family == "nemotron_h" else 2),
        "num_attention_heads": cfg.heads,
        "num_key_value_heads": cfg.kv_heads,
        "head_dim": cfg.head_dim,
        "tie_word_embeddings": cfg.tie_embeddings,
        "max_position_embeddings": cfg.max_tokens,
        "torch_dtype": dtype,
    }
    own = _nemotron_h_keys(cfg) if cfg.family == "nemotron_h" else _transformer_keys(cfg)
    stale = ("auto_map", "dtype", "layer_types", "transformers_version")  # of files that do not come along
    return {k: v for k, v in original.items() if k not in stale} | shared | own


def _nemotron_h_keys(cfg: DecoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["NemotronHForCausalLM"],
        "hybrid_override_pattern": cfg.layout,
        "layers_block_type": [_WORDS[letter] for letter in cfg.layout],
        "attention_head_dim": cfg.head_dim,
        "mamba_num_heads": cfg.ssm_heads,
        "mamba_head_dim": cfg.ssm_head_dim,
        "ssm_state_size": cfg.ssm_state,
        "n_groups": cfg.ssm_groups,
        "conv_kernel": cfg.conv_kernel,
        "chunk_size": cfg.chunk_size,
        "layer_norm_epsilon": cfg.norm_eps,
        "rms_norm_eps": cfg.norm_eps,
        "mlp_hidden_act": "relu2",
        "mamba_hidden_act": "silu",
        "use_bias": False,
        "mlp_bias": False,
        "attention_bias": False,
        "use_conv_bias": True,
        "time_step_limit": [0.0, math.inf],
    }


def _transformer_keys(cfg: DecoderConfig) -> dict[str, Any]:
    return {
        "architectures": [{"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[cfg.family]],
        "hidden_act": "silu",
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rope_theta},
    }
