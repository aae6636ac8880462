"""What recipes of the tests name: callbacks of a person's own, and pictures that cannot be read."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from jobs import Pictures


class Note(pl.Callback):
    """At the end, writes its word and the step."""

    def __init__(self, file: str, word: str) -> None:
        self.file, self.word = file, word

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            Path(self.file).write_text(f"{self.word} {trainer.global_step}")


class NoCallback:
    pass


class Torn(Pictures):
    def open(self, i: int, member: str) -> bytes:
        return b"no picture"
