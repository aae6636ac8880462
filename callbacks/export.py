"""At the last step: the full weights in a folder that the next stage, evaluation and `ask` read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
from torch import nn

from timeviper.config import Recipe
from timeviper.parallel import WholeTensors
from timeviper.tokenizer import Tokenizer
from timeviper.weights.export import follow_export, write_export
from timeviper.weights.lineage import source_digest


class Export(pl.Callback):
    def __init__(self, folder: Path, recipe: Recipe, tokenizer: Tokenizer) -> None:
        self.folder, self.recipe, self.tokenizer = folder, recipe, tokenizer

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step < self.recipe.train.steps:
            return
        state = WholeTensors(cast(nn.Module, pl_module.model))
        if trainer.is_global_zero:
            sources = cast(Any, trainer).datamodule.plan.sources  # a VideoDataModule: trainer.py gives it to fit
            data = {name: source_digest(source) for name, source in sources.items()}
            write_export(self.folder, state, self.recipe, self.tokenizer, trainer.global_step, data=data)
            print(f"exported {self.folder}", flush=True)
        else:
            follow_export(state, self.recipe.model.lora)
        trainer.strategy.barrier()
