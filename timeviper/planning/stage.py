"""What a stage needs before it is paid for: tokens, arithmetic, memory and hours of every phase of its curriculum."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from timeviper.config import Recipe
from timeviper.config.curriculum import trainable_at
from timeviper.config.shape import PackShape, mean_tokens, segment_shapes
from timeviper.datamodules.turns import turns_note
from timeviper.model.flops import PARTS, Execution, Flops, executed_flops, model_flops
from timeviper.model.flops import total as total_flops
from timeviper.planning.hardware import Assumptions, Gpu
from timeviper.planning.host import host_needs
from timeviper.planning.memory import PeakMemory, peak_memory
from timeviper.planning.node import index_needs, loader_needs, node_line
from timeviper.planning.parameters import ParameterCount, count_parameters, sharded_parameters
from timeviper.planning.phase_packs import PhasePacks, index_of, longest_pack, phases_of, time_text
from timeviper.planning.roofline import StepTime, step_time
from timeviper.training.launch import check_ranks
from timeviper.weights.export import meta_model


@dataclass(frozen=True)
class PhasePlan:
    """One phase. Counts, tokens and FLOPs are of a pack, the mean over the phase's packs."""

    name: str
    start: int
    steps: int
    max_frames: int
    fps: float
    weights: dict[str, float]
    packs_from: str
    frames: float
    samples: float
    tokens: dict[str, float]
    """At the decoder's input and behind each stage of TransV; `mean` over the blocks."""
    model_flops: dict[str, Flops]
    executed_flops: dict[str, Flops]
    six_nd: float
    """6 N D: N the parameters of the blocks, D the mean tokens; what the blocks' maps would cost if all learned."""
    memory: PeakMemory
    """Of the pack that needs most."""
    time: StepTime
    mfu: float
    """Model FLOPs a second as a share of the GPU's peak."""

    @property
    def hours(self) -> float:
        return self.steps * self.time.seconds / 3600


@dataclass(frozen=True)
class StagePlan:
    """A stage on `gpus` GPUs of one kind."""

    recipe: str
    gpus: int
    gpu: Gpu
    packs_per_gpu: int
    parameters: dict[str, ParameterCount]
    phases: tuple[PhasePlan, ...]
    assumptions: Assumptions
    note: str = ""
    """What the data lose by the settings; empty: nothing."""
    host: str = ""
    """Host memory of a node, as far as an index tells it."""

    @property
    def hours(self) -> float:
        return sum(phase.hours for phase in self.phases)

    @property
    def peak_gb(self) -> float:
        """Of the fullest phase, with the reserve and fragmentation."""
        return self.assumptions.with_reserve(max(phase.memory.peak.bytes for phase in self.phases))

    @property
    def fits(self) -> bool:
        return self.peak_gb <= self.gpu.memory_gb

    def as_dict(self) -> dict[str, Any]:
        """Everything, for `--json`."""
        data = asdict(self)
        for phase, plan in zip(data["phases"], self.phases):
            phase |= {"hours": plan.hours, "peak_bytes": plan.memory.peak.bytes, "step_s": plan.time.seconds}
        return data | {"hours": self.hours, "peak_gb": self.peak_gb, "fits": self.fits}


