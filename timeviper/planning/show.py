"""`timeviper plan`: one recipe, or two side by side, on GPUs that need not be here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from timeviper.config.load import load_recipe
from timeviper.planning.advice import remedies
from timeviper.planning.hardware import GPUS, Assumptions
from timeviper.planning.report import as_json, compare, print_comparison, print_plan
from timeviper.planning.stage import plan_stage


def plan(
    recipes: Sequence[Path], overrides: Sequence[str], gpus: int, gpu: str, assume: Assumptions, as_text: bool
) -> bool:
    """Print the plan of one recipe or the comparison of two; `as_text` false: one JSON object. Whether all fit.

    Raises ValueError for a GPU that is not in the table or more than two recipes, and what `plan_stage` raises.
    """
    if gpu not in GPUS:
        raise ValueError(f"--gpu {gpu}: not in the table; known: {', '.join(GPUS)}")
    if gpus < 1:
        raise ValueError(f"--gpus {gpus}: must be 1 or more")
    if len(recipes) > 2:
        raise ValueError(f"{len(recipes)} recipes: plan takes one, or two to compare")
    if not 0 < assume.efficiency <= 1:
        raise ValueError(f"--efficiency {assume.efficiency:g}: a share of the peak, above 0 and at most 1")
    loaded = [load_recipe(path, overrides) for path in recipes]
    plans = [plan_stage(recipe, gpus, GPUS[gpu], assume) for recipe in loaded]
    found = [[] if p.fits else remedies(recipe, p) for recipe, p in zip(loaded, plans)]
    if as_text:
        if len(plans) == 1:
            print_plan(plans[0], found[0])
        else:
            print_comparison((str(recipes[0]), str(recipes[1])), *plans)
        return all(p.fits for p in plans)
    reports = [as_json(p, f) for p, f in zip(plans, found)]
    report = reports[0] if len(plans) == 1 else {"a": reports[0], "b": reports[1], "compared": compare(*plans)}
    print(json.dumps(report, indent=2))
    return all(p.fits for p in plans)
