"""Features of the frozen towers, stored once: which ones a recipe may train from.

`write_features.py` writes them, `datamodules/frames/stored.py` is the format. What is stored is used only where every
field of its fingerprint is that of the recipe; all differences come in one message, before anything is built.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor, nn

from timeviper.config import FramesConfig, Recipe
from timeviper.config.curriculum import phase_at
from timeviper.config.fields import differences
from timeviper.datamodules.frames.fingerprint import Fingerprint, read_metadata, same_frames
from timeviper.datamodules.frames.share import added, frame_counts
from timeviper.datamodules.mixture import Source
from timeviper.datamodules.remote.block_cache import BlockCache
from timeviper.datamodules.remote.member_file import open_member
from timeviper.datamodules.shards.address import shown
from timeviper.datamodules.shards.columns import Columns
from timeviper.datamodules.shards.schema import FEATURES
from timeviper.errors import ConfigError, Problem
from timeviper.weights import initialize
from timeviper.weights.export import meta_model, stored_tensors


def frozen_towers(recipe: Recipe) -> nn.ModuleDict:
    """The towers that the stage starts from, as it uses them: frozen, in the dtype that it computes in, on the CPU.

    Raises ConfigError where a tower's weights would be random.
    """
    model = meta_model(recipe)
    holder = nn.Module()
    holder.towers = model.towers  # under the names that stored tensors have
    stored = {name: read for name, read in stored_tensors(model, recipe).items() if name.startswith("towers.")}
    lacking = {name.split(".")[1] for name, _ in holder.named_parameters() if name not in stored}
    if lacking:
        message = "has random weights: give it `weights`, or start from a stage that has trained it (train.init_from)."
        raise ConfigError(recipe.name, [Problem(f"model.towers.{n}.weights", "", message) for n in sorted(lacking)])
    holder.to_empty(device="cpu")
    initialize.fill(holder, holder, stored)
    return model.towers.to(_dtype(recipe)).eval().requires_grad_(False)


def fingerprint(recipe: Recipe, towers: nn.ModuleDict, frames: FramesConfig | None = None) -> Fingerprint:
    """What features depend on when `towers` make them of `frames` (default: data.frames).

    The weights count as they are rounded to the dtype of computation.
    """
    configs = {name: asdict(tower) for name, tower in recipe.model.towers.items()}
    for name, config in configs.items():
        del config["weights"]  # a place
        config["sha256"] = weights_digest(towers[name].state_dict(), _dtype(recipe))
    return Fingerprint(
        towers=configs,
        image_size=max(config["image_size"] for config in configs.values()),
        frames=frames or recipe.data.frames,
        dtype=recipe.parallel.param_dtype,
    )


def _dtype(recipe: Recipe) -> torch.dtype:
    return getattr(torch, recipe.parallel.param_dtype)


def weights_digest(state: Mapping[str, Tensor], dtype: torch.dtype) -> str:
    """32 hexadecimal digits of the weights as they are in a dtype."""
    digest = sha256()
    for name, tensor in sorted(state.items()):
        if tensor.is_floating_point():
            digest.update(f"{name} {list(tensor.shape)}\n".encode())
            flat = tensor.detach().to("cpu", dtype).contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def wanted_frames(recipe: Recipe, source: str, held_out: bool) -> dict[str, FramesConfig]:
    """Which frames are read of a source, by the setting that says so; only phases in which it is drawn from count."""
    if held_out:
        return {"data.frames": recipe.data.frames}
    starts = sorted({0, *(p.start for p in recipe.train.phases.values())})
    phases = (phase_at(step, recipe.data, recipe.train.phases) for step in starts)
    read = [phase for phase in phases if phase.weights.get(source, 0) > 0]
    drawn = {f"train.phases.{phase.name}" if phase.name else "data.frames": phase.frames for phase in read}
    return drawn or {"data.frames": recipe.data.frames}


def check_features(
    recipe: Recipe,
    train: Mapping[str, Source],
    val: Mapping[str, Source],
    towers: nn.ModuleDict | None = None,
) -> None:
    """Raises ConfigError with every source whose features are not those that the recipe's towers would make now.

    `towers`: of a model that exists already; else they are read, if there are features at all.
    """
    groups = (("data.sources", train), ("data.val", val))
    cache = BlockCache.of(recipe.data)
    held = {(g, name): found for g, sources in groups for name, s in sources.items() if (found := _stored(s, cache))}
    if not held:
        return
    problems: list[Problem] = []
    if train and ("tower" in recipe.train.trainable or recipe.train.objective != "answer"):
        used = ", ".join(f"{group}.{name}" for group, name in held)
        message = f"features are of a frozen tower, and this stage trains it: give shards of videos for {used}."
        raise ConfigError(recipe.name, [Problem("train.trainable", recipe.train.trainable, message)])
    ours = fingerprint(recipe, towers or frozen_towers(recipe))
    for (group, name), found in held.items():
        config = (recipe.data.sources if group == "data.sources" else recipe.data.val)[name]
        wanted = wanted_frames(recipe, name, group == "data.val")
        shards = (train if group == "data.sources" else val)[name].shards
        for theirs, samples in found:
            if wrong := [*_differences(ours, theirs), *_other_frames(theirs.frames, shards, samples, wanted)]:
                listed = "\n        ".join(wrong)
                message = (
                    f"These features are not those that this recipe's frozen towers would make:\n        {listed}\n"
                    "      Write them anew (timeviper shards features RECIPE OUT), or name the shards of the videos."
                )
                problems.append(Problem(f"{group}.{name}.shards", config.shards, message))
    if problems:
        raise ConfigError(recipe.name, problems)


def _stored(source: Source, cache: BlockCache) -> list[tuple[Fingerprint, np.ndarray]]:
    """The different fingerprints in a source, each with the numbers of its samples; one header is read for each."""
    shards, found = source.shards, source.shards.arrays["fingerprint"]
    stored = []
    for code in np.unique(found).tolist():
        if shards.words[code]:
            samples = np.flatnonzero(found == code)
            stored.append((_read(shards, int(samples[0]), cache), samples))
    return sorted(stored, key=lambda group: group[1][0])


def _read(shards: Columns, sample: int, cache: BlockCache) -> Fingerprint:
    """What a sample's features were made with. ValueError that names the sample if they are damaged."""
    location, record = shards.location(shards.shard_of(sample)), shards.record(sample)
    try:
        with open_member(location, record, FEATURES, cache) as file:
            return Fingerprint.from_dict(read_metadata(file)["fingerprint"])
    except ValueError as error:
        raise ValueError(f"shard {shown(location)}, sample {record.key!r}: {FEATURES} {error}") from error


def _differences(ours: Fingerprint, theirs: Fingerprint) -> list[str]:
    """All fields but which frames are taken."""
    a, b = ours.as_dict(), theirs.as_dict()
    del a["frames"], b["frames"]
    return differences(a, b)


def _other_frames(
    theirs: FramesConfig, shards: Columns, samples: np.ndarray, wanted: Mapping[str, FramesConfig]
) -> Iterator[str]:
    """Settings that take other frames of any sample; that another bound stands there does not matter."""
    for key, frames in wanted.items():
        if frames == theirs:
            continue
        other = (i for i in samples.tolist() if not same_frames(shards.lengths(i), theirs, frames))
        if (sample := next(other, None)) is not None:
            record = shards.record(sample)
            there, here = (added(frame_counts(record.each, f)) for f in (theirs, frames))
            yield (
                f"frames: {there} there, {here} here, "
                f"of {record.key!r} with {record.duration:g} s ({key}: {show(frames)}; there {show(theirs)})"
            )


def show(frames: FramesConfig) -> str:
    return f"fps {frames.fps:g}, {frames.min_frames} to {frames.max_frames} frames"
