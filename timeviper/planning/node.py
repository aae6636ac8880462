"""Host memory of a node: what its loaders hold at most, and whether it is there; said before a run reads anything."""

from __future__ import annotations

from itertools import islice

from timeviper.config import Recipe
from timeviper.config.curriculum import stretches
from timeviper.datamodules.mixture import UsedUp
from timeviper.datamodules.plan import Plan
from timeviper.datamodules.reader import item_bytes
from timeviper.errors import ConfigError, Problem
from timeviper.planning.host import free_bytes

PROCESS = 0.3e9  # bytes of a loader process beside what it reads: libraries, and decoders of Full HD
LOOKED_AT = 4  # steps of each stretch with the same settings

NAMES = {
    "step": "steps at hand",
    "ahead": "read ahead (data.prefetch_gb)",
    "pack": "packs being put together",
    "processes": "loader processes",
}


def loader_needs(recipe: Recipe, plan: Plan, ranks: int) -> dict[str, float]:
    """Bytes that the loader of one of `ranks` holds, by the keys of `NAMES`, in the stretch of steps that needs most.

    Some steps of each stretch tell how large packs are: steps of a rank in the mean, and the largest pack.
    """
    found = [{"step": 0.0}]
    for start, count in stretches(recipe.train):
        sizes: list[float] = []
        try:
            for step in islice(plan.steps(start, begin=start), min(count, LOOKED_AT)):
                sizes += [sum(item_bytes(i, image_size(recipe)) for i in pack) for pack in step.packs]
        except UsedUp:
            pass  # what was drawn before counts
        if sizes:
            found.append(_needs(recipe, ranks, sizes))
    return max(found, key=lambda needs: sum(needs.values()))


def image_size(recipe: Recipe) -> int:
    """Pixels a side of the frames in packs."""
    return max(tower.image_size for tower in recipe.model.towers.values())


def _needs(recipe: Recipe, ranks: int, packs: list[float]) -> dict[str, float]:
    data, largest = recipe.data, max(packs)
    step = {"step": max(sum(packs) / len(packs) * -(-data.packs_per_step // ranks), largest)}
    if not data.workers:
        return step
    return step | {"ahead": data.prefetch_gb * 1e9, "pack": largest, "processes": data.workers * PROCESS}


def node_line(needs: dict[str, float], local: int, offloaded: float = 0.0) -> str:
    """For people: the sum over `local` ranks of a node, and what it consists of. offloaded: bytes of a rank."""
    parts = [(NAMES[key], n) for key, n in needs.items() if n] + ([("offloaded", offloaded)] if offloaded else [])
    total = sum(n for _, n in parts)
    listed = ", ".join(f"{name} {local * n / 1e9:.2f}" for name, n in parts)
    return f"host memory of a node with {local} rank{'s' * (local > 1)}: {local * total / 1e9:.2f} GB ({listed})"


def check_node_memory(
    recipe: Recipe, needs: dict[str, float], local: int, offloaded: float = 0.0, free: float | None = None
) -> None:
    """Raises ConfigError with the figures and what to lower where a node cannot hold what its `local` ranks need.

    free: bytes; None: asked of this machine.
    """
    free = free_bytes() if free is None else free
    if free is None or local * (sum(needs.values()) + offloaded) <= free:
        return
    remedies = {
        "ahead": ("data.prefetch_gb", "Lower it: packs are then read in smaller parts, and less far ahead."),
        "processes": ("data.workers", "Lower it: fewer processes read."),
    }
    largest = max(needs, key=lambda name: needs[name])
    other = ("data.tokens_per_pack", "Lower it, data.packs_per_step, or the frames of a sample; or take more nodes.")
    key, advice = remedies.get(largest, other)
    said = f"{node_line(needs, local, offloaded)}, and this one has {free / 1e9:.2f} GB free. {advice}"
    value = recipe.data.prefetch_gb if largest == "ahead" else recipe.data.workers
    value = value if largest in remedies else recipe.data.tokens_per_pack
    raise ConfigError(recipe.name, [Problem(key, value, said)])