class Stage:
    """A recipe, looked at once: its model, sharding plan and packs, which do not depend on the GPUs."""

    def __init__(self, recipe: Recipe, assume: Assumptions | None = None, model: nn.Module | None = None) -> None:
        """Reads shard indexes where there are any, and nothing else. `model`: the stage's, if it is built already.

        Raises ValueError if samples of `max_frames` fit into no pack.
        """
        self.recipe, self.assume = recipe, assume or Assumptions()
        model = model or meta_model(recipe)
        self.units = sharded_parameters(model, recipe.parallel)
        self.counts = count_parameters(model)
        blocks = (p.numel() for name, p in model.named_parameters() if name.startswith("decoder.blocks."))
        self.block_parameters = sum(blocks)
        index = index_of(recipe)
        self.phases = phases_of(recipe, self.assume, index)
        self.note = turns_note(recipe, index[0].sources) if index[0] else ""
        self.order = index[0]

    def on(self, gpus: int, gpu: Gpu) -> StagePlan:
        """Every phase on some GPUs. Raises ConfigError as `check_ranks` does."""
        check_ranks(self.recipe, gpus, "GPUs")
        phases = tuple(_plan_phase(self, phase, gpus, gpu) for phase in self.phases)
        per_gpu = self.recipe.data.packs_per_step // gpus
        host = self._host(gpus)
        return StagePlan(self.recipe.name, gpus, gpu, per_gpu, self.counts, phases, self.assume, self.note, host)

    def _host(self, gpus: int) -> str:
        if self.order is None:
            return ""
        offloaded = sum(host_needs(self.recipe, gpus, "cuda").values())
        local = min(gpus, self.assume.gpus_per_node)
        _, shared = index_needs(self.order.sources.values())
        return node_line(loader_needs(self.recipe, self.order, gpus), local, offloaded, shared)

    def memory(self, phase: PhasePacks, gpus: int) -> PeakMemory:
        """Of the pack of a phase that needs most, its longest samples' among them: a few steps of an index may not
        show it."""
        packs = dict.fromkeys(phase.packs)
        recipe = replace(self.recipe, model=phase.model)
        with suppress(ValueError):  # samples that long would be left out, and an index knows of no trouble with that
            packs[longest_pack(recipe, phase.frames.max_frames, phase.name, self.assume)] = None
        per_gpu = recipe.data.packs_per_step // gpus
        found = (peak_memory(recipe, self.units, pack, gpus, per_gpu) for pack in packs)
        return max(found, key=lambda m: m.peak.bytes)

    def peak_gb(self, gpus: int) -> float:
        """Of the fullest phase, with the reserve and fragmentation. Raises ConfigError as `check_ranks` does."""
        check_ranks(self.recipe, gpus, "GPUs")
        return self.assume.with_reserve(max(self.memory(phase, gpus).peak.bytes for phase in self.phases))


def plan_stage(recipe: Recipe, gpus: int, gpu: Gpu, assume: Assumptions | None = None) -> StagePlan:
    """Plan every phase of a recipe.

    Raises ConfigError if the packs of a step do not divide among the GPUs or the GPUs among the replicas, ValueError
    if samples of `max_frames` fit into no pack.
    """
    check_ranks(recipe, gpus, "GPUs")
    return Stage(recipe, assume).on(gpus, gpu)


def _plan_phase(stage: Stage, phase: PhasePacks, gpus: int, gpu: Gpu) -> PhasePlan:
    recipe, units, assume = replace(stage.recipe, model=phase.model), stage.units, stage.assume
    model, train, packs = recipe.model, recipe.train, phase.packs
    per_gpu = recipe.data.packs_per_step // gpus
    execution = Execution.of(recipe.parallel)
    learning = trainable_at(phase.start, train)  # what stands still is computed, and is not wanted
    what = (train.objective, train.distill > 0)
    wanted = _mean([model_flops(model, s, learning, *what) for s in packs])
    done = _mean([executed_flops(model, s, train.trainable, execution, *what) for s in packs])
    time = step_time(recipe, units, packs, gpus, per_gpu, gpu, assume)
    n = len(packs)
    mean = sum(mean_tokens(model, s) for s in packs) / n
    return PhasePlan(
        name=phase.name or "whole stage",
        start=phase.start,
        steps=phase.steps,
        max_frames=phase.frames.max_frames,
        fps=phase.frames.fps,
        weights=phase.weights,
        packs_from=phase.source,
        frames=sum(s.num_frames for s in packs) / n,
        samples=sum(len(s.frames) for s in packs) / n,
        tokens={**_tokens(recipe, packs), "mean": mean},
        model_flops=wanted,
        executed_flops=done,
        six_nd=6.0 * stage.block_parameters * mean if train.objective == "answer" else 0.0,
        memory=stage.memory(phase, gpus),
        time=time,
        mfu=total_flops(wanted).total * per_gpu / time.seconds / (gpu.bf16_tflops * 1e12),
    )


def _tokens(recipe: Recipe, packs: tuple[PackShape, ...]) -> dict[str, float]:
    tokens: dict[str, float] = {}
    for shape in packs:
        for segment in segment_shapes(recipe.model, shape):
            stage = segment.segment.stage
            name = "input" if stage is None else f"after {segment.segment.name}, from block {stage.layer}"
            tokens[name] = tokens.get(name, 0.0) + segment.num_tokens / len(packs)
    if recipe.chat.time == "frames" and tokens:
        between = sum(time_text(recipe, shape.frames) for shape in packs) / len(packs)
        tokens["time text, never dropped"] = between
    return tokens


def _mean(counts: list[dict[str, Flops]]) -> dict[str, Flops]:
    n = len(counts)
    sums = {part: sum((c[part] for c in counts), Flops()) for part in PARTS}
    return {part: Flops(f.forward / n, f.backward / n, f.recompute / n) for part, f in sums.items()}
