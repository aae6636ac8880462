"""Host memory of a node: what its loaders hold at most, and whether it is there; said before a run reads anything."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

from timeviper.config import Recipe
from timeviper.config.curriculum import stretches
from timeviper.datamodules.mixture import UsedUp
from timeviper.datamodules.plan import Plan
from timeviper.datamodules.reader import item_bytes
from timeviper.datamodules.remote.storage import is_remote
from timeviper.datamodules.source import Source
from timeviper.errors import ConfigError, Problem
from timeviper.planning.host import free_bytes

PROCESS = 0.3e9  # bytes of a loader process beside what it reads: libraries, and decoders of Full HD
LOOKED_AT = 4  # steps of each stretch with the same settings

NAMES = {
    "index": "index",
    "step": "steps at hand",
    "ahead": "read ahead (data.prefetch_gb)",
    "pack": "packs being put together",
    "processes": "loader processes",
}


class Shared(NamedTuple):
    """Bytes that all ranks of a node have together."""

    index: float = 0.0
    """Of mapped files: what the plan reads of them, which should stay in memory."""
    shards: float = 0.0
    """Of all shards on a disk: with so much more for the system's cache, no later epoch reads it."""


NOTHING = Shared()


def index_needs(sources: Iterable[Source]) -> tuple[float, Shared]:
    """Bytes of the index that each rank holds, and what the ranks share. Sources of the same shards share these."""
    own, mapped, shards = 0.0, dict[str, int](), dict[str, int]()
    for source in sources:
        columns = source.shards
        own += source.own_bytes
        place = columns.beside or columns.location(0)
        if columns.is_mapped:
            mapped[place] = columns.nbytes - columns.arrays["sum"].nbytes
        if not is_remote(place):
            shards[place] = int(columns.arrays["shard_bytes"].sum())
    return own, Shared(float(sum(mapped.values())), float(sum(shards.values())))


def loader_needs(recipe: Recipe, plan: Plan, ranks: int) -> dict[str, float]:
    """Bytes that the loader of one of `ranks` holds, by the keys of `NAMES`, in the stretch of steps that needs most.

    Some steps of each stretch tell how large packs are: steps of a rank in the mean, and the largest pack.
    """
    found, own = [{"step": 0.0}], index_needs(plan.sources.values())[0]
    for start, count in stretches(recipe.train):
        sizes: list[float] = []
        try:
            for step in islice(plan.steps(start, begin=start), min(count, LOOKED_AT)):
                sizes += [sum(item_bytes(i, image_size(recipe)) for i in pack) for pack in step.packs]
        except UsedUp:
            pass  # what was drawn before counts
        if sizes:
            found.append(_needs(recipe, ranks, sizes))
    return {"index": own} | max(found, key=lambda needs: sum(needs.values()))


def image_size(recipe: Recipe) -> int:
    """Pixels a side of the frames in packs."""
    return max(tower.image_size for tower in recipe.model.towers.values())


def _needs(recipe: Recipe, ranks: int, packs: list[float]) -> dict[str, float]:
    data, largest = recipe.data, max(packs)
    step = {"step": max(sum(packs) / len(packs) * -(-data.packs_per_step // ranks), largest)}
    if not data.workers:
        return step
    return step | {"ahead": data.prefetch_gb * 1e9, "pack": largest, "processes": data.workers * PROCESS}


def node_line(needs: dict[str, float], local: int, offloaded: float = 0.0, shared: Shared = NOTHING) -> str:
    """For people: the sum over `local` ranks of a node, and what it consists of. offloaded: bytes of a rank."""
    parts = {NAMES[key]: local * n for key, n in needs.items()} | {"offloaded": local * offloaded}
    parts["index"] = parts.get("index", 0.0) + shared.index
    listed = ", ".join(f"{name} {n / 1e9:.2f}" for name, n in parts.items() if n)
    said = f"host memory of a node with {local} rank{'s' * (local > 1)}: {sum(parts.values()) / 1e9:.2f} GB ({listed})"
    return said + (
        f"; {shared.shards / 1e9:,.2f} GB more would hold all shards in the page cache" if shared.shards else ""
    )


def check_node_memory(
    recipe: Recipe,
    needs: dict[str, float],
    local: int,
    offloaded: float = 0.0,
    shared: Shared = NOTHING,
    free: float | None = None,
) -> None:
    """Raises ConfigError with the figures and what to lower where a node cannot hold what its `local` ranks need.

    free: bytes; None: asked of this machine.
    """
    free = free_bytes() if free is None else free
    if free is None or local * (sum(needs.values()) + offloaded) + shared.index <= free:
        return
    data, largest = recipe.data, max(needs, key=lambda name: needs[name])
    remedies = {
        "index": (
            "data.sources",
            [*data.sources],
            "`timeviper shards index` makes a file of each folder's index that all ranks of a node share.",
        ),
        "ahead": (
            "data.prefetch_gb",
            data.prefetch_gb,
            "Lower it: packs are then read in smaller parts, and less far ahead.",
        ),
        "processes": ("data.workers", data.workers, "Lower it: fewer processes read."),
    }
    packs = "Lower it, data.packs_per_step, or the frames of a sample; or take more nodes."
    key, value, advice = remedies.get(largest, ("data.tokens_per_pack", data.tokens_per_pack, packs))
    said = f"{node_line(needs, local, offloaded, shared)}; this one has {free / 1e9:.2f} GB free. {advice}"
    raise ConfigError(recipe.name, [Problem(key, value, said)])
