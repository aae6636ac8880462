"""What `timeviper shards features` has to write for a recipe: each set of shards once, and with which frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from timeviper.config import FramesConfig, Recipe, SourceConfig
from timeviper.datamodules.build import class_dataset, load_sources
from timeviper.datamodules.dataset_class import ClassDataset
from timeviper.datamodules.frames.fingerprint import same_frames
from timeviper.datamodules.mixture import Unit
from timeviper.datamodules.shards.index_file import SampleRecord, ShardIndex
from timeviper.errors import ConfigError, Problem
from timeviper.features.check import show, wanted_frames

SAMPLES_PER_SHARD = 256  # where the source has no shards


@dataclass
class Work:
    """One set of shards, though several sources may draw from it."""

    keys: list[str]
    """`data.sources.videos` and so on."""
    folder: Path
    frames: FramesConfig
    shards: list[tuple[str, list[Unit]]]
    """Name and samples of each."""
    dataset: ClassDataset | None = None


def plan_work(recipe: Recipe, out: Path, only: list[str]) -> list[Work]:
    """What is to be written where. ConfigError with every source whose phases want different frames."""
    groups = {"sources": recipe.data.sources, "val": recipe.data.val}
    known = {f"data.{group}.{name}": (group, name, c) for group, cs in groups.items() for name, c in cs.items()}
    if unknown := [name for name in only if not any(name in (key, n) for key, (_, n, _) in known.items())]:
        raise ValueError(f"--source {', '.join(unknown)}: the recipe has {', '.join(known)}")
    together: dict[str, list[str]] = {}
    for key, (_, name, config) in known.items():
        if not only or key in only or name in only:
            together.setdefault(_place(config), []).append(key)
    works, problems = [], []
    for keys in together.values():
        group, name, config = known[keys[0]]
        dataset = class_dataset(config)
        whole = SourceConfig(config.shards, config.dataset, config.options)
        (source,) = load_sources({name: whole}, recipe.data.cache).values()
        shards = [(s, [Unit(keys[0], s.location, r, 0) for r in s.samples]) for s in source.shards]
        wanted = {k: f for key in keys for k, f in _wanted(recipe, key, known).items()}
        frames = next(iter(wanted.values()))
        records = [unit.record for _, units in shards for unit in units]
        if stored := next((r for r in records if r.fingerprint), None):
            message = f"holds features already (sample {stored.key!r}): name the shards of the videos."
            problems.append(Problem(f"{keys[0]}.shards", config.shards, message))
        if other := _other_frames(records, frames, wanted):
            problems.append(Problem(f"{keys[0]}.shards", config.shards or config.dataset, other))
        folder = out / {"sources": "train", "val": "val"}[group] / name
        named = _cut(shards) if dataset else [(shard.name, units) for shard, units in shards]
        works.append(Work(keys, folder, frames, named, dataset))
    if problems:
        raise ConfigError(recipe.name, problems)
    return works


def _place(config: SourceConfig) -> str:
    return f"{config.dataset} {sorted(config.options.items())}" if config.dataset else config.shards


def _wanted(recipe: Recipe, key: str, known: Mapping[str, tuple[str, str, SourceConfig]]) -> dict[str, FramesConfig]:
    group, name, _ = known[key]
    return {f"{where} for {key}": f for where, f in wanted_frames(recipe, name, group == "val").items()}


def _other_frames(records: list[SampleRecord], frames: FramesConfig, wanted: Mapping[str, FramesConfig]) -> str:
    """Why one set of features does not do; "" if it does."""
    if all(same_frames(r.each, frames, other) for other in wanted.values() for r in records):
        return ""
    listed = "\n        ".join(f"{key}: {show(f)}" for key, f in wanted.items())
    return (
        f"Different frames are wanted of these videos, and the features of some do not give those of others:"
        f"\n        {listed}\n      Leave this source out (--source names those to write), or give it one setting."
    )


def _cut(shards: list[tuple[ShardIndex, list[Unit]]]) -> list[tuple[str, list[Unit]]]:
    """The samples of a Python class, in shards."""
    units = [unit for _, units in shards for unit in units]
    starts = range(0, len(units), SAMPLES_PER_SHARD)
    return [(f"shard-{i:05d}.tar", units[at : at + SAMPLES_PER_SHARD]) for i, at in enumerate(starts)]
