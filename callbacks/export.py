"""At the last step: the full weights in a folder that the next stage, evaluation and `ask` read."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from timeviper.checkpoint import write_export
from timeviper.config import Recipe
from timeviper.tokenizer import Tokenizer


class Export(pl.Callback):
    def __init__(self, folder: Path, recipe: Recipe, tokenizer: Tokenizer) -> None:
        self.folder, self.recipe, self.tokenizer = folder, recipe, tokenizer

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step < self.recipe.train.steps:
            return
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(pl_module.model, options=options)  # gathered on every rank, kept on rank 0
        if trainer.is_global_zero:
            write_export(self.folder, state, self.recipe, self.tokenizer, trainer.global_step)
            print(f"exported {self.folder}", flush=True)
        trainer.strategy.barrier()
