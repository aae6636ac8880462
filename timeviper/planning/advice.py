"""What would make a stage fit, tried one by one and then together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass

from torch import nn

from timeviper.config import BLOCK_TYPES, BLOCKS, LoraConfig, Recipe
from timeviper.errors import ConfigError
from timeviper.planning.hardware import Gpu
from timeviper.planning.stage import Stage, StagePlan
from timeviper.weights.export import meta_model

MOST_GPUS = 512
LORA_RANK = 16


@dataclass(frozen=True)
class Remedy:
    """A change and the memory that it leads to."""

    change: str
    peak_gb: float
    fits: bool
    hours: float
    remark: str = ""


def remedies(recipe: Recipe, plan: StagePlan) -> list[Remedy]:
    """Changes that were tried on a stage that does not fit, those that help; the cheapest to make come first."""
    found, model = [], meta_model(recipe)
    for change, remark, changed, gpus in _candidates(recipe, plan, model):
        same = model if changed.model == recipe.model else None  # building one takes as long as all the rest
        try:
            new = Stage(changed, plan.assumptions, same).on(gpus, plan.gpu)
        except (ConfigError, ValueError):  # a pack that the longest sample does not fit into
            continue
        if new.peak_gb < plan.peak_gb:
            found.append(Remedy(change, new.peak_gb, new.fits, new.hours, remark))
    return found


def _candidates(recipe: Recipe, plan: StagePlan, model: nn.Module) -> Iterator[tuple[str, str, Recipe, int]]:
    """(change, remark, changed recipe, GPUs); all but the first are made on top of full checkpointing."""
    gpus, all_blocks = plan.gpus, frozenset(BLOCK_TYPES)
    checkpointed = deepcopy(recipe)
    checkpointed.parallel.activation_checkpointing = "all"
    prefix = ""
    if recipe.parallel.checkpointed != all_blocks:
        prefix = "parallel.activation_checkpointing=all "
        yield prefix.strip(), "blocks are computed twice", checkpointed, gpus
    if plan.packs_per_gpu > 1 and not recipe.parallel.reduce_every_pack:
        reduced = deepcopy(checkpointed)
        reduced.parallel.reduce_every_pack = True
        yield f"{prefix}parallel.reduce_every_pack=true", "no whole gradients are held between packs", reduced, gpus
    if plan.packs_per_gpu > 1:
        single = deepcopy(checkpointed)
        single.data.packs_per_step = gpus
        remark = f"{plan.packs_per_gpu} times fewer samples a step; no gradients are held between packs"
        yield f"{prefix}data.packs_per_step={gpus}", remark, single, gpus
    for divisor in (2, 4):
        smaller = deepcopy(checkpointed)
        smaller.data.tokens_per_pack //= divisor
        smaller.data.packs_per_step *= divisor
        change = (
            f"data.tokens_per_pack={smaller.data.tokens_per_pack} data.packs_per_step={smaller.data.packs_per_step}"
        )
        yield prefix + change, "the same tokens a step", smaller, gpus
    for setting, remark in (
        ("offload_activations", "what blocks keep waits on the host"),
        ("offload_params", "weights, gradients and AdamW on the host"),
    ):
        offloaded = deepcopy(checkpointed)
        setattr(offloaded.parallel, setting, True)
        if not getattr(recipe.parallel, setting):
            yield f"{prefix}parallel.{setting}=true", remark, offloaded, gpus
    if "decoder" in recipe.train.trainable and not recipe.model.lora.rank and recipe.train.objective == "answer":
        adapted = deepcopy(checkpointed)
        kinds = [block.name for letter, block in BLOCKS.items() if letter in recipe.model.decoder.layout]
        adapted.model.lora = LoraConfig(rank=LORA_RANK, targets=kinds)
        change = f"model.lora.rank={LORA_RANK} model.lora.targets=[{','.join(kinds)}]"
        yield prefix + change, "adapters on a frozen decoder", adapted, gpus
    if (more := fewest_gpus(Stage(checkpointed, plan.assumptions, model), plan.gpu, above=gpus)) is not None:
        yield f"{prefix}--gpus {more}", "", checkpointed, more


def fewest_gpus(stage: Stage, gpu: Gpu, above: int = 0) -> int | None:
    """The fewest GPUs, a power of two, on which the stage fits with its batch; None: on none of up to 512."""
    gpus = 1
    while gpus <= MOST_GPUS:
        with suppress(ConfigError):  # packs that do not divide among so many
            if gpus > above and stage.peak_gb(gpus) <= gpu.memory_gb:
                return gpus
        gpus *= 2
    return None
