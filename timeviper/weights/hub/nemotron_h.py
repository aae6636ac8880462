"""Nemotron-H in Hugging Face folders: a layer is one of our blocks."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from timeviper.config import DecoderConfig
from timeviper.weights.hub.family import HubFamily, first, only_computed

# Both spellings of the layer pattern, and those of older versions.
LETTERS = {
    "linear_attention": "M",
    "mamba": "M",
    "full_attention": "*",
    "attention": "*",
    "mlp": "-",
    "moe": "E",
}
WORDS = {"M": "linear_attention", "*": "full_attention", "-": "mlp"}

# Settings that only one value of is computed.
FIXED = {
    "mlp_hidden_act": "relu2",
    "mamba_hidden_act": "silu",
    "use_bias": False,
    "mlp_bias": False,
    "attention_bias": False,
    "use_conv_bias": True,
}


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


class NemotronH(HubFamily):
    embeddings, layers, norm = "backbone.embeddings", "backbone.layers", "backbone.norm_f"
    blocks: Mapping[str, Mapping[str, str]] = {
        "M": _same("norm.weight", "mixer.in_proj.weight", "mixer.norm.weight", "mixer.out_proj.weight")
        | {"mixer.conv.weight": "mixer.conv1d.weight", "mixer.conv.bias": "mixer.conv1d.bias"}
        | {f"mixer.ssm.{name}": f"mixer.{name}" for name in ("A_log", "D", "dt_bias")},
        "*": _same("norm.weight", *(f"mixer.{p}_proj.weight" for p in "qkvo")),
        "-": _same("norm.weight", "mixer.up_proj.weight", "mixer.down_proj.weight"),
    }

    own_head = True

    def canonical(self, name: str) -> str:
        """Checkpoints begin with `backbone.` or `model.` and spell `embeddings` or `embedding`."""
        name = re.sub(r"^model\.", "backbone.", name)
        return re.sub(r"^backbone\.embedding\.", "backbone.embeddings.", name)

    def read(self, raw: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
        only_computed(raw, FIXED, problems)
        limit = first(raw, "time_step_limit", "mamba_dt_limit", default=[0.0, math.inf])
        if [float(v) for v in limit] != [0.0, math.inf]:
            problems.append(f"time_step_limit is {limit}; only [0, Infinity] (no limit) is computed")
        return dict(
            layout=_layout(raw, problems),
            vocab_size=raw.get("vocab_size", 131072),
            width=raw.get("hidden_size", 4096),
            mlp_width=raw.get("intermediate_size", 21504),
            heads=raw.get("num_attention_heads", 32),
            kv_heads=raw.get("num_key_value_heads", 8),
            head_dim=first(raw, "head_dim", "attention_head_dim", default=128),
            ssm_heads=raw.get("mamba_num_heads", 128),
            ssm_head_dim=raw.get("mamba_head_dim", 64),
            ssm_state=raw.get("ssm_state_size", 128),
            ssm_groups=first(raw, "n_groups", "mamba_n_groups", default=8),
            conv_kernel=first(raw, "conv_kernel", "mamba_d_conv", default=4),
            chunk_size=first(raw, "chunk_size", "mamba_chunk_size", default=128),
            norm_eps=first(raw, "layer_norm_epsilon", "rms_norm_eps", default=1e-5),
            tie_embeddings=raw.get("tie_word_embeddings", False),
            max_tokens=raw.get("max_position_embeddings", 4096),
        )

    def write(self, cfg: DecoderConfig) -> dict[str, Any]:
        return {
            "architectures": ["NemotronHForCausalLM"],
            "hybrid_override_pattern": cfg.layout,
            "layers_block_type": [WORDS[letter] for letter in cfg.layout],
            "attention_head_dim": cfg.head_dim,
            "mamba_num_heads": cfg.ssm_heads,
            "mamba_head_dim": cfg.ssm_head_dim,
            "ssm_state_size": cfg.ssm_state,
            "n_groups": cfg.ssm_groups,
            "conv_kernel": cfg.conv_kernel,
            "chunk_size": cfg.chunk_size,
            "layer_norm_epsilon": cfg.norm_eps,
            "rms_norm_eps": cfg.norm_eps,
            **FIXED,
            "time_step_limit": [0.0, math.inf],
        }


def _layout(raw: Mapping[str, Any], problems: list[str]) -> str:
    pattern = raw.get("hybrid_override_pattern")
    if not pattern:
        words = first(raw, "layers_block_type", "layer_types", default=[])
        if unknown := sorted(set(words) - set(LETTERS)):
            problems.append(f"layers_block_type has {', '.join(unknown)}; known: {', '.join(LETTERS)}")
        pattern = "".join(LETTERS.get(word, "?") for word in words)
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


FAMILY = NemotronH()
