"""What the figures of `timeviper analyse redundancy` say, in sentences, with their intervals."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from timeviper.analysis.drop import OWN, OWN_DROP, RULES, WHOLE
from timeviper.analysis.redundancy_study import Redundancy
from timeviper.analysis.scores import Band

NOTHING = 0.005  # nats a token: less than this is called no change
LITTLE = 0.05  # nats a token, of a schedule that one would try
NEAR = 2.0  # a prediction within this factor of what is measured is called one
KINDS = {"M": "Mamba-2", "*": "attention"}


def findings(found: Redundancy) -> list[str]:
    """Sentences that the figures bear."""
    return [*_cliff(found), *_free(found), *_chance(found), *_chosen(found), *_own(found)]


def _lowest(found: Redundancy) -> float | None:
    keeps = [keep for keep in found.options.keeps if 0 < keep < 1]
    return keeps[-1] if keeps else None


def _cliff(found: Redundancy) -> Iterable[str]:
    """Where a drop by numbers alone comes to cost less."""
    rule = next((rule for rule in found.options.rules if not RULES[rule].block), None)
    if rule is None or (keep := _lowest(found)) is None or len(found.options.places) < 2:
        return
    bands = [found.band(place, keep, rule, "kl") for place in found.options.places]
    kl = [b.mean if b else np.nan for b in bands]
    steps = [a - b for a, b in pairwise(kl)]
    i = int(np.argmax(steps))
    place, after = found.options.places[i : i + 2]
    if steps[i] < NOTHING:
        yield f"Keep {keep:g} ({rule}): from no block to the next does a drop come to cost {NOTHING:g} nats less."
        return
    right = [found.band(p, keep, rule, "right") for p in (place, after)]
    yield (
        f"Keep {keep:g} ({rule}): the cliff is at block {place} ({KINDS[found.layout[place]]}). Before it a drop costs "
        f"{kl[i]:.3g} nats and leaves {_mean(right[0]):.3f} right, before block {after} {kl[i + 1]:.3g} nats and "
        f"{_mean(right[1]):.3f}; without a drop {np.mean(found.scores[WHOLE].right):.3f}."
    )


def _mean(b: Band | None) -> float:
    return b.mean if b else float("nan")


def _free(found: Redundancy) -> Iterable[str]:
    """From where on the best rule drops nearly for nothing."""
    if not found.table.ratios or not np.isfinite(found.table.loss).any():
        return
    cheap = found.table.loss[:, -1] < LITTLE
    behind = [p for i, p in enumerate(found.options.places) if cheap[i:].all()]
    keep = found.table.ratios[-1]
    if not behind:
        yield f"At no block does keep {keep:g} cost less than {LITTLE:g} nats, by any rule of a recipe."
        return
    yield f"From block {behind[0]} on keep {keep:g} costs less than {LITTLE:g} nats, by the best rule of a recipe."


def _chance(found: Redundancy) -> Iterable[str]:
    """How each rule that ranks, and even spacing, stand to chance."""
    if "random" not in found.options.rules:
        return
    for rule in (r for r in found.options.rules if r != "random"):
        gaps: dict[tuple[int, float], Band] = {}
        for place in found.options.places:
            for keep in (k for k in found.options.keeps if 0 < k < 1):
                ours, chance = found.of(place, keep, rule), found.of(place, keep, "random")
                if ours is not None and chance is not None:
                    gaps[place, keep] = found.difference(chance, ours, "kl")
        worse = {at: gap for at, gap in gaps.items() if gap.low > 0}
        better = {at: gap for at, gap in gaps.items() if gap.high < 0}
        told = [
            f"{word} in {len(some)} ({_example(found, rule, pick(some, key=lambda at: some[at].mean))})"
            for word, some, pick in (("worse", worse, max), ("better", better, min))
            if some
        ]
        yield f"{rule} against chance, {len(gaps)} places and shares: {'; '.join(told) or 'no difference is shown'}."


def _example(found: Redundancy, rule: str, at: tuple[int, float]) -> str:
    ours, chance = (_mean(found.band(*at, r, "kl")) for r in (rule, "random"))
    return f"most before block {at[0]}, keep {at[1]:g}: {ours:.3g} against {chance:.3g} nats"


def _chosen(found: Redundancy) -> Iterable[str]:
    if (number := found.winner) is None:
        return
    schedule, kl = found.chosen[number], found.joint_band(str(number), "kl")
    wanted = ", ".join(f"budget.{name}={budget:g}" for name, budget in found.options.budgets.items())
    shares = ", ".join(f"{name} {share:.3f}" for name, share in schedule.costs.items())
    yield (
        f"Under {wanted}, of {len(found.chosen)} measured as a whole: {schedule}. Takes {shares} of what no stage "
        f"takes. Predicted {schedule.loss:.4f} nats, measured {kl.mean:.4f} (95 % {kl.low:.4f} to {kl.high:.4f}), "
        f"{found.joint_band(str(number), 'right').mean:.3f} right; nothing is transferred."
    )


def _own(found: Redundancy) -> Iterable[str]:
    if OWN not in found.joint:
        return
    shares = ", ".join(f"{name} {share:.3f}" for name, share in found.own_costs.items())
    with_it, without = (found.joint_band(name, "kl").mean for name in (OWN, OWN_DROP))
    yield (
        f"The run's own stages take {shares}: {with_it:.4f} nats from the model without stages, "
        f"{found.joint_band(OWN, 'right').mean:.3f} right; as a pure drop {without:.4f}, "
        f"{found.joint_band(OWN_DROP, 'right').mean:.3f}."
    )


def warnings(found: Redundancy) -> list[str]:
    told = [*found.options.notes, *found.doubts()]
    if found.stages:
        told.append(
            "The run was trained with stages: without them it is off what it learnt, and so is all that is here."
        )
    if (number := found.winner) is not None:
        predicted, measured = found.chosen[number].loss, found.joint_band(str(number), "kl").mean
        if max(predicted, measured) > NOTHING and not predicted / NEAR <= measured <= predicted * NEAR:
            told.append(
                f"The best schedule costs {measured:.4f} nats, predicted were {predicted:.4f}: its drops are not "
                "additive, so another may be better. Ask for more stages=1, or a looser budget."
            )
    return told
