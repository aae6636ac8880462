"""States of the plan in a run folder: `plan.json` in each checkpoint, and in `plan/` those of every so many units.

Whatever is missing, damaged or of another plan costs time, and nothing else.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from timeviper.datamodules.plan_state import PlanState
from timeviper.files import write_whole

log = logging.getLogger("timeviper")

FILE = "plan.json"  # of a checkpoint
FOLDER = "plan"
EVERY = 500_000  # units: a second or two of planning


class PlanFiles:
    """The states that a run folder holds."""

    def __init__(self, run: Path, *, write: bool = False, every: int = EVERY) -> None:
        """write: whether this process adds to them, which may make the folder; one of a run is enough."""
        self.run, self.write, self.every = run, write, every

    def nearest(self, step: int, plan: str) -> PlanState | None:
        """The last state of this plan that is not behind `step`."""
        found: list[PlanState] = []
        for pattern in (f"{FOLDER}/step=*.json", f"checkpoints/step=*/{FILE}"):
            for file in self._newest_first(pattern, step):
                state = read_state(file, plan)
                if state and state.step <= step:
                    found.append(state)
                    break
        return max(found, key=lambda state: state.step, default=None)

    def keep(self, state: PlanState, plan: str) -> None:
        if not self.write:
            return
        folder = self.run / FOLDER
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / f"step={state.step}.json", state.encode(plan))
        except OSError as error:
            log.warning("states of the plan are not kept (%s): what needs them takes longer", error)
            self.write = False

    def _newest_first(self, pattern: str, step: int) -> list[Path]:
        """By the step in their names, which is no later than that of the state."""
        found = {file: re.search(r"step=(\d+)", str(file.relative_to(self.run))) for file in self.run.glob(pattern)}
        steps = {file: int(match[1]) for file, match in found.items() if match}
        return sorted((file for file in steps if steps[file] <= step), key=steps.__getitem__, reverse=True)


def read_state(file: Path, plan: str) -> PlanState | None:
    """None if there is none of this plan."""
    try:
        return PlanState.decode(file.read_text(), plan)
    except (OSError, ValueError):
        return None
