"""Whether a recipe can be dealt to the ranks of a launch; said before anything is built."""

from __future__ import annotations

import os
from dataclasses import replace

from timeviper.config import Recipe
from timeviper.config.checks.recipe import problems
from timeviper.errors import ConfigError, Problem


def ranks() -> tuple[int, int]:
    """(ranks a node, nodes) as torchrun tells its processes; (1, 1) without it."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return local, int(os.environ.get("WORLD_SIZE", 1)) // local


def check_ranks(recipe: Recipe, ranks: int, called: str = "ranks") -> None:
    """Raises ConfigError, with settings that would do, unless packs and replicas can be dealt to so many ranks."""
    found: list[Problem] = []
    packs, replicas = recipe.data.packs_per_step, recipe.parallel.replicas
    if packs % ranks:
        message = f"must be a multiple of the {ranks} {called}, so that all have as many packs a step."
        message += f" {_instead(recipe, ranks)}"
        found.append(Problem("data.packs_per_step", packs, message))
    if ranks % replicas:
        fitting = ", ".join(str(n) for n in range(1, ranks + 1) if ranks % n == 0)
        message = f"must divide the {ranks} {called}: each replica is sharded over equally many. Set one of {fitting}."
        found.append(Problem("parallel.replicas", replicas, message))
    if found:
        raise ConfigError(recipe.name, found)


def _instead(recipe: Recipe, ranks: int) -> str:
    """The next multiple; with smaller packs, too, where those hold the longest videos."""
    data = recipe.data
    packs = -(-data.packs_per_step // ranks) * ranks
    tokens = data.packs_per_step * data.tokens_per_pack // packs
    smaller = replace(recipe, data=replace(data, packs_per_step=packs, tokens_per_pack=tokens))
    more = f"data.packs_per_step={packs} takes {packs / data.packs_per_step:g} times as many samples a step"
    if next(problems(smaller), None):
        return f"Set data.packs_per_step={packs}: {more.partition(' ')[2]}."
    same = f"data.packs_per_step={packs} data.tokens_per_pack={tokens}"
    return f"Set {same} for about as many samples a step as on one rank ({more})."
