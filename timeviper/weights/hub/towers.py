"""Vision encoders from local Hugging Face folders; which families there are, and what is each one's own, stands in
`model/vision/<family>.py`.

An imported encoder is a Hugging Face folder again, of the vision part alone: `model.towers.<name>.weights` takes
it, and so does any program that reads such folders.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from timeviper.config import TowerConfig
from timeviper.config.model import TOWER_FACTS
from timeviper.model.vision.build import tower_class
from timeviper.model.vision.pretrained import Pretrained
from timeviper.weights.tensors import TensorFolder


def encoders() -> dict[str, tuple[str, type[Pretrained]]]:
    """(family, class) by the `model_type` of a `config.json`."""
    classes = {family: tower_class(family) for family in TOWER_FACTS}
    known = {family: made for family, made in classes.items() if issubclass(made, Pretrained)}
    return {kind: (family, made) for family, made in known.items() for kind in made.model_types}


def tower_config(raw: dict[str, Any], where: str) -> TowerConfig:
    """The encoder that a `config.json` describes. Raises ValueError for one that cannot be built here."""
    kind, known = raw["model_type"], encoders()
    if kind not in known:
        raise ValueError(f"{where}: model_type {kind!r} is no encoder known here ({', '.join(known)})")
    family, encoder = known[kind]
    _, config_class = encoder.hub_classes(kind)
    found = config_class.from_dict(raw.get("vision_config", raw))  # of a model with a text half, one of two configs
    try:
        own = encoder.read(found, kind)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return TowerConfig(
        family=family,  # pyright: ignore[reportArgumentType]
        image_size=found.image_size,
        patch_size=found.patch_size,
        width=found.hidden_size,
        layers=found.num_hidden_layers,
        heads=found.num_attention_heads,
        **own,
    )


def copy_tower(raw: dict[str, Any], src: Path, dst: Path) -> TowerConfig:
    """Write the vision part of `src` to `dst`, tensors as stored.

    Raises ValueError with every tensor that is missing, unexpected or of another shape.
    """
    cfg = tower_config(raw, str(src / "config.json"))
    files = TensorFolder(src)  # asked first: transformers would take quantised numbers for weights
    problems = files.quantised(name for name in files.files if not name.endswith("position_ids"))
    _, encoder = encoders()[raw["model_type"]]
    model_class, _ = encoder.hub_classes(raw["model_type"])
    options: dict[str, Any] = dict(dtype="auto", local_files_only=True, use_safetensors=True)
    options |= dict(output_loading_info=True, ignore_mismatched_sizes=True)
    model, info = model_class.from_pretrained(src, **options)
    missing, unexpected = (
        [name for name in sorted(info[keys]) if not name.startswith(encoder.elsewhere)]
        for keys in ("missing_keys", "unexpected_keys")
    )
    problems += [f"missing: {name}" for name in missing] + [f"unexpected: {name}" for name in unexpected]
    for name, stored, needed in sorted(info["mismatched_keys"]):
        problems.append(f"another shape: {name} is {list(stored)}, the config asks for {list(needed)}")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            problems.append(f"not finite: {name} holds NaN or infinity; the file is damaged")
    if problems:
        raise ValueError("\n  ".join([f"{src} does not hold the encoder its config describes:", *problems]))
    model.save_pretrained(dst)
    return cfg
