"""The hand-over between stages: what a stage exports and what the next one accepts.

An export folder holds `model.safetensors` (full tensors as trained, adapters merged; in several files with an index
beyond 2 GB), `config.yaml` (the whole resolved recipe), the tokenizer, `lineage.json` (this stage, its step, its
ancestors) and, after LoRA, `adapter/adapter.safetensors`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from timeviper.config import LoraConfig, ModelConfig, Recipe
from timeviper.config.fields import differences
from timeviper.config.load import CONFIG, dump, load_recipe
from timeviper.config.model import TOUCH_NO_TENSOR
from timeviper.errors import ConfigError, Problem, one_of
from timeviper.files import whole_folder
from timeviper.model import lora
from timeviper.model.int8 import quantisable
from timeviper.model.parts import is_adapter
from timeviper.model.tags import TagModel
from timeviper.model.viper import TimeViper, part_of
from timeviper.parallel import sharding_plan
from timeviper.tokenizer import Tokenizer
from timeviper.weights import initialize
from timeviper.weights.initialize import Read
from timeviper.weights.lineage import LINEAGE, WeightsDigest, describe, find_export, read_lineage
from timeviper.weights.peft import ADAPTER_CONFIG, find_adapter, read_adapter
from timeviper.weights.quantise import check_quantise, quantise_map
from timeviper.weights.tensors import ADAPTER, INDEX, TensorFolder, write_tensors

log = logging.getLogger("timeviper")

WEIGHTS = "model.safetensors"
DTYPES = ("float32", "bfloat16")
TRANSV, TIMES = "decoder.transv.", "times."  # how the names of their tensors begin

Model = TimeViper | TagModel


def meta_model(recipe: Recipe) -> Model:
    """The model of a stage without any memory: adapters attached, parts frozen as in training."""
    model = _bare(recipe)
    with torch.device("meta"):
        lora.attach(model, recipe.model.lora)
    model.freeze(recipe.train.trainable)
    if isinstance(model, TimeViper):
        model.distill = recipe.train.distill
    return model


def _bare(recipe: Recipe) -> Model:
    with torch.device("meta"):
        if recipe.train.objective == "answer":
            return TimeViper(recipe.model, recipe.chat.time == "tokens")
        return TagModel(recipe.model)


def build_model(
    recipe: Recipe, place: Callable[[Model], nn.Module] | None = None, device: torch.device | str = "cpu"
) -> nn.Module:
    """The model of a stage: random under the recipe's seed, then pretrained weights, then the previous stage's.

    `place` shards the model before it has any memory; after it each rank fills the rows that it keeps.
    Raises ConfigError as `check_previous_stage` does.
    """
    twin = _bare(recipe)
    if recipe.parallel.frozen_dtype == "int8":
        check_quantise("int8", torch.device(device), torch.float32, "parallel.frozen_dtype")
    stored = stored_tensors(twin, recipe)
    model = meta_model(recipe)
    adapters = recipe.model.lora
    if adapters.rank and adapters.weights:
        adapters = replace(adapters, weights=str(found := find_adapter(adapters.weights)))
        if found.is_dir():
            shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if is_adapter(name)}
            stored |= read_adapter(found, shapes, recipe.model.decoder, adapters)
            adapters = replace(adapters, weights="")  # those of projector and TransV have no place there
    placed = model if place is None else place(model)
    placed.to_empty(device=device)
    initialize.fill(placed, twin, stored, adapters, recipe.seed)
    return placed


def stored_tensors(model: Model, recipe: Recipe) -> dict[str, Read]:
    """Where the first values of a stage's model are read; what is missing is drawn at random.

    Parts that the previous stage did not have stay at random (the decoder after stage 0), but a new transfer stage
    starts from the decoder's attention. Raises ConfigError or ValueError where a file does not fit.
    """
    stored: dict[str, Read] = {}
    for name, cfg in recipe.model.towers.items():
        if cfg.weights:
            stored |= initialize.tower_weights(name, cfg, model.towers[name])
    parts = check_previous_stage(recipe)
    targets = recipe.model.lora.targets if recipe.model.lora.rank else []
    if "transv" not in parts and any(target.startswith("transv") for target in targets):
        message = (
            "names transv, but no stage before has trained transfers: their gates are shut, and nothing behind a "
            "shut gate learns. Train transv whole: leave it out here."
        )
        raise ConfigError(recipe.name, [Problem("model.lora.targets", targets, message)])
    if recipe.model.decoder.weights and isinstance(model, TimeViper):
        stored |= initialize.decoder_weights(Path(recipe.model.decoder.weights), recipe.model.decoder)
        stored |= initialize.transv_from_attention(model.decoder, stored)
    if recipe.train.init_from:
        stored |= _previous(model, recipe)
        if isinstance(model, TimeViper) and "transv" not in parts and "decoder" in parts:
            stored |= initialize.transv_from_attention(model.decoder, stored)
    return stored


def _previous(model: Model, recipe: Recipe) -> dict[str, Read]:
    files = TensorFolder(find_export(recipe.train.init_from))
    own = model.state_dict()
    stray = [k for k in files.files if k not in own and part_of(k) in ("projector", "decoder")]
    if stray:
        raise _refused(recipe, f"The export has tensors that this model lacks: {', '.join(stray[:5])}")
    return initialize.from_folder(files, {k: k for k in files.files if k in own})


def write_export(
    folder: Path,
    state: Mapping[str, Tensor],
    recipe: Recipe,
    tokenizer: Tokenizer,
    step: int,
    shard_bytes: int = 2 << 30,
    data: Mapping[str, str] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write an export next to its place and move it there whole, so that a half export never has the name.

    Tensors are looked up one by one and merged with their adapters; at most `shard_bytes` are held. data: digests of
    the training data for the lineage; notes: as `lineage.describe` takes them. Raises OSError.
    """
    merged, digest = lora.Merged(state, recipe.model.lora), WeightsDigest()
    with whole_folder(folder) as partial:
        write_tensors(partial, digest.passing(merged.items()), shard_bytes)
        if merged.adapters:
            lora.save_adapter(partial / ADAPTER, merged.adapters, recipe.model.lora)
        dump(recipe, partial / CONFIG)
        tokenizer.save(partial)
        lineage = describe(recipe, step, {part_of(name) for name in state}, digest.result(), data, notes)
        (partial / LINEAGE).write_text(json.dumps(lineage, indent=2) + "\n")


