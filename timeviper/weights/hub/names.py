"""What the tensors of a decoder are called here and in Hugging Face checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from timeviper.config import DecoderConfig


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


# By block letter: our name inside the block -> their name inside the layer.
_NEMOTRON_H = {
    "M": _same("norm.weight", "mixer.in_proj.weight", "mixer.norm.weight", "mixer.out_proj.weight")
    | {"mixer.conv.weight": "mixer.conv1d.weight", "mixer.conv.bias": "mixer.conv1d.bias"}
    | {f"mixer.ssm.{name}": f"mixer.{name}" for name in ("A_log", "D", "dt_bias")},
    "*": _same("norm.weight", *(f"mixer.{p}_proj.weight" for p in "qkvo")),
    "-": _same("norm.weight", "mixer.up_proj.weight", "mixer.down_proj.weight"),
}
# A layer of Llama is two of our blocks.
_LLAMA = {
    "*": {"norm.weight": "input_layernorm.weight"}
    | {f"mixer.{p}_proj.weight": f"self_attn.{p}_proj.weight" for p in "qkvo"},
    "-": {"norm.weight": "post_attention_layernorm.weight"}
    | {f"mixer.{p}_proj.weight": f"mlp.{p}_proj.weight" for p in ("gate", "up", "down")},
}
_QWEN2 = _LLAMA | {
    "*": _LLAMA["*"] | {f"mixer.{p}_proj.bias": f"self_attn.{p}_proj.bias" for p in "qkv"},
}
_BLOCKS = {"nemotron_h": _NEMOTRON_H, "llama": _LLAMA, "qwen2": _QWEN2}

# Tensors of checkpoints that a decoder does without: draft heads, and tables that are computed.
_IGNORED = re.compile(r"^mtp\.|\.rotary_emb\.inv_freq$")


def hub_names(cfg: DecoderConfig) -> dict[str, str]:
    """Our name -> their name on disk, for every tensor of the decoder (TransV has none there)."""
    blocks, nemotron = _BLOCKS[cfg.family], cfg.family == "nemotron_h"
    base = "backbone" if nemotron else "model"
    names = {"embeddings.weight": f"{base}.{'embeddings' if nemotron else 'embed_tokens'}.weight"}
    for i, letter in enumerate(cfg.layout):
        layer = i if nemotron else i // 2
        for ours, theirs in blocks[letter].items():
            names[f"blocks.{i}.{ours}"] = f"{base}.layers.{layer}.{theirs}"
    names["norm_f.weight"] = f"{base}.{'norm_f' if nemotron else 'norm'}.weight"
    if not cfg.tie_embeddings:
        names["lm_head.weight"] = "lm_head.weight"
    return names


def canonical(name: str, cfg: DecoderConfig) -> str | None:
    """The name on disk that a tensor's name stands for (None: not needed).

    Checkpoints begin with `backbone.` or `model.` and spell `embeddings` or `embedding`.
    """
    if _IGNORED.search(name) or (name == "lm_head.weight" and cfg.tie_embeddings):
        return None
    if cfg.family == "nemotron_h":
        name = re.sub(r"^model\.", "backbone.", name)
        name = re.sub(r"^backbone\.embedding\.", "backbone.embeddings.", name)
    return name


@dataclass(frozen=True)
class Match:
    """Which tensor on disk is which of ours, and everything that does not fit."""

    found: dict[str, str]
    """Our name -> name on disk."""
    problems: list[str]


def match(
    expected: Mapping[str, tuple[int, ...]], on_disk: Iterable[tuple[str, tuple[int, ...]]], cfg: DecoderConfig
) -> Match:
    """Compare the shapes that a decoder needs, by our names, with a checkpoint's."""
    ours = {theirs: name for name, theirs in hub_names(cfg).items() if name in expected}
    found: dict[str, str] = {}
    problems: list[str] = []
    for stored, shape in on_disk:
        wanted = canonical(stored, cfg)
        if wanted is None:
            continue
        if wanted not in ours:
            problems.append(f"unexpected: {stored} {list(shape)}")
            continue
        name = ours[wanted]
        found[name] = stored
        needed = hub_shape(name, expected[name])
        if shape != needed:
            problems.append(f"another shape: {stored} is {list(shape)}, the config asks for {list(needed)}")
    lost = [theirs for theirs, name in ours.items() if name not in found]
    return Match(found, problems + [f"missing: {theirs}" for theirs in lost])


def hub_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Their shape of our tensor: a depthwise convolution has an axis for its single input channel."""
    return (shape[0], 1, shape[1]) if name.endswith("mixer.conv.weight") else shape
