"""Once the last step is there: the full weights in a folder that the next stage, evaluation and `ask` read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
from torch import nn

from timeviper.callbacks.checkpoints import Checkpoints
from timeviper.callbacks.guard import Guard
from timeviper.config import Recipe
from timeviper.parallel import WholeTensors
from timeviper.tokenizer import Tokenizer
from timeviper.weights.export import follow_export, write_export
from timeviper.weights.lineage import source_digest


class Export(pl.Callback):
    """Acts at the end of a fit, also of one that finds the last step done: a process that ended while the export was
    written, or the last validation ran, left only the checkpoint."""

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        tokenizer: Tokenizer,
        guard: Guard,
        checkpoints: Checkpoints,
        resume_hint: str,
    ) -> None:
        """resume_hint: the command that writes an export which could not be written, for messages."""
        self.folder, self.recipe, self.tokenizer, self.guard = folder, recipe, tokenizer, guard
        self.checkpoints, self.resume_hint = checkpoints, resume_hint
        self._validated = -1

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validated = trainer.global_step

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        step = trainer.global_step
        if early := step < self.recipe.train.steps:
            if self.checkpoints.stopped or not trainer.should_stop:
                return
            if trainer.is_global_zero:
                print(f"a callback ended the stage at step {step} of {self.recipe.train.steps}", flush=True)
        if self.recipe.data.val and self._validated != step:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True
        state = WholeTensors(cast(nn.Module, pl_module.model))
        if trainer.is_global_zero:
            sources = cast(Any, trainer).datamodule.plan.sources  # a VideoDataModule: trainer.py gives it to fit
            data = {name: source_digest(source) for name, source in sources.items()}
            notes = {"doubts": self._doubts(trainer, step), "ended_early": early}
            try:
                write_export(self.folder, state, self.recipe, self.tokenizer, step, data=data, notes=notes)
            except OSError as error:
                raise OSError(
                    f"could not write the export {self.folder}: {error}. The checkpoint of the last step is there: "
                    f"free space, then write the export with: {self.resume_hint}"
                ) from error
            print(f"exported {self.folder}", flush=True)
        else:
            follow_export(state, self.recipe.model.lora)
        trainer.strategy.barrier()

    def _doubts(self, trainer: pl.Trainer, steps: int) -> list[str]:
        """Why the weights can hardly be what was wanted."""
        skipped, found = self.guard.skipped, []
        if skipped > steps / 2:
            found.append(f"{skipped} of {steps} steps were skipped (train.guard.policy), so little was learned")
        loss = trainer.callback_metrics.get("val/loss")
        if loss is not None and not math.isfinite(loss):
            found.append(
                f"the held-out loss at the end is {float(loss)}: the weights, or all held-out samples, are bad"
            )
        return found
