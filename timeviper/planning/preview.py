"""What each rank will read in the first steps: the data plan, shown without opening a single video."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.table import Table

from timeviper.config import Recipe
from timeviper.config.curriculum import phase_at
from timeviper.console import console
from timeviper.console import table as narrow
from timeviper.datamodules.build import build_plan
from timeviper.datamodules.mixture import UsedUp
from timeviper.datamodules.on_change import adopt
from timeviper.datamodules.outlook import outlook, too_often
from timeviper.datamodules.plan import Plan, StepPlan
from timeviper.datamodules.plan_files import PlanFiles
from timeviper.datamodules.turns import turns_note
from timeviper.tokenizer import Tokenizer
from timeviper.training.launch import check_ranks


def preview(recipe: Recipe, steps: int, ranks: int, *, start: int = 0, keys: bool = False) -> None:
    """Print the packs of `steps` steps from `start` on, dealt to `ranks` ranks; `keys` lists every sample.

    Raises ConfigError if the packs of a step do not divide among the ranks.
    """
    check_ranks(recipe, ranks)
    run = Path(recipe.run_dir)
    plan = build_plan(recipe, Tokenizer.load(recipe.model.tokenizer), PlanFiles(run, write=True))
    adopt(plan, run)
    out = console()
    shown, ended = _steps(plan, start, steps)
    limit = recipe.data.tokens_per_pack
    table = narrow("step", "rank", "pack", "samples", "frames", "tokens", "full", "from, first sample")
    last_phase = ""
    for step in shown:
        phase = phase_at(step.step, recipe.data, recipe.train.phases)
        if phase.name != last_phase:
            named = f"phase {phase.name}" if phase.name else ""
            table.add_row("", "", "", "", "", "", "", f"{named} up to {phase.frames.max_frames} frames".strip())
            last_phase = phase.name
        _add_step(table, step, ranks, limit, keys)
    out.print(table)
    out.print(f"full: of data.tokens_per_pack = {limit:,} tokens, mean over the blocks", highlight=False)
    _summary(out, plan, shown, ranks)
    whole = outlook(plan, recipe.train)
    out.print(f"all {recipe.train.steps:,} steps: {'; '.join(map(str, whole))}", markup=False, highlight=False)
    for note in too_often(whole):
        out.print(note, markup=False, highlight=False, style="yellow")
    if note := turns_note(recipe, plan.sources):
        out.print(note, markup=False, highlight=False)
    if ended:
        out.print(ended, markup=False)


def _steps(plan: Plan, start: int, steps: int) -> tuple[list[StepPlan], str]:
    """The steps asked for, or as many as there are, and why there are no more."""
    shown: list[StepPlan] = []
    try:
        shown.extend(islice(plan.steps(start), steps))
    except UsedUp as error:
        return shown, str(error)
    return shown, ""


def _add_step(table: Table, step: StepPlan, ranks: int, limit: int, keys: bool) -> None:
    for rank in range(ranks):
        for number, items in enumerate(step.share(rank, ranks).packs):
            cost = sum(item.cost for item in items)
            sources = Counter(item.unit.source for item in items)
            names = [item.unit.key for item in (items if keys else items[:1])]
            table.add_row(
                str(step.step),
                str(rank),
                str(number),
                str(len(items)),
                str(sum(item.num_frames for item in items)),
                str(sum(item.tokens for item in items)),
                f"{cost / limit:.0%}",
                "\n".join([", ".join(f"{name} {count}" for name, count in sources.items()), *names]),
            )
    for item in step.too_long:
        share = f"{item.cost / limit:.0%}"
        skipped = f"skipped: too long\n{item.unit.key}"
        table.add_row(str(step.step), "", "", "", str(item.num_frames), str(item.tokens), share, skipped)
    table.add_section()


def _summary(out: Console, plan: Plan, steps: list[StepPlan], ranks: int) -> None:
    """How the sources are mixed, and how evenly the ranks are loaded."""
    items = [item for step in steps for pack in step.packs for item in pack]
    samples, tokens = Counter(i.unit.source for i in items), Counter()
    for item in items:
        tokens[item.unit.source] += item.tokens
    table = narrow("source", "conversations", "samples", "epochs", "of samples", "of tokens")
    for name, source in plan.sources.items():
        table.add_row(
            name,
            f"{len(source):,}",
            f"{samples[name]:,}",
            f"{samples[name] / len(source):.2f}",
            f"{samples[name] / max(len(items), 1):.1%}",
            f"{tokens[name] / max(tokens.total(), 1):.1%}",
        )
    out.print(table)
    if ranks > 1 and steps:
        work = [[sum(i.cost for p in s.share(r, ranks).packs for i in p) for r in range(ranks)] for s in steps]
        idle = 1 - sum(map(sum, work)) / sum(max(w) * ranks for w in work)
        out.print(f"ranks wait for the most loaded one: {idle:.1%} of the time, by cost")
