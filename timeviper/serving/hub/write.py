"""A finished stage as a Hugging Face folder that transformers loads, code included."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor

from timeviper.config import Recipe
from timeviper.config.load import CONFIG, load_recipe
from timeviper.config.shape import tokens_per_frame
from timeviper.files import new_folder, whole_folder, write_whole
from timeviper.serving.hub.card import model_card
from timeviper.serving.hub.remote.form import FORM, MODEL_TYPE, PREFIX, sizes
from timeviper.serving.hub.remote.template import folder_template
from timeviper.serving.hub.sources import CONFIGURATION, MODELING, PROCESSING, generated
from timeviper.tokenizer import Tokenizer
from timeviper.weights.export import check_export, meta_model
from timeviper.weights.lineage import read_lineage
from timeviper.weights.tensors import SHARD_BYTES, TensorFolder, write_tensors

MODEL_CLASS, CONFIG_CLASS, PROCESSOR_CLASS = (
    "TimeViperForConditionalGeneration",
    "TimeViperConfig",
    "TimeViperProcessor",
)
# The backend that reads tokenizer.json as it is; classes of families build their own from parts of it.
TOKENIZER_CLASS = "PreTrainedTokenizerFast"


@dataclass(frozen=True)
class Written:
    """What a folder holds, for a line to a person."""

    name: str
    parameters: int
    code_files: int

    def __str__(self) -> str:
        return f"{self.name}, {self.parameters:,} parameters, {self.code_files} files of code"


def export_transformers(export: Path, out: Path, shard_bytes: int = SHARD_BYTES) -> Written:
    """Write the whole model of an export (adapters are merged there already) in bounded memory.

    Raises FileNotFoundError where there is no export, FileExistsError for an `out` that holds anything, ValueError for
    a stage without a decoder, or tensors that are not those of the recipe.
    """
    check_export(export)
    recipe = load_recipe(export / CONFIG, to_train=False)
    if recipe.train.objective != "answer":
        raise ValueError(
            f"{export} is a vision tower without a language model, so nothing of it can generate: export a stage that "
            "answers questions (stage1_align, stage2_instruct, stage3_long)"
        )
    tensors, lineage, tokenizer = TensorFolder(export), read_lineage(export), Tokenizer.load(export)
    shapes = {name: tuple(t.shape) for name, t in tensors_of(recipe).items()}
    check_tensors(export, tensors, shapes)
    plain = plain_recipe(recipe)
    with whole_folder(new_folder(out)) as partial:
        write_tensors(partial, _prefixed(tensors, list(shapes)), shard_bytes)
        dtype = tensors.dtype(next(name for name in shapes if name.endswith("embeddings.weight")))
        _write_json(partial / "config.json", config_of(recipe, plain, lineage, dtype))
        _write_tokenizer(partial, tokenizer, recipe)
        code = generated(tower.family for tower in recipe.model.towers.values())
        for name, text in code.items():
            write_whole(partial / name, text)
        count = sum(torch.Size(shape).numel() for shape in shapes.values())
        write_whole(partial / "README.md", model_card(recipe, plain, lineage, count))
    return Written(recipe.name, count, len(code))


def config_of(recipe: Recipe, plain: dict[str, Any], lineage: dict[str, Any], dtype: str) -> dict[str, Any]:
    """`config.json`."""
    auto = {
        "AutoConfig": f"{CONFIGURATION}.{CONFIG_CLASS}",
        "AutoModel": f"{MODELING}.{MODEL_CLASS}",
        "AutoModelForImageTextToText": f"{MODELING}.{MODEL_CLASS}",
        "AutoModelForMultimodalLM": f"{MODELING}.{MODEL_CLASS}",
        "AutoProcessor": f"{PROCESSING}.{PROCESSOR_CLASS}",
    }
    head = {"model_type": MODEL_TYPE, "architectures": [MODEL_CLASS], "auto_map": auto, "form": FORM, "dtype": dtype}
    return {**head, **sizes(recipe.model), "recipe": plain, "lineage": lineage}


def plain_recipe(recipe: Recipe) -> dict[str, Any]:
    """All settings as plain values, for others to see: of absolute paths the last part."""

    def shown(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: shown(entry) for name, entry in value.items()}
        if isinstance(value, list):
            return [shown(entry) for entry in value]
        if isinstance(value, str) and (PurePath(value).is_absolute() or value.startswith("~")):
            return PurePath(value).name
        return value

    return shown(asdict(recipe))


def tensors_of(recipe: Recipe) -> dict[str, Tensor]:
    """The tensors of the model without adapters, by name, on the meta device."""
    names = meta_model(recipe).state_dict()
    return {name: t for name, t in names.items() if not name.endswith(("lora_A", "lora_B"))}


def check_tensors(export: Path, files: TensorFolder, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises ValueError with the tensors that a folder lacks, has too many or in another shape."""
    problems = [f"missing: {name}" for name in shapes if name not in files.files]
    problems += [f"unexpected: {name}" for name in files.files if name not in shapes]
    for name, shape in shapes.items():
        if name in files.files and files.shape(name) != shape:
            problems.append(f"another shape: {name} is {list(files.shape(name))}, the recipe asks for {list(shape)}")
    if problems:
        raise ValueError("\n  ".join([f"{export} does not hold the model of its {CONFIG}:", *problems[:8]]))


def _prefixed(files: TensorFolder, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    for name in names:
        tensor = files.read(name)
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{files.path}: {name} holds NaN or infinity; the file is damaged")
        yield PREFIX + name, tensor


def _write_tokenizer(folder: Path, tokenizer: Tokenizer, recipe: Recipe) -> None:
    tokenizer.save(folder)
    own = tokenizer.config
    settings = {k: v for k, v in own.items() if k not in ("chat_template", "auto_map")}
    settings |= {"tokenizer_class": TOKENIZER_CLASS, "processor_class": PROCESSOR_CLASS}
    _write_json(folder / "tokenizer_config.json", settings)
    write_whole(folder / "chat_template.jinja", folder_template(own["chat_template"], recipe.chat.system))
    stops = tokenizer.stop_ids
    pad = tokenizer.fast.token_to_id(_text(own.get("pad_token"))) if own.get("pad_token") else None
    limits = {"max_new_tokens": recipe.eval.max_new_tokens, "do_sample": False}
    ends = {"eos_token_id": stops, "pad_token_id": stops[0] if pad is None else pad}
    known = {k: v for k, v in tokenizer.generation.items() if k == "bos_token_id"}
    _write_json(folder / "generation_config.json", {**known, **ends, **limits})
    processor = {
        "processor_class": PROCESSOR_CLASS,
        "auto_map": {"AutoProcessor": f"{PROCESSING}.{PROCESSOR_CLASS}"},
        "chat": asdict(recipe.chat),
        "frames": asdict(recipe.data.frames),
        "image_size": max(tower.image_size for tower in recipe.model.towers.values()),
        "tokens_per_frame": tokens_per_frame(recipe.model),
        "max_tokens": recipe.model.decoder.max_tokens,
        "stop_ids": stops,
    }
    _write_json(folder / "processor_config.json", processor)


def _text(token: Any) -> str:
    return token["content"] if isinstance(token, dict) else token


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
