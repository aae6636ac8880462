"""`timeviper shards features`: the frozen towers run once over the data of a recipe, and features become shards.

A shard of features has the name, the samples and the texts of the shard of videos that it is made of, so that the
plan draws the same samples in the same order from either.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from timeviper.config import FramesConfig, Recipe
from timeviper.console import ProgressLine
from timeviper.datamodules.dataset_class import ClassDataset
from timeviper.datamodules.fetch import fetch_sample
from timeviper.datamodules.frames.fingerprint import Fingerprint
from timeviper.datamodules.frames.share import frame_counts
from timeviper.datamodules.frames.stored import encode_features
from timeviper.datamodules.frames.video import Frames
from timeviper.datamodules.mixture import Unit
from timeviper.datamodules.processes import ignore_signals
from timeviper.datamodules.remote.block_cache import BlockCache
from timeviper.datamodules.remote.patience import StoreUnusable
from timeviper.datamodules.shards.index import SampleRecord, index_shard, read_index, write_index
from timeviper.datamodules.shards.schema import FEATURES
from timeviper.datamodules.shards.writer import write_shard
from timeviper.errors import ConfigError, Problem
from timeviper.features.check import fingerprint, frozen_towers
from timeviper.features.work import Work, plan_work
from timeviper.files import write_whole
from timeviper.weights.export import pick_device

FRAMES_AT_ONCE = 256  # of several samples, encoded together
ALWAYS_ALLOWED = 2  # unreadable samples before their share is looked at
LISTED = 20
OVERRIDES = "overrides.txt"


@dataclass
class Done:
    """What has been written, and what could not be."""

    frames: int = 0
    samples: int = 0
    shards: int = 0
    kept: int = 0
    """Shards that were there."""
    bytes: int = 0
    left_out: list[str] = field(default_factory=list)
    """Samples that could not be read, each with the reason."""


def write_features(recipe: Recipe, out: Path, only: list[str], workers: int) -> bool:
    """Write the features of all sources of a recipe (or of `only` some) into `out`; False if a person stopped it.

    Raises ConfigError for a recipe whose features cannot be stored, ValueError for other features in `out` and when
    more samples than `data.max_skipped` allows cannot be read; what is written stays.
    """
    if "tower" in recipe.train.trainable or recipe.train.objective != "answer":
        message = "this stage trains the tower: its features change with every step and cannot be stored."
        raise ConfigError(recipe.name, [Problem("train.trainable", recipe.train.trainable, message)])
    works = plan_work(recipe, out, only)
    writer = _Writer(recipe, works, workers)
    try:
        done = writer.run()
    except KeyboardInterrupt:
        print(f"stopped; the finished shards are whole and stay in {out}, and the same command continues")
        return False
    overrides = [f"{key}.shards={work.folder}" for work in works for key in work.keys]
    write_whole(out / OVERRIDES, " ".join(overrides) + "\n")
    new = f", {done.bytes / done.frames:,.0f} bytes a frame" if done.frames else ""
    print(f"{done.samples:,} samples in {done.shards:,} shards ({done.kept:,} were there): {out}{new}")
    if done.left_out:
        listed = "".join(f"\n  {line}" for line in done.left_out[:LISTED])
        report = f"{len(done.left_out)} samples could not be read and are left out:{listed}"
        if len(done.left_out) > max(ALWAYS_ALLOWED, recipe.data.max_skipped * done.samples):
            raise ValueError(
                f"{report}\nThat is more than data.max_skipped = {recipe.data.max_skipped:g} allows. Mend or remove "
                "them (timeviper shards check FOLDER), or raise the bound."
            )
        print(report)
    print(f"train from them:  timeviper train RECIPE $(cat {out / OVERRIDES})")
    return True


# The json and its media, why they cannot be read, or why nothing can be.
Read = tuple[dict[str, Any], list[Frames]] | str | StoreUnusable


class _Media(Dataset[Read]):
    """Reads samples as training does, in loader processes."""

    def __init__(self, size: int, classes: dict[str, ClassDataset], cache: BlockCache) -> None:
        self.size, self.classes, self.cache = size, classes, cache

    def __getitem__(self, item: tuple[Unit, FramesConfig]) -> Read:
        try:
            return fetch_sample(item[0], item[1], self.size, self.classes, self.cache)
        except StoreUnusable as error:  # raised where a person sees it, without the traceback of a loader process
            return error
        except (ValueError, OSError) as error:
            return str(error)


def _as_is(read: Any) -> Any:
    return read


class _Writer:
    """The towers on their device, and all that is to be done with them."""

    def __init__(self, recipe: Recipe, works: list[Work], workers: int) -> None:
        self.device = pick_device()
        self.towers = frozen_towers(recipe).to(self.device)
        self.tokens = {name: tower.tokens for name, tower in recipe.model.towers.items()}
        self.marks = [fingerprint(recipe, self.towers, work.frames) for work in works]
        self.works, self.workers, self.cache = works, workers, BlockCache.of(recipe.data)
        self.done = Done()

    def run(self) -> Done:
        """Write every shard that is not there yet."""
        todo: list[tuple[Work, Fingerprint, Path, list[Unit]]] = []
        for work, mark in zip(self.works, self.marks):
            for name, units in work.shards:
                self.done.shards += 1
                self.done.samples += len(units)
                if not self._is_there(work.folder / name, units, mark):
                    todo.append((work, mark, work.folder / name, units))
        self.total = sum(_frames(u.record, work.frames) for work, _, _, units in todo for u in units)
        reads = iter(self._loader([(unit, work.frames) for work, _, _, units in todo for unit in units]))
        with ProgressLine() as self.line:
            for _, mark, path, units in todo:
                self._shard(path, units, mark, reads)
        return self.done

    def _loader(self, items: list[tuple[Unit, FramesConfig]]) -> DataLoader[Read]:
        classes = {u.source: work.dataset for work in self.works if work.dataset for _, us in work.shards for u in us}
        return DataLoader(
            _Media(self.marks[0].image_size, classes, self.cache),
            sampler=items,
            batch_size=None,
            collate_fn=_as_is,
            num_workers=self.workers,
            worker_init_fn=ignore_signals,
            multiprocessing_context="spawn" if self.workers else None,
        )

    def _is_there(self, path: Path, units: list[Unit], mark: Fingerprint) -> bool:
        """Whether the shard is finished. ValueError if it is of other features or samples."""
        if not path.exists():
            return False
        try:
            index = read_index(path)
        except ValueError:  # stopped between the tar and its index
            index = index_shard(path)
            write_index(index)
        wanted = {unit.record.key: unit.record for unit in units}
        for found in index.samples:
            record = wanted.pop(found.key, None)
            if record is None or record.conversations != found.conversations:
                what = "a sample that the source has not" if record is None else "other texts"
            elif found.fingerprint not in (None, mark.digest):
                what = "features of another tower, of other frames, or in another dtype"
            else:
                continue
            raise ValueError(
                f"shard {path} is there already with {what} ({found.key!r}); give another folder, or delete it"
            )
        self.done.left_out += [f"{path}: {key}: left out by an earlier run" for key in wanted]
        self.done.kept += 1
        return True

    def _shard(self, path: Path, units: list[Unit], mark: Fingerprint, reads: Iterator[Read]) -> None:
        """One shard, sample by sample through files, so that the features of long videos are never all in memory."""
        parts = path.with_name(path.name + ".parts")
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir(parents=True)
        samples: list[dict[str, Any]] = []
        try:
            for unit, record, media, features in self._encoded(units, reads):
                sample: dict[str, Any] = {"__key__": unit.record.key, "json": _pointing_here(record, media)}
                if media:
                    sample[FEATURES] = parts / f"{len(samples)}"
                    sample[FEATURES].write_bytes(encode_features(media, features, mark))
                    self.done.bytes += sample[FEATURES].stat().st_size
                samples.append(sample)
                self.line.count(
                    self.done.frames, self.total, "frames", f"{self.done.frames / self.line.seconds:,.0f} frames/s"
                )
            if samples:
                write_shard(path, samples)
        finally:
            shutil.rmtree(parts, ignore_errors=True)

    def _encoded(
        self, units: list[Unit], reads: Iterator[Read]
    ) -> Iterator[tuple[Unit, dict[str, Any], list[Frames], dict[str, Tensor]]]:
        """Samples with `[F, T, C]` by tower, in order; those that cannot be read are noted instead."""
        group: list[tuple[Unit, dict[str, Any], list[Frames]]] = []
        waiting = 0
        for unit in units:
            read = next(reads)
            if isinstance(read, StoreUnusable):
                raise read
            if isinstance(read, str):
                self.done.left_out.append(f"{unit.key.rpartition('#')[0]}: {read}")
                continue
            group.append((unit, *read))
            waiting += sum(len(m.times) for m in read[1])
            if waiting >= FRAMES_AT_ONCE:
                yield from self._group(group)
                group, waiting = [], 0
        yield from self._group(group)

    def _group(
        self, group: list[tuple[Unit, dict[str, Any], list[Frames]]]
    ) -> Iterator[tuple[Unit, dict[str, Any], list[Frames], dict[str, Tensor]]]:
        """A frame's features depend on no other frame (see `Tower.forward`), so samples are encoded together."""
        counts = [sum(len(m.times) for m in media) for _, _, media in group]
        pixels = [torch.as_tensor(m.pixels) for _, _, media in group for m in media]
        if not pixels:
            yield from ((*sample, {}) for sample in group)
            return
        frames = torch.cat(pixels).to(self.device)
        features = {name: _finite(name, tower(frames, self.tokens[name])) for name, tower in self.towers.items()}
        self.done.frames += len(frames)
        for i, sample in enumerate(group):
            at = sum(counts[:i])
            yield *sample, {name: f[at : at + counts[i]] for name, f in features.items()}


def _frames(record: SampleRecord, frames: FramesConfig) -> int:
    return sum(frame_counts(record.each, frames))


def _finite(name: str, features: Tensor) -> Tensor:
    if not bool(torch.isfinite(features).all()):
        raise ValueError(f"the tower {name} gives NaN or infinity: its weights are damaged, or its dtype is too narrow")
    return features


def _pointing_here(record: dict[str, Any], media: list[Frames]) -> dict[str, Any]:
    """The json with media that are in the file of features, and whose length nobody can measure any more."""
    found = []
    for medium, frames in zip(record["media"], media):
        measured = {"duration": frames.duration, "fps": frames.fps, "frames": frames.count}
        stated = {name: value for name, value in medium.items() if value is not None}
        found.append((measured if medium["type"] == "video" else {}) | stated | {"member": FEATURES})
    return record | {"media": found}
