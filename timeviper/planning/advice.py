"""What would make a stage fit, tried one by one and then together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass

from timeviper.config import BLOCK_TYPES, BLOCKS, LoraConfig, Recipe
from timeviper.errors import ConfigError
from timeviper.planning.hardware import Gpu
from timeviper.planning.stage import Stage, StagePlan
from timeviper.weights.export import meta_model

MOST_GPUS = 512
LORA_RANK = 16
LAST = "offload_params"


@dataclass(frozen=True)
class Remedy:
    """A change and the memory that it leads to."""

    change: str
    peak_gb: float
    fits: bool
    hours: float
    remark: str = ""


@dataclass(frozen=True)
class Change:
    """One setting that costs less memory; those of one kind exclude each other."""

    kind: str
    text: str
    remark: str
    apply: Callable[[Recipe], None]


def remedies(recipe: Recipe, plan: StagePlan) -> list[Remedy]:
    """Changes that were tried on a stage that does not fit, those that help; the cheapest to make come first.

    Where none fits alone on these GPUs, or only with AdamW on the host, which is slow, several are tried together.
    """
    trial = _Trial(recipe, plan)
    checkpointed, prefix = deepcopy(recipe), ""
    if recipe.parallel.checkpointed != frozenset(BLOCK_TYPES):
        checkpointed.parallel.activation_checkpointing = "all"
        prefix = "parallel.activation_checkpointing=all"
        trial.add(prefix, "blocks are computed twice", checkpointed)
    singles: list[tuple[float, Change]] = []
    for change in _changes(recipe, plan):
        if remedy := trial.add(f"{prefix} {change.text}".strip(), change.remark, _changed(checkpointed, [change])):
            singles.append((remedy.peak_gb, change))
    if not any(remedy.fits for remedy in trial.found if LAST not in remedy.change):
        singles.sort(key=lambda single: (single[1].kind == LAST, single[0]))
        _together(trial, checkpointed, prefix, [change for _, change in singles])
    if (more := fewest_gpus(Stage(checkpointed, plan.assumptions, trial.model), plan.gpu, above=plan.gpus)) is not None:
        trial.add(f"{prefix} --gpus {more}".strip(), "", checkpointed, more)
    return trial.found


class _Trial:
    """Plans changed recipes, and notes what helps."""

    def __init__(self, recipe: Recipe, plan: StagePlan) -> None:
        self.recipe, self.plan, self.model = recipe, plan, meta_model(recipe)
        self.found: list[Remedy] = []

    def of(self, change: str, remark: str, changed: Recipe, gpus: int | None = None) -> Remedy | None:
        """What a change leads to; None: it cannot be, or does not help."""
        same = self.model if changed.model == self.recipe.model else None  # building one takes as long as all the rest
        try:
            new = Stage(changed, self.plan.assumptions, same).on(gpus or self.plan.gpus, self.plan.gpu)
        except (ConfigError, ValueError):  # a pack that the longest sample does not fit into
            return None
        return Remedy(change, new.peak_gb, new.fits, new.hours, remark) if new.peak_gb < self.plan.peak_gb else None

    def add(self, change: str, remark: str, changed: Recipe, gpus: int | None = None) -> Remedy | None:
        if remedy := self.of(change, remark, changed, gpus):
            self.found.append(remedy)
        return remedy


def _together(trial: _Trial, checkpointed: Recipe, prefix: str, singles: list[Change]) -> None:
    """The best of each kind, one more at a time until they fit; then those are left out that it fits without."""

    def tried(changes: list[Change]) -> Remedy | None:
        text = " ".join([prefix, *(c.text for c in changes)]).strip()
        return trial.of(text, "; ".join(c.remark for c in changes), _changed(checkpointed, changes))

    chosen: list[Change] = []
    best: Remedy | None = None
    for change in singles:
        if change.kind in (c.kind for c in chosen):
            continue
        remedy = tried([*chosen, change])
        if remedy and (best is None or remedy.peak_gb < best.peak_gb):
            chosen, best = [*chosen, change], remedy
        if best and best.fits:
            break
    for change in chosen[:-1] if best and best.fits else ():
        fewer = [c for c in chosen if c is not change]
        if (remedy := tried(fewer)) and remedy.fits:
            chosen, best = fewer, remedy
    if best and len(chosen) > 1 and (best.fits or not any(remedy.fits for remedy in trial.found)):
        trial.found.append(best)


def _changed(recipe: Recipe, changes: Sequence[Change]) -> Recipe:
    changed = deepcopy(recipe)
    for change in changes:
        change.apply(changed)
    return changed


def _changes(recipe: Recipe, plan: StagePlan) -> Iterator[Change]:
    gpus, data, parallel = plan.gpus, recipe.data, recipe.parallel

    def set_parallel(name: str) -> Callable[[Recipe], None]:
        return lambda changed: setattr(changed.parallel, name, True)

    if plan.packs_per_gpu > 1 and not parallel.reduce_every_pack:
        remark = "no whole gradients are held between packs"
        yield Change("reduce", "parallel.reduce_every_pack=true", remark, set_parallel("reduce_every_pack"))
    if plan.packs_per_gpu > 1:
        remark = f"{plan.packs_per_gpu} times fewer samples a step; no gradients are held between packs"
        text = f"data.packs_per_step={gpus}"
        yield Change("packs", text, remark, lambda changed: setattr(changed.data, "packs_per_step", gpus))
    for divisor in (2, 4):
        tokens, packs = data.tokens_per_pack // divisor, data.packs_per_step * divisor

        def smaller(changed: Recipe, tokens: int = tokens, packs: int = packs) -> None:
            changed.data.tokens_per_pack, changed.data.packs_per_step = tokens, packs

        text = f"data.tokens_per_pack={tokens} data.packs_per_step={packs}"
        yield Change("packs", text, "the same tokens a step", smaller)
    for setting, remark in (
        ("offload_activations", "what blocks keep waits on the host"),
        (LAST, "weights, gradients and AdamW on the host"),
    ):
        if not getattr(parallel, setting):
            yield Change(setting, f"parallel.{setting}=true", remark, set_parallel(setting))
    if parallel.frozen_dtype == "float32":
        remark = "frozen weights are rounded, also in the export"
        text = "parallel.frozen_dtype=bfloat16"
        yield Change("frozen", text, remark, lambda changed: setattr(changed.parallel, "frozen_dtype", "bfloat16"))
    if "decoder" in recipe.train.trainable and not recipe.model.lora.rank and recipe.train.objective == "answer":
        kinds = [block.name for letter, block in BLOCKS.items() if letter in recipe.model.decoder.layout]
        text = f"model.lora.rank={LORA_RANK} model.lora.targets=[{','.join(kinds)}]"

        def adapted(changed: Recipe) -> None:
            changed.model.lora = LoraConfig(rank=LORA_RANK, targets=kinds)

        yield Change("lora", text, "adapters on a frozen decoder", adapted)


def fewest_gpus(stage: Stage, gpu: Gpu, above: int = 0) -> int | None:
    """The fewest GPUs, a power of two, on which the stage fits with its batch; None: on none of up to 512."""
    gpus = 1
    while gpus <= MOST_GPUS:
        with suppress(ConfigError):  # packs that do not divide among so many
            if gpus > above and stage.peak_gb(gpus) <= gpu.memory_gb:
                return gpus
        gpus *= 2
    return None
