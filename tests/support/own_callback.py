"""What recipes of the tests name: callbacks of a person's own, and pictures that cannot be read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jobs import Pictures
from lightning.pytorch.loggers import Logger


class Note(pl.Callback):
    """At the end, writes its word and the step."""

    def __init__(self, file: str, word: str) -> None:
        self.file, self.word = file, word

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            Path(self.file).write_text(f"{self.word} {trainer.global_step}")


class Lines(Logger):
    """Writes `name value` of every figure into a file."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = Path(file)

    @property
    def name(self) -> str:
        return "lines"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with self.file.open("a") as file:
            file.writelines(f"{step} {name} {value}\n" for name, value in metrics.items())


class StopAt(pl.Callback):
    """Ends the stage after a step, or after the first validation."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        trainer.should_stop |= trainer.global_step == self.step

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop |= self.step is None


class NoCallback:
    pass


class Torn(Pictures):
    def open(self, i: int, member: str) -> bytes:
        return b"no picture"
