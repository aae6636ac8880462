"""The packs of every phase of a stage: from the shard indexes where they can be read, else the longest samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from timeviper.config import FramesConfig, ModelConfig, Recipe
from timeviper.config.curriculum import phase_at, stretches, transv_at
from timeviper.config.shape import PackShape, mean_tokens
from timeviper.datamodules.build import build_plan
from timeviper.datamodules.chat import time_text_tokens
from timeviper.datamodules.plan import Plan, StepPlan
from timeviper.datamodules.plan_files import PlanFiles
from timeviper.planning.hardware import Assumptions
from timeviper.tokenizer import Tokenizer

Index = tuple[Plan | None, str]


@dataclass(frozen=True)
class PhasePacks:
    """A stretch of steps with the same settings, or with what held at its first step while TransV ramps."""

    name: str
    phase: str
    """The phase that it is a part of; empty: none."""
    start: int
    steps: int
    frames: FramesConfig
    weights: dict[str, float]
    model: ModelConfig
    """The recipe's, with what TransV keeps at the first step."""
    packs: tuple[PackShape, ...]
    """Packs like those that the phase reads; all of equal weight."""
    source: str
    """Where the packs come from."""


def phases_of(recipe: Recipe, assume: Assumptions, index: Index | None = None) -> list[PhasePacks]:
    """Every phase that has a step, in order. index: what `index_of` gave, if that is known.

    Raises ValueError if a sample of `max_frames` frames fits into no pack, where no index says how long samples are.
    """
    plan, reason = index or index_of(recipe)
    found: list[PhasePacks] = []
    for start, count in stretches(recipe.train):
        phase = phase_at(start, recipe.data, recipe.train.phases)
        model = replace(recipe.model, transv=transv_at(start, recipe.model.transv, recipe.train.phases))
        name = f"{phase.name} from step {start}" if found and phase.name == found[-1].phase else phase.name
        packs, source = (), "shard index"
        if plan is not None:
            steps = islice(plan.steps(start), min(assume.index_steps, count))
            packs = tuple(_real_packs(steps, assume))
        if not packs:
            packs = (longest_pack(replace(recipe, model=model), phase.frames.max_frames, name, assume),)
            source = f"full of the longest samples, with {assume.text_tokens} text tokens each; {reason}"
        found.append(PhasePacks(name, phase.name, start, count, phase.frames, phase.weights, model, packs, source))
    return found


def longest_pack(recipe: Recipe, max_frames: int, phase: str, assume: Assumptions) -> PackShape:
    """As many samples of `max_frames` frames as `data.tokens_per_pack` holds."""
    words = assume.text_tokens + time_text(recipe, (max_frames,))
    one = PackShape((max_frames,), (words,), 0)
    cost, limit = mean_tokens(recipe.model, one), recipe.data.tokens_per_pack
    count = int(limit // cost)
    if not count:
        where = f" in phase {phase!r}" if phase else ""
        raise ValueError(
            f"a sample of {max_frames:,} frames{where} costs {cost:,.0f} tokens (mean over the blocks), more than "
            f"data.tokens_per_pack = {limit:,}: no such sample would be trained on. Raise it to {cost:,.0f} or more, "
            "or lower max_frames."
        )
    labels = round(count * assume.text_tokens * assume.label_share)
    return PackShape((max_frames,) * count, (words,) * count, labels)


def time_text(recipe: Recipe, frames: Sequence[int]) -> int:
    """Tokens of text between the frames of a pack's videos; counted with the package's own tokenizer where the recipe's
    is not there yet."""
    try:
        tokenizer = Tokenizer.load(recipe.model.tokenizer)
    except (ValueError, OSError):
        tokenizer = Tokenizer.load()
    return time_text_tokens(tokenizer, frames, recipe.chat)


def index_of(recipe: Recipe) -> Index:
    """The data plan, or why there is none."""
    try:
        return build_plan(recipe, Tokenizer.load(recipe.model.tokenizer), PlanFiles(Path(recipe.run_dir))), ""
    except (ValueError, OSError) as error:
        return None, f"no shard index: {str(error).splitlines()[0]}"


def _real_packs(steps: Iterator[StepPlan], assume: Assumptions) -> Iterator[PackShape]:
    for step in steps:
        for items in step.packs:
            if not items:
                continue
            rows = [sequence for item in items for sequence in item.sequences]
            groups = tuple(row.groups for row in rows)
            text, frames = tuple(max(1, row.text) for row in rows), tuple(map(sum, groups))
            shared = sum(frames) - sum(item.read for item in items)
            labels = round(sum(text) * assume.label_share)
            yield PackShape(frames, text, labels, shared, PackShape.parted(groups))
