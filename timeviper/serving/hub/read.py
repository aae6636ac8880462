"""A Hugging Face folder of ours as the export of a stage again, for ask, eval and more training."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from timeviper.config import Recipe
from timeviper.config.load import CONFIG, dump, from_dict
from timeviper.files import new_folder, whole_folder, write_whole
from timeviper.serving.hub.remote.form import MODEL_TYPE, PREFIX, check_config
from timeviper.serving.hub.remote.template import plain_template
from timeviper.serving.hub.write import check_tensors, tensors_of
from timeviper.tokenizer import Tokenizer
from timeviper.weights.lineage import LINEAGE, WeightsDigest
from timeviper.weights.tensors import SHARD_BYTES, TensorFolder, write_tensors

log = logging.getLogger("timeviper")


@dataclass(frozen=True)
class Imported:
    name: str
    weights: str
    """Their digest."""
    changed: bool
    """Whether they are others than the stage's: somebody trained on."""

    def __str__(self) -> str:
        told = " (changed since the stage, as its lineage says now)" if self.changed else ", as the stage left them"
        return f"{self.name}, weights {self.weights}{told}"


def is_ours(folder: Path) -> bool:
    """Whether a folder is a whole model that `export_transformers` (or transformers after it) wrote."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type") == MODEL_TYPE
    except (OSError, ValueError, AttributeError):
        return False


def import_transformers(folder: Path, out: Path, shard_bytes: int = SHARD_BYTES) -> Imported:
    """Write the export of the stage that a folder was made of, tensor by tensor.

    Raises FileExistsError for an `out` that holds anything, ValueError for a folder of a later form, files or tensors
    that are missing, and settings that do not fit.
    """
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    try:
        check_config(raw)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    recipe = from_dict(raw["recipe"], f"{folder / 'config.json'} (recipe)")
    shapes = {name: tuple(t.shape) for name, t in tensors_of(recipe).items()}
    files = _Stripped(folder)
    check_tensors(folder, files, shapes)
    tokenizer = _tokenizer(folder)
    digest = WeightsDigest()
    with whole_folder(new_folder(out)) as partial:
        write_tensors(partial, digest.passing(_finite(files, list(shapes))), shard_bytes)
        dump(recipe, partial / CONFIG)
        tokenizer.save(partial)
        lineage, changed = _lineage(raw, recipe, digest.result())
        write_whole(partial / LINEAGE, json.dumps(lineage, indent=2) + "\n")
    return Imported(recipe.name, digest.result(), changed)


class _Stripped(TensorFolder):
    """The tensors by the names that a stage has for them."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        there = TensorFolder(path).files
        self.__dict__["files"] = {name.removeprefix(PREFIX): file for name, file in there.items()}
        self._stored = {name.removeprefix(PREFIX): name for name in there}

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._handle(self.files[name]).get_slice(self._stored[name]).get_shape())

    def read(self, name: str) -> Tensor:
        return self._handle(self.files[name]).get_tensor(self._stored[name])


def _finite(files: TensorFolder, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    for name in names:
        tensor = files.read(name)
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{files.path}: {name} holds NaN or infinity; the file is damaged")
        yield name, tensor


def _tokenizer(folder: Path) -> Tokenizer:
    """As the stage had it: the template without what the folder put before it."""
    tokenizer = Tokenizer.load(folder)
    tokenizer.config["chat_template"] = plain_template(tokenizer.config["chat_template"])
    tokenizer.generation = {k: v for k, v in tokenizer.generation.items() if k in ("bos_token_id", "eos_token_id")}
    return tokenizer


def _lineage(raw: dict[str, Any], recipe: Recipe, weights: str) -> tuple[dict[str, Any], bool]:
    """The stage's own, with the digest of what is there now; whether that is another one."""
    lineage = dict(raw.get("lineage") or {})
    if not lineage:
        raise ValueError("config.json: lineage is missing, which says where the weights come from: fetch it again")
    before = lineage.get("weights")
    changed = before is not None and before != weights
    if changed:
        log.warning("the weights are others than those of %s: somebody trained on, or changed their dtype", recipe.name)
    return {**lineage, "weights": weights}, changed
