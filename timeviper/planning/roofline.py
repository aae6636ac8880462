"""The time of a step by roofline: arithmetic, memory traffic and communication, each at its stated efficiency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from timeviper.config import PARTS as TRAINABLE
from timeviper.config import Recipe
from timeviper.config.shape import PackShape
from timeviper.model.flops import Execution, executed_flops
from timeviper.model.gradients import Gradients
from timeviper.planning.activations import OFFLOADED, saved_activations
from timeviper.planning.hardware import Assumptions, Gpu
from timeviper.planning.mixer_activations import WIDE
from timeviper.planning.parameters import ShardedUnit

OPTIMIZER_TRAFFIC = 7 * WIDE  # bytes an element: AdamW reads weight, gradient and two moments and writes three of them
FORWARD, BACKWARD = 2, 4  # how often what a module would keep for its backward pass moves through memory


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step on one GPU."""

    parts: dict[str, float]
    """Of each part of the model: the longer of arithmetic and memory traffic, over all packs of the step."""
    optimizer: float
    offload: float
    """Offloaded weights and gradients, and the optimizer on the host; not hidden."""
    copies: float
    """Activations to the host and back; hidden behind the rest as far as that is longer."""
    communication: float
    """Gathering weights and reducing gradients; hidden behind the rest as far as that is longer."""

    @property
    def compute(self) -> float:
        return sum(self.parts.values()) + self.optimizer + self.offload

    @property
    def seconds(self) -> float:
        return max(self.compute, self.communication, self.copies)


def step_time(
    recipe: Recipe,
    units: list[ShardedUnit],
    packs: Sequence[PackShape],
    gpus: int,
    packs_per_gpu: int,
    gpu: Gpu,
    assume: Assumptions,
) -> StepTime:
    """The time of a step with `packs_per_gpu` packs a rank, each like the mean of `packs`."""
    parts: dict[str, float] = {}
    for shape in packs:
        for part, seconds in _pack_time(recipe, shape, gpu, assume).items():
            parts[part] = parts.get(part, 0.0) + seconds * packs_per_gpu / len(packs)
    shards = gpus // recipe.parallel.replicas
    elements = sum(unit.shard_elements(shards) for unit in units)
    here = not recipe.parallel.offload_params
    speed = gpu.bandwidth_gb_s * 1e9 * assume.bandwidth_efficiency if here else assume.host_memory_gb_s * 1e9
    offloaded = copied = 0.0
    if not here:  # shards go to the GPU for each gathering, gradients come back
        weights = sum(unit.shard_bytes(shards) for unit in units)
        reductions = packs_per_gpu if recipe.parallel.reduce_every_pack else 1
        offloaded += 2 * packs_per_gpu * weights + WIDE * elements * reductions
    if recipe.parallel.offload_activations:
        copied += 2 * packs_per_gpu * sum(_block_bytes(recipe, shape) for shape in packs) / len(packs)
    return StepTime(
        parts,
        optimizer=OPTIMIZER_TRAFFIC * elements / speed,
        offload=offloaded / (assume.host_gb_s * 1e9),
        copies=copied / (assume.host_gb_s * 1e9),
        communication=_communication(recipe, units, gpus, packs_per_gpu, gpu, assume),
    )


def _block_bytes(recipe: Recipe, shape: PackShape) -> float:
    """What blocks keep for their backward passes, which goes to the host if activations are offloaded."""
    execution = Execution.of(recipe.parallel)
    size = 2 if recipe.parallel.param_dtype == "bfloat16" else WIDE
    kept = saved_activations(recipe.model, shape, recipe.train.trainable, execution, size, recipe.train.objective)
    return sum(saved.kept for saved in kept if saved.name.startswith(OFFLOADED))


def _pack_time(recipe: Recipe, shape: PackShape, gpu: Gpu, assume: Assumptions) -> dict[str, float]:
    """Seconds of each part for one pack, forward and backward."""
    model, objective = recipe.model, recipe.train.objective
    narrow = recipe.parallel.param_dtype == "bfloat16"
    execution = Execution.of(recipe.parallel)
    flops = executed_flops(model, shape, recipe.train.trainable, execution, objective, recipe.train.distill > 0)
    # What every module would keep if all of it learned: a measure of what it reads and writes.
    everything = saved_activations(model, shape, TRAINABLE, Execution("cuda"), 2 if narrow else WIDE, objective)
    moved = dict.fromkeys(flops, 0.0)
    for saved in everything:
        moved[saved.part] += saved.kept
    bandwidth = gpu.bandwidth_gb_s * 1e9 * assume.bandwidth_efficiency
    seconds = {}
    for part, work in flops.items():
        peak = gpu.bf16_tflops if narrow and part != "scan" else gpu.fp32_tflops
        passes = FORWARD
        if work.recompute:
            passes += FORWARD
        if work.backward:
            passes += BACKWARD
        seconds[part] = max(work.total / (peak * 1e12 * assume.efficiency), moved[part] * passes / bandwidth)
    return seconds


def _communication(
    recipe: Recipe, units: list[ShardedUnit], gpus: int, packs: int, gpu: Gpu, assume: Assumptions
) -> float:
    """Seconds of one rank's collectives in a step, each a ring: (n - 1) / n of the bytes cross its link."""
    replicas, shards = recipe.parallel.replicas, gpus // recipe.parallel.replicas
    grads = Gradients.of(recipe.model, recipe.train.trainable)
    seconds = 0.0
    for unit in units:
        # The root stays gathered from the forward to the backward pass; a frozen tower has no backward pass.
        once = unit is units[-1] or (unit.name.startswith("towers.") and not grads.tower)
        gathered = unit.gathered_bytes * packs * (1 if once else 2)
        reduced = WIDE * unit.trained_elements * (packs if recipe.parallel.reduce_every_pack else 1)
        seconds += (gathered + reduced) * (shards - 1) / shards / _link(shards, gpu, assume)
        if replicas > 1:
            seconds += 2 * reduced / shards * (replicas - 1) / replicas / _link(gpus, gpu, assume)
    return seconds


def _link(ranks: int, gpu: Gpu, assume: Assumptions) -> float:
    """Bytes a second between neighbours of a ring of ranks: within a node, or the slower network."""
    within = ranks <= assume.gpus_per_node
    return (gpu.link_gb_s if within else min(gpu.link_gb_s, assume.network_gb_s)) * 1e9 * assume.bandwidth_efficiency
