"""What `config.json` of a Hugging Face folder of ours says, and what must agree in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timeviper.config.model import ModelConfig
from timeviper.config.plain import section
from timeviper.config.settings import ChatConfig, FramesConfig

MODEL_TYPE = "timeviper"
FORM = 1  # of config.json and of the tensors' names; a folder of a later one is for a later version
PREFIX = "model."  # before every tensor's name, where the model is part of one of transformers


def model_of(recipe: Mapping[str, Any]) -> ModelConfig:
    """The settings of the model in a recipe as plain values. Raises ValueError as `section` does."""
    return section(ModelConfig, recipe["model"], "recipe.model.")


def chat_of(recipe: Mapping[str, Any]) -> ChatConfig:
    return section(ChatConfig, recipe["chat"], "recipe.chat.")


def frames_of(recipe: Mapping[str, Any]) -> FramesConfig:
    return section(FramesConfig, recipe["data"]["frames"], "recipe.data.frames.")


def sizes(model: ModelConfig) -> dict[str, Any]:
    """What programs look for in any config, under their names."""
    decoder = model.decoder
    return {
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.width,
        "num_hidden_layers": len(decoder.layout),
        "num_attention_heads": decoder.heads,
        "max_position_embeddings": decoder.max_tokens,
    }


def check_config(raw: Mapping[str, Any]) -> None:
    """Raises ValueError for a config of a later form, or whose sizes are not those of its recipe."""
    form = raw.get("form")
    if not isinstance(form, int) or isinstance(form, bool) or not 1 <= form <= FORM:
        raise ValueError(
            f"config.json: form is {form!r}, and this version reads 1 to {FORM}: a later version of TimeViper recipes "
            f"wrote the folder ({(raw.get('lineage') or {}).get('timeviper', 'unknown')}); update to that one"
        )
    if not isinstance(raw.get("recipe"), Mapping):
        raise ValueError("config.json: recipe is missing, which says what the model is: fetch the file again")
    settings = {
        "vocab_size": "recipe.model.decoder.vocab_size",
        "hidden_size": "recipe.model.decoder.width",
        "num_hidden_layers": "blocks of recipe.model.decoder.layout",
        "num_attention_heads": "recipe.model.decoder.heads",
        "max_position_embeddings": "recipe.model.decoder.max_tokens",
    }
    for name, value in sizes(model_of(raw["recipe"])).items():
        if raw.get(name, value) != value:
            raise ValueError(
                f"config.json: {name} is {raw[name]!r}, but {settings[name]} is {value!r}. The recipe counts: change "
                f"it there and remove {name}, or fetch the file again"
            )