def follow_export(state: Mapping[str, Tensor], cfg: LoraConfig) -> None:
    """What the other ranks do while one writes: take part in gathering the same tensors, and keep none."""
    for _ in lora.Merged(state, cfg).values():
        pass


def is_export(folder: Path) -> bool:
    weights = (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()
    return weights and all((folder / f).is_file() for f in (CONFIG, LINEAGE))


def _shape_of(model: ModelConfig, parts: list[str]) -> dict[str, Any]:
    """The settings that fix the tensors of the given parts."""
    shape: dict[str, Any] = {}
    if "tower" in parts:
        shape["towers"] = {name: asdict(tower) for name, tower in model.towers.items()}
    if "decoder" in parts:
        shape["decoder"] = asdict(model.decoder)
    for section in (*shape.get("towers", {}).values(), shape.get("decoder", {})):
        for key in TOUCH_NO_TENSOR:
            section.pop(key, None)
    return shape


def _refused(recipe: Recipe, message: str) -> ConfigError:
    return ConfigError(recipe.name, [Problem("train.init_from", recipe.train.init_from, message)])


def check_previous_stage(recipe: Recipe) -> list[str]:
    """The parts that `train.init_from` holds (none without one).

    Raises ConfigError when the folder is no export or its model has another shape.
    """
    if not recipe.train.init_from:
        return []
    export = find_export(recipe.train.init_from)
    if not is_export(export):
        begun = ""
        if (export / "checkpoints").is_dir():
            begun = f" Of a run that has not finished: timeviper export {export} OUT --checkpoint latest."
        elif (export / ADAPTER_CONFIG).is_file():
            begun = (
                f" Adapters of peft go to model.lora.weights={export}, what they belong on to model.decoder.weights."
            )
        elif (export / "config.json").is_file():
            begun = f" A language model in Hugging Face layout goes to model.decoder.weights={export}."
        raise _refused(
            recipe,
            f"This is not the export of a finished stage. Run the stage before {recipe.name!r} first "
            f"(make train-stage1 and so on), or name another folder.{begun}",
        )
    previous = load_recipe(export / CONFIG)
    parts = read_lineage(export)["parts"]
    if found := differences(_shape_of(recipe.model, parts), _shape_of(previous.model, parts), "model"):
        listed = "\n        ".join(found)
        raise _refused(
            recipe,
            f"The export of {previous.name!r} holds another model than this recipe builds:\n        {listed}\n"
            "      Use the model settings of that stage, or name another folder.",
        )
    if previous.chat.time == "tokens" and recipe.chat.time != "tokens":
        log.warning(
            "train.init_from: in %r the frames' tokens told their times (chat.time: tokens), in %r they do not: "
            "what was learned of it is left behind",
            previous.name,
            recipe.name,
        )
    return parts


def starting_points(recipe: Recipe) -> list[str]:
    """Sentences on where the first values of each part of a stage's model come from, and what speaks against that.

    Raises ConfigError as `check_previous_stage` does.
    """
    model, parts = recipe.model, check_previous_stage(recipe)
    given = {"tower": all(t.weights for t in model.towers.values()), "decoder": bool(model.decoder.weights)}
    wanted = (
        ("tower", "projector", "decoder", "transv") if recipe.train.objective == "answer" else ("tower", "projector")
    )
    before = [p for p in wanted if p in parts]
    stored = [p for p in wanted if given.get(p) and p not in before]
    random = [p for p in wanted if p not in (*before, *stored)]
    if "decoder" not in random and any(stage.transfer for stage in model.transv.stages.values()):
        random = [p for p in random if p != "transv"]  # from the decoder's attention
    else:
        random = [p for p in random if p != "transv" or any(s.transfer for s in model.transv.stages.values())]
    told = [f"{', '.join(before)} from {recipe.train.init_from}"] if before else []
    told += [f"{', '.join(stored)} from their `weights`"] if stored else []
    told += [f"{', '.join(random)} at random"] if random else []
    told += [f"adapters from {model.lora.weights}"] if model.lora.rank and model.lora.weights else []
    found = [f"starts with {'; '.join(told)}"]
    if "decoder" in random and parts:
        found.append(
            f"the decoder starts at random: {recipe.train.init_from} is a stage without one, and "
            "model.decoder.weights is empty. A stage that has trained it, or a language model, is the usual start."
        )
    if idle := [p for p in random if p not in recipe.train.trainable]:
        found.append(
            f"{', '.join(idle)}: random, and not in train.trainable, so nothing is ever learned there. Give it "
            "`weights`, a stage before (train.init_from), or train it."
        )
    return found


def check_export(export: Path) -> None:
    """Raises FileNotFoundError with what to run when there is none."""
    if not is_export(export):
        raise FileNotFoundError(
            f"{export} is not an export (no {WEIGHTS}, {CONFIG} and {LINEAGE}). It appears when a training "
            "stage has finished; give the run folder or its export/."
        )


def load_export(
    export: Path, overrides: Sequence[str] = (), *, device: torch.device | str = "cpu", dtype: str | None = None
) -> tuple[TimeViper, Recipe, Tokenizer]:
    """A finished model on a device, in eval mode, with its recipe (as overridden) and tokenizer.

    dtype: one of DTYPES; None: as `pick_dtype` says. Tensors are rounded to it one by one as they are read.
    Raises FileNotFoundError with what to run when there is none, ValueError when it is a tower alone, ConfigError for
    settings that do not fit.
    """
    check_export(export)
    recipe = load_recipe(export / CONFIG, overrides, to_train=False)
    if recipe.train.objective != "answer":
        raise ValueError(f"{export} is a vision tower without a language model; it cannot answer questions")
    model, files = _bare(recipe), TensorFolder(export)
    assert isinstance(model, TimeViper)
    own = model.state_dict()
    missing, more = sorted(own.keys() - files.files.keys()), sorted(files.files.keys() - own.keys())
    # A stage may be overridden to transfer nothing, and tokens not to tell their times.
    unexpected = [name for name in more if not name.startswith((TRANSV, TIMES))]
    if missing or unexpected:
        raise ValueError(f"{export}: tensors missing: {missing[:5]}, unexpected: {unexpected[:5]}")
    place = torch.device(device)
    computed = pick_dtype(recipe, place, dtype)
    check_quantise(kind := recipe.eval.quantise, place, computed)
    if computed == torch.bfloat16:
        _shorten(model, recipe)
    maps = {f"{name}.weight": module for name, module in quantisable(model)} if kind != "none" else {}
    readers = initialize.from_folder(files, {name: name for name in own})
    for module in maps.values():
        del module.weight  # never there whole: each is quantised as it is read
    model.to_empty(device=place)
    initialize.fill(model, model, {name: read for name, read in readers.items() if name not in maps})
    for name, module in maps.items():
        quantise_map(module, readers[name](slice(None)).to(place, computed), kind)
    return model.eval().requires_grad_(False), recipe, Tokenizer.load(str(export))


def pick_device() -> torch.device:
    """The GPU of this rank, if there is one."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


def pick_dtype(recipe: Recipe, device: torch.device, asked: str | None = None) -> torch.dtype:
    """In which answers are computed: as asked (one of DTYPES), else as in training on a GPU, and float32 elsewhere.

    Raises ConfigError for another one, or one that the device does not have.
    """
    if asked not in (None, *DTYPES):
        raise ConfigError("dtype", [Problem("--dtype", asked, f"must be {one_of(DTYPES)}.")])
    name = asked or (recipe.parallel.param_dtype if device.type == "cuda" else "float32")
    if name == "bfloat16" and (lack := _no_bfloat16(device)):
        if asked:
            raise ConfigError("dtype", [Problem("--dtype", asked, f"{lack}: take float32, or another device.")])
        log.warning("%s: computing in float32", lack)
        name = "float32"
    return getattr(torch, name)


def _no_bfloat16(device: torch.device) -> str:
    """Why a device cannot compute in bfloat16; "" if it can."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            fine = torch.cuda.is_bf16_supported(including_emulation=False)
        return "" if fine else f"{torch.cuda.get_device_name(device)} has no bfloat16"
    return "" if device.type == "cpu" else f"bfloat16 is not used on {device.type}"


def _shorten(model: TimeViper, recipe: Recipe) -> None:
    """Give each parameter the dtype that it has in a training step in bfloat16; the model is still without memory."""
    done: set[int] = set()
    for unit in sharding_plan(model, replace(recipe.parallel, param_dtype="bfloat16")):
        for p in (p for module in unit.modules for p in module.parameters() if id(p) not in done):
            p.data = p.data.to(unit.dtype or torch.float32)
            done.add(id(p))
