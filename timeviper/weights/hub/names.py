"""What the tensors of a decoder are called here and in Hugging Face checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from timeviper.config import DecoderConfig
from timeviper.weights.hub.family import hub_family

# Tensors of checkpoints that a decoder does without: draft heads, and tables that are computed.
_IGNORED = re.compile(r"^mtp\.|\.rotary_emb\.inv_freq$")


def hub_names(cfg: DecoderConfig) -> dict[str, str]:
    """Our name -> their name on disk, for every tensor of the decoder (TransV has none there)."""
    hub = hub_family(cfg.family)
    names = {"embeddings.weight": f"{hub.embeddings}.weight"}
    for i, letter in enumerate(cfg.layout):
        layer = f"{hub.layers}.{i // cfg.facts.blocks_per_layer}"
        names |= {f"blocks.{i}.{ours}": f"{layer}.{theirs}" for ours, theirs in hub.blocks[letter].items()}
    names["norm_f.weight"] = f"{hub.norm}.weight"
    if not cfg.tie_embeddings:
        names["lm_head.weight"] = "lm_head.weight"
    return names


def canonical(name: str, cfg: DecoderConfig) -> str | None:
    """The name that a tensor on disk goes by in `hub_names` (None: not needed)."""
    if _IGNORED.search(name) or (name == "lm_head.weight" and cfg.tie_embeddings):
        return None
    return hub_family(cfg.family).canonical(name)


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
