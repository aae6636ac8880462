"""A plan as tables (valid Markdown, so that they can go into a document as they are), alone or beside another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from timeviper.console import console
from timeviper.model.flops import total as total_flops
from timeviper.planning.advice import Remedy
from timeviper.planning.hardware import Assumptions
from timeviper.planning.parameters import total as total_parameters
from timeviper.planning.stage import PhasePlan, StagePlan
from timeviper.planning.tables import print_figures, say

GB, TERA = 1e9, 1e12
Figures = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Names of columns, and rows of a name and figures."""


def print_plan(plan: StagePlan, found: Sequence[Remedy]) -> None:
    """Everything about one stage; `found`: what was tried because it does not fit."""
    out = console()
    say(out, headline(plan), "")
    print_figures(out, *_parameters(plan))
    print_figures(out, *_phases(plan))
    say(out, *dict.fromkeys(f"packs: {phase.packs_from}" for phase in plan.phases))
    if plan.note:
        say(out, plan.note)
    phase = max(plan.phases, key=lambda p: p.memory.peak.bytes)
    say(
        out,
        "",
        f"phase {phase.name}, which needs most memory: TFLOP of a pack (again: computed twice), and seconds of a step",
    )
    print_figures(out, *_parts(phase))
    peak = phase.memory.peak
    say(out, "", f"fullest moment of a GPU: {peak.name}, {peak.bytes / GB:.1f} GB")
    print_figures(out, *_memory(phase))
    if plan.host:
        say(out, "", plan.host)
    if found:
        say(out, "", "what was tried to make it fit:", *(f"- {_remedy(plan, remedy)}" for remedy in found))
    elif not plan.fits:
        say(out, "nothing that was tried helps; a shorter max_frames or a smaller model is left")
    say(out, "", *assumptions(plan.assumptions))


def headline(plan: StagePlan) -> str:
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    return (
        f"{plan.recipe} on {plan.gpus} x {plan.gpu.name}: {verdict}, {plan.peak_gb:.1f} of "
        f"{plan.gpu.memory_gb:.0f} GB a GPU; {_hours(plan.hours)} ({_count(plan.hours * plan.gpus)} GPU hours)"
    )


def assumptions(assume: Assumptions) -> list[str]:
    """One line each, as they are printed below every plan."""
    figures = ", ".join(f"{name}={value:g}" for name, value in asdict(assume).items())
    return [f"assumed: {figures}", *(f"- {note}" for note in assume.NOTES)]


def amount(value: float, digits: int = 2) -> str:
    """With `digits` after the point; below 1 as many as tell it from nothing."""
    return f"{value:,.{digits}f}" if value >= 1 or value == 0 else f"{value:.2g}"


def _parameters(plan: StagePlan) -> Figures:
    counts = [*plan.parameters.items(), ("all", total_parameters(plan.parameters))]
    rows = [(part, f"{count.total:,}", f"{count.trainable:,}") for part, count in counts]
    return ("part", "parameters", "trained"), rows


def _phases(plan: StagePlan) -> Figures:
    phases = plan.phases

    def row(name: str, say_of: Callable[[PhasePlan], str]) -> list[str]:
        return [name, *map(say_of, phases)]

    rows = [
        row("from step", lambda p: f"{p.start:,}"),
        row("to step", lambda p: f"{p.start + p.steps:,}"),
        row("frames of a sample, at most", lambda p: f"{p.max_frames:,}"),
        row("frames a second, at most", lambda p: f"{p.fps:g}"),
        row("packs a GPU and step", lambda _: f"{plan.packs_per_gpu:,}"),
        row("samples of a pack", lambda p: f"{p.samples:,.1f}"),
        row("frames of a pack", lambda p: f"{p.frames:,.0f}"),
        *(row(f"tokens: {name}", lambda p, name=name: f"{p.tokens[name]:,.0f}") for name in phases[0].tokens),
        row("model TFLOP a pack", lambda p: amount(total_flops(p.model_flops).total / TERA, 1)),
        row("executed TFLOP a pack", lambda p: amount(total_flops(p.executed_flops).total / TERA, 1)),
        row("blocks, 6 N D: TFLOP a pack", lambda p: amount(p.six_nd / TERA, 1)),
        row("step, seconds", lambda p: amount(p.time.seconds)),
        row("of it communication, hidden", lambda p: amount(p.time.communication)),
        row("MFU", lambda p: f"{p.mfu:.1%}"),
        row("peak memory, GB", lambda p: amount(p.memory.peak.bytes / GB, 1)),
        row("hours", lambda p: amount(p.hours)),
    ]
    return ("", *(phase.name for phase in phases)), rows


def _parts(phase: PhasePlan) -> Figures:
    kept = phase.memory.activations
    rows = []
    for part, done in phase.executed_flops.items():
        work = (phase.model_flops[part].total, done.forward, done.backward, done.recompute)
        cells = [amount(value / TERA) for value in work]
        rows.append((part, *cells, amount(kept.get(part, 0) / GB), amount(phase.time.parts[part])))
    return ("part", "model TFLOP", "forward", "backward", "again", "kept, GB", "seconds"), rows


def _memory(phase: PhasePlan) -> Figures:
    return ("in it", "GB"), [(name, amount(size / GB)) for name, size in phase.memory.peak.items.items()]


def _remedy(plan: StagePlan, remedy: Remedy) -> str:
    verdict = "fits" if remedy.fits else "does not fit"
    figures = f"{remedy.peak_gb:,.1f} of {plan.gpu.memory_gb:.0f} GB, {_hours(remedy.hours)}"
    return f"{remedy.change}: {verdict}, {figures}{remedy.remark and f' ({remedy.remark})'}"


def _hours(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} hours"
    return f"{hours * 60:,.1f} minutes" if hours * 60 >= 1 else f"{hours * 3600:,.1f} seconds"


def _count(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 1 else f"{hours:.1g}"


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
    rows = []
    for name, row in compare(a, b).items():
        ratio = f"{row['b'] / row['a']:.3f}" if row["a"] else ""
        rows.append((name, *(_figure(row[key]) for key in ("a", "b", "difference")), ratio))
    print_figures(out, ("", "a", "b", "b - a", "b / a"), rows)
    say(out, "", *assumptions(a.assumptions))


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:,.3f}"


def as_json(plan: StagePlan, found: Sequence[Remedy]) -> dict[str, Any]:
    return plan.as_dict() | {"remedies": [asdict(remedy) for remedy in found], "notes": list(Assumptions.NOTES)}
