"""Llama in Hugging Face folders, and what its descendants share: a layer is two of our blocks, attention and MLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timeviper.config import DecoderConfig
from timeviper.weights.hub.family import HubFamily, first, only_computed


class Llama(HubFamily):
    embeddings, layers, norm = "model.embed_tokens", "model.layers", "model.norm"
    blocks: Mapping[str, Mapping[str, str]] = {
        "*": {"norm.weight": "input_layernorm.weight"}
        | {f"mixer.{p}_proj.weight": f"self_attn.{p}_proj.weight" for p in "qkvo"},
        "-": {"norm.weight": "post_attention_layernorm.weight"}
        | {f"mixer.{p}_proj.weight": f"mlp.{p}_proj.weight" for p in ("gate", "up", "down")},
    }
    architecture = "LlamaForCausalLM"
    vocab_size, mlp_width, max_tokens = 32000, 11008, 2048  # where `config.json` has none

    def read(self, raw: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
        only_computed(raw, {"hidden_act": "silu", "mlp_bias": False, "use_sliding_window": False}, problems)
        self.check_biases(raw, problems)
        if other := sorted(set(raw.get("layer_types") or []) - {"full_attention"}):
            problems.append(f"layer_types has {', '.join(other)}; only full_attention is computed")
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        if rope_type != "default":
            problems.append(f"the rotary embedding is scaled ({rope_type}); only the default one is computed")
        heads, width = raw.get("num_attention_heads", 32), raw.get("hidden_size", 4096)
        return dict(
            layout="*-" * raw.get("num_hidden_layers", 32),
            vocab_size=raw.get("vocab_size", self.vocab_size),
            width=width,
            mlp_width=raw.get("intermediate_size", self.mlp_width),
            heads=heads,
            kv_heads=first(raw, "num_key_value_heads", default=heads),
            head_dim=first(raw, "head_dim", default=width // heads),
            norm_eps=raw.get("rms_norm_eps", 1e-6),
            rope_theta=float(first(rope, "rope_theta", default=raw.get("rope_theta", 10000.0))),
            tie_embeddings=raw.get("tie_word_embeddings", False),
            max_tokens=raw.get("max_position_embeddings", self.max_tokens),
        )

    def check_biases(self, raw: Mapping[str, Any], problems: list[str]) -> None:
        if raw.get("attention_bias"):
            problems.append("attention_bias is true; llama attention has no biases here")

    def write(self, cfg: DecoderConfig) -> dict[str, Any]:
        return {
            "architectures": [self.architecture],
            "hidden_act": "silu",
            "rms_norm_eps": cfg.norm_eps,
            "rope_theta": cfg.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rope_theta},
        }


FAMILY = Llama()
