"""Says when a phase of the curriculum begins, and logs what it changes. The phases are functions of the step."""

from __future__ import annotations

from typing import Any, cast

import lightning.pytorch as pl

from timeviper.config import Recipe
from timeviper.config.curriculum import Phase, keep_at, phase_at, ramps
from timeviper.training.module import ViperModule


class Curriculum(pl.Callback):
    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._last: str | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        place = cast(ViperModule, pl_module).plan_step(trainer.global_step)
        phase = phase_at(place, self.recipe.data, self.recipe.train.phases)
        if phase.name != self._last and trainer.is_global_zero and self.recipe.train.phases:
            print(f"step {trainer.global_step}: phase {phase.name!r}: {self._describe(phase)}", flush=True)
        self._last = phase.name
        if ramps(self.recipe.train.phases) and trainer.global_step % self.recipe.log.every == 0:
            keep = keep_at(place, self.recipe.model.transv, self.recipe.train.phases)
            for logger in trainer.loggers:
                logger.log_metrics({f"transv/keep/{n}": k for n, k in keep.items()}, trainer.global_step)

    def _describe(self, phase: Phase) -> str:
        mix = ", ".join(f"{n} {w:g}" for n, w in phase.weights.items())
        words = [f"up to {phase.frames.max_frames} frames at {phase.frames.fps:g} fps", mix]
        change = self.recipe.train.phases.get(phase.name)
        if change is not None and change.keep:
            goal = ", ".join(f"{n} {k:g}" for n, k in change.keep.items())
            words.append(f"TransV goes to {goal} in {change.ramp} steps" if change.ramp else f"TransV keeps {goal}")
        if change is not None and change.trainable is not None:
            words.append(f"trains {', '.join(change.trainable)}")
        return "; ".join(words)
