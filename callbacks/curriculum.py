"""Says when a phase of the curriculum begins. The phase itself is a function of the step (see `plan.phase_at`)."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from timeviper.config import Recipe
from timeviper.datamodules.plan import phase_at


class Curriculum(pl.Callback):
    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._last: str | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        name, frames, weights = phase_at(step, self.recipe.data, self.recipe.train.phases)
        if name != self._last and trainer.is_global_zero and self.recipe.train.phases:
            mix = ", ".join(f"{n} {w:g}" for n, w in weights.items())
            print(
                f"step {step}: phase {name!r}: up to {frames.max_frames} frames at {frames.fps:g} fps; {mix}",
                flush=True,
            )
        self._last = name
