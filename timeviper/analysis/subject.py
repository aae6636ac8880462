"""What an analysis looks at: a finished stage in memory, and its held-out samples with their right answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

import torch

from timeviper.config import Recipe
from timeviper.config.load import CONFIG, load_recipe
from timeviper.datamodules.build import class_datasets, cost_model, load_sources, pack_format
from timeviper.datamodules.cost import Item
from timeviper.datamodules.mixture import Source
from timeviper.datamodules.plan import StepPlan, numbered
from timeviper.datamodules.reader import PackReader
from timeviper.datamodules.remote.block_cache import BlockCache
from timeviper.inference.eval_report import folder_of
from timeviper.kernels import dispatch
from timeviper.model.viper import TimeViper
from timeviper.pack import Kind, Pack
from timeviper.tokenizer import Tokenizer
from timeviper.weights.export import find_export, load_export, pick_device
from timeviper.weights.lineage import read_lineage

NAMED = 3  # nearest keys that a message names


class AnalysisError(ValueError):
    """What cannot be looked at, and what can."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A finished stage; `load_subject` makes it."""

    export: Path
    device: torch.device
    model: TimeViper
    recipe: Recipe
    """Settings of the stage, with overrides."""
    tokenizer: Tokenizer

    @property
    def folder(self) -> Path:
        """Where what is found is written, if nothing else is said."""
        return folder_of(self.export) / "analysis"

    @property
    def layout(self) -> str:
        return self.recipe.model.decoder.layout

    @cached_property
    def stored_recipe(self) -> Recipe:
        """As the stage was trained, without overrides."""
        return load_recipe(self.export / CONFIG, to_train=False)

    @property
    def facts(self) -> list[tuple[str, object]]:
        """For the head of a page: which run, which weights."""
        lineage = read_lineage(self.export)
        return [
            ("run", str(folder_of(self.export))),
            ("recipe", f"{self.recipe.name}, step {lineage['step']}"),
            ("weights", lineage.get("weights") or "not known"),
            ("decoder", self.layout if len(self.layout) <= 40 else f"{len(self.layout)} blocks"),
        ]

    @cached_property
    def sources(self) -> dict[str, Source]:
        """The held-out sources. Raises AnalysisError if there are none."""
        data = self.recipe.data
        if not data.val:
            raise AnalysisError(f"{self.export}: data.val names no held-out source; add data.val.mine.shards=FOLDER")
        return load_sources(data.val, data.cache, data.patience)

    def items(self, count: int) -> list[Item]:
        """`count` held-out samples with frames, the same in every run: the first of a fixed shuffle.

        Those that fit into a pack come before longer ones. Raises AnalysisError if none has frames.
        """
        data, cost = self.recipe.data, cost_model(self.recipe, self.tokenizer)
        total, fitting, longer = sum(map(len, self.sources.values())), [], []
        for unit in numbered(self.sources, torch.randperm(total, generator=torch.Generator().manual_seed(0)).tolist()):
            if (item := cost.item(unit, data.frames)).num_frames:
                (fitting if item.tokens <= data.tokens_per_pack else longer).append(item)
            if len(fitting) == count:
                break
        if not fitting and not longer:
            raise AnalysisError(
                f"{self.export}: no held-out sample has frames, and frames are what is looked at: name a source of "
                "videos or images, such as data.val.mine.shards=FOLDER"
            )
        return [*fitting, *sorted(longer, key=lambda item: item.tokens)][:count]

    def item(self, key: str) -> Item:
        """A held-out sample by its key, or by its end where that is only one's. AnalysisError names the nearest."""
        keys = {source.key(i): (source, i) for source in self.sources.values() for i in range(len(source))}
        found = [key] if key in keys else [k for k in keys if k.endswith(f"/{key}") or k.startswith(f"{key}#")]
        if len(found) == 1:
            source, number = keys[found[0]]
            return cost_model(self.recipe, self.tokenizer).item(source[number], self.recipe.data.frames)
        near = found[:NAMED] or get_close_matches(key, keys, NAMED, 0.0)
        what = f"names {len(found)} held-out samples" if found else "is no held-out sample"
        raise AnalysisError(
            f"--sample {key} {what} of {self.export}: the nearest of {len(keys):,} are {', '.join(near)}"
        )

    def packs(self, items: Sequence[Item], *, prompt_only: bool = False) -> Iterator[Pack]:
        """Each sample as a pack of its own on the device, with its right answer. AnalysisError for one that cannot be
        read."""
        data, classes = self.recipe.data, class_datasets(self.recipe.data.val)
        form, cache = pack_format(self.recipe), BlockCache.of(data)
        reader = PackReader(self.tokenizer, form, classes, prompt_only=prompt_only, cache=cache)
        for number, item in enumerate(items):
            batch = reader[StepPlan(number, data.frames, ((item,),))]
            if batch.skipped:
                raise AnalysisError(f"{batch.skipped[0].key} cannot be read: {batch.skipped[0].reason}")
            yield batch.packs[0].to(self.device)

    def question(self, pack: Pack) -> str:
        """What is asked behind the last frame of a pack of one sample, without the words that open the answer's turn;
        where nothing is asked there, all text of the prompt."""
        asked, there = pack.ids[pack.kind != Kind.ANSWER].tolist(), pack.kind[pack.kind != Kind.ANSWER] == Kind.VISION
        first = int(there.nonzero().max()) + 1 if bool(there.any()) else 0
        turn = max((i for i in range(first, len(asked)) if asked[i] in self.tokenizer.special_ids), default=len(asked))
        text = self.tokenizer.decode(asked[first:turn]) or self.tokenizer.decode(asked)
        return " ".join(text.split())


def load_subject(run: str | Path, overrides: Sequence[str] = (), dtype: str | None = None) -> Subject:
    """A run folder or an export, on the GPU if there is one. Raises as `inference.ask.load` does."""
    export, device = find_export(run), pick_device()
    model, recipe, tokenizer = load_export(export, overrides, device=device, dtype=dtype)
    dispatch.configure(**vars(recipe.model.kernel))
    return Subject(export, device, model, recipe, tokenizer)
