"""LoRA adapters of the language model as the peft package keeps them: `adapter_config.json` and one safetensors file.

They belong on the weights that the stage started from, not on its export, which has them merged.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from timeviper.config import Recipe
from timeviper.config.load import CONFIG, load_recipe
from timeviper.files import new_folder, whole_folder
from timeviper.weights.hub.names import hub_names
from timeviper.weights.tensors import ADAPTER, write_tensors

BEFORE = "base_model.model."  # peft's own wrappers, before every name of the model


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
        (partial / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
    left = len(adapters) - len(tensors)
    more = f"; {left} tensors of projector or TransV have no place there" if left else ""
    return (
        f"adapters of {len(modules)} maps, for {recipe.model.decoder.weights or 'the decoder before the stage'}{more}"
    )


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
