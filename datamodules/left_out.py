"""Steps of the plan that a run leaves out, because its guard went back to before them.

With them the data order is a function of the step, the recipe and this set, which lies in the run folder.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from timeviper.datamodules.plan import Plan, StepPlan
from timeviper.files import write_whole

FILE = "left_out.json"


def plan_step(step: int, left_out: Collection[int]) -> int:
    """The step of the plan whose data a step of the run reads."""
    for skipped in sorted(left_out):
        step += skipped <= step
    return step


def steps_without(plan: Plan, start: int, left_out: Collection[int]) -> Iterator[StepPlan]:
    """The steps of a run from `start` on, numbered by the run."""
    for planned in plan.steps(plan_step(start, left_out)):
        if planned.step not in left_out:
            yield replace(planned, step=start)
            start += 1


def read_left_out(run: Path) -> frozenset[int]:
    file = run / FILE
    return frozenset(json.loads(file.read_text())["plan_steps"]) if file.is_file() else frozenset()


def write_left_out(run: Path, left_out: Collection[int]) -> None:
    write_whole(run / FILE, json.dumps({"plan_steps": sorted(left_out)}) + "\n")
