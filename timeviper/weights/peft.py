"""LoRA adapters of the language model as the peft package keeps them: `adapter_config.json` and one safetensors file.

They belong on the weights that the stage started from, not on its export, which has them merged. Read are those of
peft's plain LoRA, for `model.lora.weights`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from timeviper.config import DecoderConfig, LoraConfig, Recipe
from timeviper.config.load import CONFIG, load_recipe
from timeviper.files import new_folder, whole_folder
from timeviper.weights.hub.names import canonical, hub_names
from timeviper.weights.initialize import Read, from_folder
from timeviper.weights.tensors import ADAPTER, TensorFolder, write_tensors

BEFORE = "base_model.model."  # peft's own wrappers, before every name of the model
ADAPTER_CONFIG = "adapter_config.json"
# Settings of peft that would make other sums of the same tensors, and their values that do not.
PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "use_rslora": (False,),
    "use_dora": (False,),
    "fan_in_fan_out": (False,),
    "bias": ("none",),
    "lora_bias": (False,),
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "modules_to_save": ([],),
    "layer_replication": ([],),
}


def find_adapter(place: str) -> Path:
    """The adapter file, or folder of peft, that `model.lora.weights` means: also by the run or export it belongs to.

    Raises ValueError where there is none.
    """
    path = Path(place)
    candidates = (
        path / ADAPTER_CONFIG,
        path,
        *(path / name for name in (ADAPTER, f"export/{ADAPTER}", Path(ADAPTER).name)),
    )
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        raise ValueError(
            f"model.lora.weights: {place} holds no adapters: it takes {Path(ADAPTER).name}, the run or export that "
            f"has it, or a folder of peft with {ADAPTER_CONFIG} and adapter_model.safetensors"
        )
    return path if found.name == ADAPTER_CONFIG else found


def read_adapter(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], cfg: DecoderConfig, lora: LoraConfig
) -> dict[str, Read]:
    """Readers of a folder of peft, for the decoder's adapters of a model, which have these names and shapes.

    Raises ValueError with all that does not fit `lora` or the model.
    """
    wrong = [*_not_plain(folder, lora)]
    if not (folder / "adapter_model.safetensors").is_file():
        there = ", ".join(sorted(p.name for p in folder.iterdir()))
        raise ValueError(
            f"{folder}: no adapter_model.safetensors (a .bin is not read: save_pretrained writes it); {there}"
        )
    files = TensorFolder(folder)
    ours = {theirs: name for name, theirs in hub_names(cfg).items()}
    found: dict[str, str] = {}
    for stored in files.files:
        module, _, leaf = stored.removeprefix(BEFORE).removesuffix(".weight").rpartition(".")
        place = ours.get(canonical(f"{module}.weight", cfg) or "", "")
        name = f"decoder.{place.removesuffix('.weight')}.{leaf}"
        found[name] = stored
        if name not in shapes:
            wrong.append(f"unexpected: {stored}")
        elif files.shape(stored) != shapes[name]:
            wrong.append(f"{stored} is {list(files.shape(stored))}, not {list(shapes[name])}")
    wrong += [f"missing: {name}" for name in shapes if name.startswith("decoder.") and name not in found]
    if wrong:
        more = [f"and {len(wrong) - 5} more"] if len(wrong) > 6 else []
        wrong = [*wrong[: 5 if more else None], *more]
        raise ValueError("\n  ".join([f"{folder} does not hold the adapters of model.lora:", *wrong]))
    return from_folder(files, found)


def _not_plain(folder: Path, lora: LoraConfig) -> Iterator[str]:
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / ADAPTER_CONFIG}: no JSON ({error})") from error
    for key, plain in PLAIN.items():
        if (value := config.get(key)) is not None and value not in plain and (value or plain[0]):
            yield f"{key} is {value!r} there: only {plain[0]!r} is computed here"
    if config.get("r") != lora.rank:
        yield f"model.lora.rank is {lora.rank}, there r is {config.get('r')}"
    if not math.isclose(config.get("lora_alpha") or math.nan, lora.alpha):
        yield f"model.lora.alpha is {lora.alpha:g}, there lora_alpha is {config.get('lora_alpha')}"


def export_adapter(export: Path, out: Path) -> str:
    """Write the decoder's adapters of a stage's export to a new folder; returns what was written, in words.

    Raises ValueError where there are none, FileExistsError for a folder that holds something.
    """
    file = export / ADAPTER
    if not file.is_file():
        raise ValueError(f"{export} has no adapters ({ADAPTER}): its stage was trained without model.lora")
    recipe, adapters = load_recipe(export / CONFIG, to_train=False), load_file(file)
    theirs = {name.removesuffix(".weight"): hub for name, hub in hub_names(recipe.model.decoder).items()}
    tensors: list[tuple[str, Tensor]] = []
    modules: set[str] = set()
    for name, tensor in adapters.items():
        place, _, leaf = name.removeprefix("decoder.").rpartition(".")  # leaf: lora_A or lora_B
        if name.startswith("decoder.") and place in theirs:
            module = re.sub(
                "^backbone", "model", theirs[place].removesuffix(".weight")
            )  # as transformers' class has it
            modules.add(module.removeprefix("model."))  # found by how names end
            tensors.append((f"{BEFORE}{module}.{leaf}.weight", tensor))
    if not tensors:
        raise ValueError(f"{file} adapts nothing of the language model, and peft knows nothing else of this model")
    with whole_folder(new_folder(out)) as partial:
        (written,) = write_tensors(partial, tensors, shard_bytes=1 << 40)
        written.rename(partial / "adapter_model.safetensors")
        text = json.dumps(_config(recipe, sorted(modules)), indent=2)
        (partial / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")
    left = len(adapters) - len(tensors)
    more = f"; {left} tensors of projector or TransV have no place there" if left else ""
    base = recipe.model.decoder.weights or f"the decoder in {recipe.train.init_from or 'the stage before'}"
    return f"adapters of {len(modules)} maps{more}; they belong on {base}"


def _config(recipe: Recipe, modules: list[str]) -> dict[str, object]:
    lora = recipe.model.lora
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": recipe.model.decoder.weights or None,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
    }
