"""A plan as tables (valid Markdown, so that they can go into a document as they are), alone or beside another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from timeviper.console import console
from timeviper.model.flops import total as total_flops
from timeviper.planning.advice import Remedy
from timeviper.planning.hardware import Assumptions
from timeviper.planning.parameters import total as total_parameters
from timeviper.planning.stage import PhasePlan, StagePlan

GB, TERA = 1e9, 1e12


def print_plan(plan: StagePlan, found: Sequence[Remedy]) -> None:
    """Everything about one stage; `found`: what was tried because it does not fit."""
    out = console()
    say(out, headline(plan), "")
    out.print(_parameters(plan))
    out.print(_phases(plan))
    say(out, *dict.fromkeys(f"packs: {phase.packs_from}" for phase in plan.phases))
    if plan.note:
        say(out, plan.note)
    phase = max(plan.phases, key=lambda p: p.memory.peak.bytes)
    say(out, "", f"phase {phase.name}, which needs most memory: a pack, and its time in a step")
    out.print(_parts(phase))
    peak = phase.memory.peak
    say(out, "", f"fullest moment of a GPU: {peak.name}, {peak.bytes / GB:.1f} GB")
    out.print(_memory(phase))
    if found:
        say(out, "", "what was tried to make it fit")
        out.print(_remedies(plan, found))
    elif not plan.fits:
        say(out, "nothing that was tried helps; a shorter max_frames or a smaller model is left")
    say(out, "", *assumptions(plan.assumptions))


def headline(plan: StagePlan) -> str:
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    return (
        f"{plan.recipe} on {plan.gpus} x {plan.gpu.name}: {verdict}, {plan.peak_gb:.1f} of "
        f"{plan.gpu.memory_gb:.0f} GB a GPU; {_hours(plan.hours)} ({plan.hours * plan.gpus:,.0f} GPU hours)"
    )


def assumptions(assume: Assumptions) -> list[str]:
    """One line each, as they are printed below every plan."""
    figures = ", ".join(f"{name}={value:g}" for name, value in asdict(assume).items())
    return [f"assumed: {figures}", *(f"- {note}" for note in assume.NOTES)]


def say(out: Console, *lines: str) -> None:
    for line in lines:
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def table(*columns: str) -> Table:
    """The first column to the left, figures to the right."""
    made = Table(box=box.MARKDOWN)
    for i, name in enumerate(columns):
        made.add_column(name, justify="right" if i else "left", no_wrap=i > 0)
    return made


def amount(value: float, digits: int = 2) -> str:
    """With `digits` after the point; below 1 as many as tell it from nothing."""
    return f"{value:,.{digits}f}" if value >= 1 or value == 0 else f"{value:.2g}"


def _parameters(plan: StagePlan) -> Table:
    made = table("part", "parameters", "trained")
    for part, count in plan.parameters.items():
        made.add_row(part, f"{count.total:,}", f"{count.trainable:,}")
    count = total_parameters(plan.parameters)
    made.add_row("all", f"{count.total:,}", f"{count.trainable:,}")
    return made


def _phases(plan: StagePlan) -> Table:
    made = table("", *(phase.name for phase in plan.phases))

    def row(name: str, cells: Sequence[str]) -> None:
        made.add_row(name, *cells)

    phases = plan.phases
    row("steps", [f"{p.start:,} to {p.start + p.steps:,}" for p in phases])
    row("frames of a sample, at most", [f"{p.max_frames:,} at {p.fps:g} fps" for p in phases])
    row("packs a GPU and step", [str(plan.packs_per_gpu)] * len(phases))
    row("samples, frames of a pack", [f"{p.samples:,.1f}, {p.frames:,.0f}" for p in phases])
    for name in phases[0].tokens:
        row(f"tokens: {name}", [f"{p.tokens[name]:,.0f}" for p in phases])
    row("model TFLOP a pack", [amount(total_flops(p.model_flops).total / TERA, 1) for p in phases])
    row("executed TFLOP a pack", [amount(total_flops(p.executed_flops).total / TERA, 1) for p in phases])
    row("blocks, 6 N D: TFLOP a pack", [amount(p.six_nd / TERA, 1) for p in phases])
    row("step, seconds", [amount(p.time.seconds) for p in phases])
    row("of it communication, hidden", [amount(p.time.communication) for p in phases])
    row("MFU", [f"{p.mfu:.1%}" for p in phases])
    row("peak memory, GB", [amount(p.memory.peak.bytes / GB, 1) for p in phases])
    row("hours", [amount(p.hours) for p in phases])
    return made


def _parts(phase: PhasePlan) -> Table:
    made = table("part", "model TFLOP", "forward", "backward", "recomputed", "activations kept, GB", "seconds a step")
    kept = phase.memory.activations
    for part, done in phase.executed_flops.items():
        figures = (phase.model_flops[part].total, done.forward, done.backward, done.recompute)
        cells = [amount(value / TERA) for value in figures]
        made.add_row(part, *cells, amount(kept.get(part, 0) / GB), amount(phase.time.parts[part]))
    return made


def _memory(phase: PhasePlan) -> Table:
    made = table("in it", "GB")
    for name, size in phase.memory.peak.items.items():
        made.add_row(name, amount(size / GB))
    return made


def _remedies(plan: StagePlan, found: Sequence[Remedy]) -> Table:
    made = table("change", f"GB of {plan.gpu.memory_gb:.0f}", "fits", "hours", "remark")
    for remedy in found:
        fits = "yes" if remedy.fits else "no"
        made.add_row(Text(remedy.change), f"{remedy.peak_gb:,.1f}", fits, f"{remedy.hours:,.1f}", remedy.remark)
    return made


def _hours(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 1 else f"{hours * 60:,.1f} minutes"


# ---- two plans --------------------------------------------------------------------------------------------


def figures(plan: StagePlan) -> dict[str, float]:
    """What two plans are compared by: sums over the stage, or its largest value."""
    phases, count = plan.phases, total_parameters(plan.parameters)
    steps, packs = sum(p.steps for p in phases), plan.packs_per_gpu * plan.gpus

    def work(kind: str) -> float:
        return sum(p.steps * packs * total_flops(getattr(p, kind)).total for p in phases) / 1e18

    return {
        "parameters": count.total,
        "trained parameters": count.trainable,
        "frames of a pack": sum(p.steps * p.frames for p in phases) / steps,
        "tokens of a pack at the input": sum(p.steps * p.tokens["input"] for p in phases) / steps,
        "tokens of a pack that a block sees": sum(p.steps * p.tokens["mean"] for p in phases) / steps,
        "model EFLOP of the stage": work("model_flops"),
        "executed EFLOP of the stage": work("executed_flops"),
        "activations kept, GB": max(sum(p.memory.activations.values()) for p in phases) / GB,
        "memory a GPU, GB": plan.peak_gb,
        "longest step, seconds": max(p.time.seconds for p in phases),
        "hours": plan.hours,
    }


def compare(a: StagePlan, b: StagePlan) -> dict[str, dict[str, float]]:
    """Figures of both and the difference, b minus a."""
    ours, theirs = figures(a), figures(b)
    return {name: {"a": ours[name], "b": theirs[name], "difference": theirs[name] - ours[name]} for name in ours}


def print_comparison(names: tuple[str, str], a: StagePlan, b: StagePlan) -> None:
    out = console()
    say(out, *(f"{letter}: {name}: {headline(plan)}" for letter, name, plan in zip("ab", names, (a, b))), "")
    made = table("", "a", "b", "b - a", "b / a")
    for name, row in compare(a, b).items():
        ratio = f"{row['b'] / row['a']:.3f}" if row["a"] else ""
        made.add_row(name, *(_figure(row[key]) for key in ("a", "b", "difference")), ratio)
    out.print(made)
    say(out, "", *assumptions(a.assumptions))


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:,.3f}"


def as_json(plan: StagePlan, found: Sequence[Remedy]) -> dict[str, Any]:
    return plan.as_dict() | {"remedies": [asdict(remedy) for remedy in found], "notes": list(Assumptions.NOTES)}
