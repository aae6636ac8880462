"""Host memory that offloading takes, and whether it is there: said before a run starts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from math import ceil, log2
from pathlib import Path
from typing import Literal

from timeviper.config import Recipe
from timeviper.config.shape import PackShape
from timeviper.errors import ConfigError, Problem
from timeviper.model.flops import Execution
from timeviper.offload import SMALL
from timeviper.planning.activations import OFFLOADED, WIDE, saved_activations
from timeviper.planning.hardware import Assumptions
from timeviper.planning.parameters import sharded_parameters
from timeviper.planning.phase_packs import longest_pack, phases_of
from timeviper.weights.export import meta_model


def offloaded_bytes(recipe: Recipe, shape: PackShape, device: Literal["cpu", "cuda"]) -> float:
    """What the blocks of one pack keep on the host. A rank has one pack at a time.

    Pinned memory is given out in powers of two: a block input of 1.6 GB takes 2.1.
    """
    a = 2 if recipe.parallel.param_dtype == "bfloat16" else WIDE
    execution = Execution.of(recipe.parallel, device)
    saved = saved_activations(recipe.model, shape, recipe.train.trainable, execution, a, recipe.train.objective)
    kept = [s.kept for s in saved if s.name.startswith(OFFLOADED) and s.kept >= SMALL]
    return float(sum(2.0 ** ceil(log2(n)) if device == "cuda" else n for n in kept))


def host_needs(recipe: Recipe, ranks: int, device: Literal["cpu", "cuda"]) -> dict[str, float]:
    """Bytes of host memory that a rank needs for each setting that offloads: the most of all phases.

    Without an index of the shards, and with samples too long for a pack, nothing is known of the packs: 0.
    """
    needs: dict[str, float] = {}
    if recipe.parallel.offload_activations:
        needs["offload_activations"] = max((offloaded_bytes(r, s, device) for r, s in _packs(recipe)), default=0.0)
    if recipe.parallel.offload_params:
        units, shards = sharded_parameters(meta_model(recipe), recipe.parallel), ranks // recipe.parallel.replicas
        # Weights; gradients and AdamW's two moments.
        needs["offload_params"] = float(sum(u.shard_bytes(shards) + 3 * WIDE * u.shard_elements(shards) for u in units))
    return needs


def _packs(recipe: Recipe) -> Iterator[tuple[Recipe, PackShape]]:
    """Packs of every phase, and one full of its longest samples, with the recipe as the phase has it."""
    assume = Assumptions()
    with suppress(ValueError):
        for phase in phases_of(recipe, assume):
            at = replace(recipe, model=phase.model)
            yield from ((at, shape) for shape in dict.fromkeys(phase.packs))
            with suppress(ValueError):
                yield at, longest_pack(at, phase.frames.max_frames, phase.name, assume)


def check_host_memory(
    recipe: Recipe, local: int, nodes: int, device: Literal["cpu", "cuda"], free: float | None = None
) -> None:
    """Raises ConfigError with the figures unless a machine with `local` of the ranks has room for what they offload.

    free: bytes; None: asked of this machine.
    """
    if not (recipe.parallel.offload_activations or recipe.parallel.offload_params):
        return
    free = free_bytes() if free is None else free
    needs = host_needs(recipe, local * nodes, device)
    if free is None or local * sum(needs.values()) <= free:
        return
    largest = max(needs, key=lambda name: needs[name])
    each = " and ".join(f"{_gb(n)} for parallel.{name}" for name, n in needs.items())
    advice = {
        "offload_activations": "Lower data.tokens_per_pack, checkpoint more types of blocks "
        "(parallel.activation_checkpointing=all), take more machines with fewer ranks on each, or set it to false.",
        "offload_params": "Take more ranks on more machines, train adapters (model.lora.rank), or set it to false.",
    }
    message = (
        f"The host has {_gb(free)} of memory free, and {local} rank{'s' if local > 1 else ''} on it would need "
        f"{_gb(local * sum(needs.values()))}: each {each}. {advice[largest]}"
    )
    raise ConfigError(recipe.name, [Problem(f"parallel.{largest}", True, message)])


def _gb(n: float) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e8 else f"{n / 1e6:.1f} MB"


def free_bytes(root: Path = Path("/")) -> float | None:
    """Memory that processes may still take: the system's, or less where a control group sets a limit. None: unknown."""
    with suppress(OSError, StopIteration, ValueError):
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
        with suppress(OSError, ValueError):  # no group, or one without a limit, which says "max"
            limit, used = (int((root / f"sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
            free = min(free, float(max(limit - used, 0)))
        return free
    return None
