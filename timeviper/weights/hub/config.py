"""A decoder's settings out of a Hugging Face `config.json`, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from timeviper.config import DecoderConfig
from timeviper.config.model import FAMILY_FACTS
from timeviper.weights.hub.family import hub_family


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
    if kind not in FAMILY_FACTS:
        raise ValueError(f"{where}: model_type {kind!r} is no decoder known here ({', '.join(FAMILY_FACTS)})")
    problems: list[str] = []
    settings = hub_family(kind).read(raw, problems)
    if problems:
        raise ValueError("\n  ".join([f"{where} describes a model that cannot be built here:", *problems]))
    return DecoderConfig(family=kind, **settings)


def hub_config(cfg: DecoderConfig, original: dict[str, Any], dtype: str) -> dict[str, Any]:
    """`config.json` of a decoder for transformers 5.15 and later, which also older readers understand.

    original: the config that the weights were imported with, for what a decoder does not know (token ids).
    """
    shared = {
        "model_type": cfg.family,
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.width,
        "intermediate_size": cfg.mlp_width,
        "num_hidden_layers": len(cfg.layout) // cfg.facts.blocks_per_layer,
        "num_attention_heads": cfg.heads,
        "num_key_value_heads": cfg.kv_heads,
        "head_dim": cfg.head_dim,
        "tie_word_embeddings": cfg.tie_embeddings,
        "max_position_embeddings": cfg.max_tokens,
        "torch_dtype": dtype,
    }
    stale = ("auto_map", "dtype", "layer_types", "transformers_version")  # of files that do not come along
    kept = {k: v for k, v in original.items() if k not in stale}
    return kept | shared | hub_family(cfg.family).write(cfg)
