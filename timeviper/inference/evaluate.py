"""Held-out questions, answered by greedy decoding and scored beside three baselines.

blind: the same model with every frame replaced by mid-grey; pure_drop: the same schedule, but dropped tokens
are lost instead of transferred; chance: the right answer of another question of the same type.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from timeviper.config import Recipe
from timeviper.console import ProgressLine
from timeviper.datamodules.build import class_datasets, cost_model, load_sources, pack_format
from timeviper.datamodules.loader import PlanSampler, make_loader, plan_bytes
from timeviper.datamodules.plan import held_out
from timeviper.datamodules.reader import PackReader
from timeviper.datamodules.remote.block_cache import BlockCache
from timeviper.features.check import check_features
from timeviper.inference.eval_report import Report, write_answers, write_report
from timeviper.inference.generate import generate_pack
from timeviper.inference.metrics import Answered, chance, score
from timeviper.kernels import dispatch
from timeviper.model.viper import TimeViper
from timeviper.pack import Kind, Pack
from timeviper.tokenizer import Tokenizer
from timeviper.weights.export import find_export, load_export, pick_device
from timeviper.weights.lineage import question_digest, read_lineage

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

    def __init__(self, model: TimeViper, recipe: Recipe, tokenizer: Tokenizer) -> None:
        self.model, self.recipe, self.tokenizer = model, recipe, tokenizer
        sources = load_sources(recipe.data.val)
        if not sources:
            raise ValueError("data.val names no held-out source; add one, such as data.val.mine.shards=FOLDER")
        check_features(recipe, {}, sources, model.towers)
        self.plans = held_out(sources, recipe.data, cost_model(recipe, tokenizer), recipe.eval.samples, 1)
        cache = BlockCache.of(recipe.data)
        classes = class_datasets(recipe.data.val)
        self.reader = PackReader(tokenizer, pack_format(recipe), classes, prompt_only=True, cache=cache)
        units = (item.unit for plan in self.plans for pack in plan.packs for item in pack)
        self.samples = {unit.key: question_digest(unit) for unit in units}
        self.skipped: dict[str, str] = {}  # why a sample could not be read, by its key

    def answers(self, variant: Variant, *, quiet: bool = False) -> list[Answered]:
        """Greedy answers to every held-out question, in order. All variants read, and skip, the same samples."""
        data = self.recipe.data
        loader = make_loader(
            self.reader,
            PlanSampler(lambda: self.plans, 0, 1),
            data.workers,
            data.prefetch,
            False,
            step_bytes=max(plan_bytes(plan, self.reader.form.image_size) for plan in self.plans),
            prefetch_gb=data.prefetch_gb,
        )
        found: list[Answered] = []
        with torch.inference_mode(), self.model.decoder.transfer(variant.transfer), ProgressLine(sys.stderr) as line:
            for number, batch in enumerate(loader, 1):
                self.skipped |= {sample.key: sample.reason for sample in batch.skipped}
                for pack in batch.packs:
                    found += self._answer(pack, variant.blind)
                if not quiet:
                    line.count(number, len(self.plans), f"packs, {variant.name}")
        return found

    def _answer(self, pack: Pack, blind: bool) -> list[Answered]:
        if not pack.keys:
            return []
        if blind:
            grey = pack.frames.new_full((pack.num_frames, *pack.frames.shape[1:]), GREY)
            pack = replace(pack, frames=grey, features={}, from_features=[])
        written = generate_pack(
            self.model,
            pack.to(next(self.model.parameters()).device),
            max_new_tokens=self.recipe.eval.max_new_tokens,
            stop_ids=self.tokenizer.stop_ids,
        )
        texts = [self.tokenizer.decode(ids.tolist()) for ids in written]
        prompts = zip(pack.ids.split(pack.lengths), pack.kind.split(pack.lengths))
        asked = [self.tokenizer.decode(ids[kind != Kind.VISION].tolist()) for ids, kind in prompts]
        samples = [self.samples[key] for key in pack.keys]
        return [Answered(*row) for row in zip(pack.keys, pack.types, texts, pack.answers, asked, samples)]


def evaluate(run: str | Path, overrides: Sequence[str] = (), *, quiet: bool = False) -> Report:
    """Answer the held-out questions of a finished stage; write `eval.json` and `answers.jsonl` into its run folder.

    run: a run folder or an export. overrides: settings of the evaluation that differ from the stage's recipe, as
    `key=value`. quiet: without progress on stderr.
    Raises FileNotFoundError when there is no export, ValueError for unusable data.
    """
    export = find_export(run)
    model, recipe, tokenizer = load_export(export, overrides)
    dispatch.configure(**vars(recipe.model.kernel))
    evaluation = Evaluation(model.to(pick_device()), recipe, tokenizer)
    ours = evaluation.answers(WHOLE, quiet=quiet)
    blind = score(evaluation.answers(BLIND, quiet=quiet))
    has_transfer = any(stage.transfer for stage in recipe.model.transv.stages.values())
    pure_drop = score(evaluation.answers(PURE_DROP, quiet=quiet)) if has_transfer else None
    lineage = read_lineage(export)
    report = Report(
        scores=score(ours),
        blind=blind,
        chance=chance(ours),
        pure_drop=pure_drop,
        n={"overall": len(ours)} | dict(sorted(Counter(a.type for a in ours).items())),
        skipped=[f"{key}: {reason}" for key, reason in evaluation.skipped.items()],
        checkpoint=f"{export}@{lineage['step']}",
        weights=lineage.get("weights"),
        recipe=recipe.name,
        overrides=list(overrides),
        answers=write_answers(export, ours),
    )
    write_report(export, report)
    return report
