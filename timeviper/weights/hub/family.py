"""What sets the Hugging Face folders of one decoder family apart: the base of `weights/hub/<family>.py`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from timeviper.config import DecoderConfig


class HubFamily:
    """Names of tensors and keys of `config.json`, both ways. A family is called as its `model_type`."""

    embeddings: str
    layers: str
    norm: str
    """Their names of the token embeddings, of the list of layers, and of the final norm."""
    blocks: Mapping[str, Mapping[str, str]]
    """By block letter: our name inside the block -> their name inside the layer."""

    own_head = False
    """Whether other programs read a head of its own (`lm_head`) even where `tie_word_embeddings` is true."""

    def read(self, raw: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
        """The settings of `DecoderConfig` that a `config.json` holds; what cannot be computed here joins `problems`."""
        raise NotImplementedError

    def write(self, cfg: DecoderConfig) -> dict[str, Any]:
        """The keys of `config.json` that not all families share."""
        raise NotImplementedError

    def canonical(self, name: str) -> str:
        """A tensor's name in older checkpoints -> what `blocks` and the others call it."""
        return name


FAMILIES: dict[str, HubFamily] = {}


def hub_family(name: str) -> HubFamily:
    """`FAMILY` of the file beside this one that has the family's name."""
    if name not in FAMILIES:
        FAMILIES[name] = import_module(f"{__package__}.{name}").FAMILY
    return FAMILIES[name]


def first(raw: Mapping[str, Any], *keys: str, default: Any) -> Any:
    """The value of the first key that is there and not null."""
    return next((raw[key] for key in keys if raw.get(key) is not None), default)


def only_computed(raw: Mapping[str, Any], wanted: Mapping[str, Any], problems: list[str]) -> None:
    """Settings with the one value that the blocks compute, which is also what an absent key means."""
    for key, value in wanted.items():
        if raw.get(key, value) != value:
            problems.append(f"{key} is {raw[key]!r}; only {value!r} is computed")
