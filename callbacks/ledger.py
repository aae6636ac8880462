"""Counts every sample as used or as skipped with its reason, and stops a run that loses too many."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import lightning.pytorch as pl

from timeviper.datamodules.sample import Skipped, StepBatch

log = logging.getLogger("timeviper")


class Ledger(pl.Callback):
    """This rank's count, kept in the checkpoint. `max_skipped` is the share that may be lost."""

    ALWAYS_ALLOWED = 2  # losses before the share is looked at: one bad file must not end a young run

    def __init__(self, max_skipped: float) -> None:
        self.max_skipped = max_skipped
        self.used: Counter[str] = Counter()
        self.skipped: list[Skipped] = []

    def state_dict(self) -> dict[str, Any]:
        return {"used": dict(self.used), "skipped": [vars(s) for s in self.skipped]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.used = Counter(state_dict["used"])
        self.skipped = [Skipped(**s) for s in state_dict["skipped"]]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        self.used.update(batch.used)
        for loss in batch.skipped:
            log.warning("skipped %s: %s", loss.key, loss.reason)
        self.skipped += batch.skipped
        total = self.used.total() + len(self.skipped)
        if len(self.skipped) > max(self.ALWAYS_ALLOWED, self.max_skipped * total):
            listed = "\n".join(f"  {s.key}: {s.reason}" for s in self.skipped[-20:])
            raise ValueError(
                f"{len(self.skipped)} of {total} samples could not be used, more than data.max_skipped="
                f"{self.max_skipped}. Mend or remove them (timeviper shards check FOLDER), or raise the "
                f"bound:\n{listed}"
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            used = ", ".join(f"{n} {self.used[n]:,}" for n in sorted(self.used))
            print(f"samples used: {used or 'none'}; skipped: {len(self.skipped)}", flush=True)
