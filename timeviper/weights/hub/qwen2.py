"""Qwen2 and Qwen2.5 in Hugging Face folders: Llama with biases of queries, keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timeviper.weights.hub.llama import Llama


class Qwen2(Llama):
    blocks: Mapping[str, Mapping[str, str]] = {
        **Llama.blocks,
        "*": {**Llama.blocks["*"], **{f"mixer.{p}_proj.bias": f"self_attn.{p}_proj.bias" for p in "qkv"}},
    }
    architecture = "Qwen2ForCausalLM"
    vocab_size, mlp_width, max_tokens = 151936, 22016, 32768

    def check_biases(self, raw: Mapping[str, Any], problems: list[str]) -> None:
        """It always has them, whatever `attention_bias` says."""


FAMILY = Qwen2()
