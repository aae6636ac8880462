"""What each rank will read in the first steps: the data plan, shown without opening a single video."""

from __future__ import annotations

from collections import Counter
from itertools import islice

from rich.table import Table

from timeviper.config import Recipe
from timeviper.console import console
from timeviper.datamodules.datamodule import build_plan
from timeviper.datamodules.plan import StepPlan
from timeviper.tokenizer import Tokenizer


def preview(recipe: Recipe, steps: int, ranks: int) -> None:
    """Print the packs of the first `steps` steps, dealt to `ranks` ranks.

    Raises ValueError if the packs of a step do not divide among the ranks.
    """
    if recipe.data.packs_per_step % ranks:
        raise ValueError(
            f"data.packs_per_step = {recipe.data.packs_per_step} does not divide among {ranks} ranks; "
            f"set a multiple, such as data.packs_per_step={ranks}"
        )
    plan = build_plan(recipe, Tokenizer.load(recipe.model.tokenizer))
    out = console()
    for name, source in plan.sources.items():
        out.print(f"source {name}: {len(source)} conversations", markup=False)
    limit = recipe.data.tokens_per_pack
    table = Table("step", "rank", "pack", "samples", "frames", "tokens", f"cost of {limit}", "from", "first sample")
    for step in islice(plan.steps(), steps):
        _add_step(table, step, ranks, limit)
    out.print(table)


def _add_step(table: Table, step: StepPlan, ranks: int, limit: int) -> None:
    for rank in range(ranks):
        for number, items in enumerate(step.share(rank, ranks).packs):
            frames = sum(item.num_frames for item in items)
            tokens = sum(item.tokens for item in items)
            cost = sum(item.cost for item in items)
            sources = Counter(item.unit.source for item in items)
            table.add_row(
                str(step.step),
                str(rank),
                str(number),
                str(len(items)),
                str(frames),
                str(tokens),
                f"{cost:.0f} ({cost / limit:.0%})",
                ", ".join(f"{name} {count}" for name, count in sources.items()),
                items[0].unit.key if items else "",
            )
    table.add_section()
