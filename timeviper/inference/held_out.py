"""Held-out questions and what a model writes to each: short ones in groups, long ones as their frames are read."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf

import torch
from torch import Tensor

from timeviper.config import Recipe
from timeviper.console import ProgressLine
from timeviper.datamodules.build import class_datasets, cost_model, load_sources, pack_format
from timeviper.datamodules.fetch import fetch_stream
from timeviper.datamodules.loader import Loader
from timeviper.datamodules.mixture import Source
from timeviper.datamodules.plan import StepPlan, drawn
from timeviper.datamodules.reader import PackReader
from timeviper.datamodules.remote.block_cache import BlockCache
from timeviper.datamodules.remote.patience import StoreUnusable
from timeviper.features.check import check_features
from timeviper.inference.generate import Part, prefill_pack, write
from timeviper.inference.journal import Entry
from timeviper.inference.metrics import Answered
from timeviper.inference.prefill import Prefilled
from timeviper.inference.question import OnFrames, Question, read_question
from timeviper.inference.work import grouped, keys
from timeviper.model.viper import TimeViper
from timeviper.pack import Kind, Pack, StepBatch
from timeviper.tokenizer import Tokenizer
from timeviper.weights.lineage import question_digest

GREY = 128  # what the towers' normalisation maps to zero


@dataclass(frozen=True)
class Variant:
    """A way to let a model answer."""

    name: str
    """What people see."""
    blind: bool = False
    """Every frame is grey."""
    transfer: bool = True
    """Whether what TransV drops is transferred; else it is lost."""


WHOLE, BLIND, PURE_DROP = Variant("TimeViper"), Variant("blind", blind=True), Variant("pure drop", transfer=False)


class Evaluation:
    """One model on one held-out set; each variant answers all questions."""

    def __init__(
        self, model: TimeViper, recipe: Recipe, tokenizer: Tokenizer, sources: dict[str, Source] | None = None
    ) -> None:
        """sources: what is asked; None: data.val."""
        self.model, self.recipe, self.tokenizer = model, recipe, tokenizer
        if sources is None:
            sources = load_sources(recipe.data.val, recipe.data.cache, recipe.data.patience)
        if not sources:
            raise ValueError("data.val names no held-out source; add one, such as data.val.mine.shards=FOLDER")
        check_features(recipe, {}, sources, model.towers)
        units, costs, cfg = (
            drawn(sources, recipe.eval.samples),
            replace(cost_model(recipe, tokenizer), split=False),
            recipe.eval,
        )
        items = [costs.item(unit, recipe.data.frames) for unit in units]
        self.plans = grouped(items, recipe.data.frames, cfg.batch, cfg.tokens_per_piece)
        self.samples = {unit.key: question_digest(unit) for unit in units}  # in the order of the report
        self.cache, self.classes = BlockCache.of(recipe.data), class_datasets(recipe.data.val)
        form = pack_format(recipe)
        form = replace(form, max_tokens=max(form.max_tokens - cfg.max_new_tokens, 0))  # an answer must fit, too
        self.reader = PackReader(tokenizer, form, self.classes, prompt_only=True, cache=self.cache)
        stages = recipe.model.transv.stages.values()
        self.variants = [WHOLE, BLIND, *([PURE_DROP] if any(stage.transfer for stage in stages) else [])]

    def answers(self, variant: Variant, *, quiet: bool = False) -> list[Answered]:
        """Greedy answers to every held-out question that can be read, in order."""
        found = {e.answered.key: e for part in self.entries(variant, self.plans, quiet=quiet) for e in part}
        return [found[key].answered for key in self.samples if not found[key].reason]

    def entries(self, variant: Variant, plans: Sequence[StepPlan], *, quiet: bool = False) -> Iterator[list[Entry]]:
        """What becomes of the questions of some of `plans`, group by group. All variants read, and skip, the same."""
        long = [plan for plan in plans if self._is_long(plan)]
        short = [plan for plan in plans if not self._is_long(plan)]
        total, done = sum(len(keys(plan)) for plan in plans), 0
        with ProgressLine(sys.stderr, every=inf if quiet else None, stays=not quiet) as line:
            for part in self._all(variant, short, long, line):
                done += len(part)
                line.count(done, total, f"questions, {variant.name}")
                yield part

    def _all(
        self, variant: Variant, short: list[StepPlan], long: list[StepPlan], line: ProgressLine
    ) -> Iterator[list[Entry]]:
        for plan, batch in zip(short, self._loader(short)) if short else ():
            with self.model.decoder.transfer(variant.transfer):
                part = self._group(variant, plan, batch)
            yield part
        for plan in long:
            with self.model.decoder.transfer(variant.transfer):
                part = [self._long(variant, plan, partial(line.count, unit=f"frames of {keys(plan)[0]}"))]
            yield part

    def _is_long(self, plan: StepPlan) -> bool:
        return 0 < self.recipe.eval.tokens_per_piece < plan.packs[0][0].tokens

    def _loader(self, plans: list[StepPlan]) -> Iterator[StepBatch]:
        data = self.recipe.data
        return iter(
            Loader(
                self.reader, lambda: plans, workers=data.workers, prefetch=data.prefetch, prefetch_gb=data.prefetch_gb
            )
        )

    def _group(self, variant: Variant, plan: StepPlan, batch: StepBatch) -> list[Entry]:
        if batch.away:
            raise StoreUnusable(batch.away)
        skipped = {lost.key: lost.reason for lost in batch.skipped}
        found = [self._skipped(variant, key, skipped[key]) for key in keys(plan) if key in skipped]
        packs = [self._blind(pack) if variant.blind else pack for pack in batch.packs if pack.keys]
        if not packs:
            return found
        device = next(self.model.parameters()).device
        written = self._write(Prefilled.join([prefill_pack(self.model, pack.to(device)) for pack in packs]))
        rows = [row for pack in packs for row in _rows(pack)]
        return found + [self._entry(variant, *row, ids) for row, ids in zip(rows, written)]

    def _blind(self, pack: Pack) -> Pack:
        grey = pack.frames.new_full((pack.num_frames, *pack.frames.shape[1:]), GREY)
        return replace(pack, frames=grey, features={}, from_features=[])

    def _long(self, variant: Variant, plan: StepPlan, on_frames: OnFrames) -> Entry:
        ((item,),) = plan.packs
        unit, form, cfg = item.unit, self.reader.form, self.recipe.eval
        try:
            said, media = fetch_stream(unit, plan.frames, form.image_size, self.classes, self.cache)
            *asked, last = said["messages"]
            question = Question(asked if last["role"] == "assistant" else [*asked, last], media, unit.key)
            prompt, start = read_question(
                self.model,
                self.tokenizer,
                form,
                question,
                tokens_per_piece=cfg.tokens_per_piece,
                max_new_tokens=cfg.max_new_tokens,
                change=partial(_grey, form.image_size) if variant.blind else None,
                on_frames=on_frames,
            )
        except StoreUnusable:
            raise
        except (ValueError, OSError) as error:  # as the reader of packs does it
            return self._skipped(variant, unit.key, str(error))
        right = last["content"] if last["role"] == "assistant" else ""
        text = prompt.ids[prompt.kind != Kind.VISION]
        return self._entry(variant, unit.key, unit.spec.type, right, text, self._write(start)[0])

    def _write(self, start: Prefilled) -> list[Tensor]:
        return write(self.model.decoder, start, self.recipe.eval.max_new_tokens, stop_ids=self.tokenizer.stop_ids)

    def _entry(self, variant: Variant, key: str, type: str, right: str, text: Tensor, written: Tensor) -> Entry:
        said, asked = (self.tokenizer.decode(ids.tolist()) for ids in (written, text))
        return Entry(variant.name, Answered(key, type, said, right, asked, self.samples[key]))

    def _skipped(self, variant: Variant, key: str, reason: str) -> Entry:
        return Entry(variant.name, Answered(key, "", "", "", "", self.samples[key]), reason)


def _rows(pack: Pack) -> Iterator[tuple[str, str, str, Tensor]]:
    """Key, type, right answer and the prompt's text of each sequence."""
    prompts = zip(pack.ids.split(pack.lengths), pack.kind.split(pack.lengths))
    texts = [ids[kind != Kind.VISION] for ids, kind in prompts]
    return zip(pack.keys, pack.types, pack.answers, texts)


def _grey(size: int, part: Part) -> Tensor:
    count = len(next(iter(part.values()))) if isinstance(part, Mapping) else len(part)
    return torch.full((count, 3, size, size), GREY, dtype=torch.uint8)
