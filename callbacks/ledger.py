"""Counts every sample of every source as used, truncated, skipped or replaced, and stops a run that loses too many."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist

from timeviper.pack import Lost, StepBatch

# Each rank names what it has lost itself: another has not seen it. (The command line quiets ranks above 0, which would
# only repeat what rank 0 says.)
log = logging.getLogger("timeviper.ledger")
log.setLevel(logging.WARNING)


@dataclass
class Count:
    """What happened to samples, by source; over some steps of one rank, or of all."""

    used: Counter[str] = field(default_factory=Counter)
    replaced: Counter[str] = field(default_factory=Counter)
    skipped: list[Lost] = field(default_factory=list)
    truncated: list[Lost] = field(default_factory=list)

    def add(self, other: Count | StepBatch) -> None:
        self.used.update(other.used)
        self.replaced.update(other.replaced)
        self.skipped += other.skipped
        self.truncated += other.truncated


class Ledger(pl.Callback):
    """The count of all ranks, the same on each, kept in the checkpoint and written to the log.

    Ranks tell each other what happened every `every` steps and before a checkpoint, so that all of them
    stop together when more than the share `max_skipped` of the samples is lost.
    """

    ALWAYS_ALLOWED = 2  # losses before the share is looked at: one bad file must not end a young run
    LISTED = 20  # losses that the final message names

    def __init__(self, max_skipped: float, every: int) -> None:
        self.max_skipped, self.every = max_skipped, every
        self.total, self._new = Count(), Count()

    def state_dict(self) -> dict[str, Any]:
        counters = {k: dict(getattr(self.total, k)) for k in ("used", "replaced")}  # asdict would count their items
        return counters | {k: [asdict(i) for i in getattr(self.total, k)] for k in ("skipped", "truncated")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        lists = {k: [Lost(**i) for i in state_dict[k]] for k in ("skipped", "truncated")}
        self.total = Count(Counter(state_dict["used"]), Counter(state_dict["replaced"]), **lists)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        for what, incidents in (("skipped", batch.skipped), ("truncated", batch.truncated)):
            for incident in incidents:
                log.warning("%s %s: %s", what, incident.key, incident.reason)
        self._new.add(batch)
        due = trainer.global_step % self.every == 0
        if due or trainer.world_size == 1:
            self.gather(trainer)
            self._check()
        if due:
            self._log(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """What other ranks have seen belongs into the checkpoint; Lightning asked for the state before this."""
        self.gather(trainer)
        checkpoint["callbacks"][self.state_key] = self.state_dict()

    def gather(self, trainer: pl.Trainer) -> None:
        """Add up what all ranks have seen since the last time; every rank must call this at the same step."""
        news: list[Any] = [self._new]
        if trainer.world_size > 1:
            news = [None] * trainer.world_size
            dist.all_gather_object(news, self._new)
        for new in news:
            self.total.add(new)
        self._new = Count()

    def _log(self, trainer: pl.Trainer) -> None:
        counters = {
            "used": self.total.used,
            "replaced": self.total.replaced,
            "skipped": Counter(i.source for i in self.total.skipped),
            "truncated": Counter(i.source for i in self.total.truncated),
        }
        figures = {f"data/{name}/{source}": float(n) for name, c in counters.items() for source, n in c.items()}
        for logger in trainer.loggers:
            logger.log_metrics(figures, trainer.global_step)

    def _check(self) -> None:
        """Raises ValueError, on all ranks alike, when the losses exceed the budget."""
        skipped = self.total.skipped
        count = self.total.used.total() + len(skipped)
        if len(skipped) > max(self.ALWAYS_ALLOWED, self.max_skipped * count):
            listed = "\n".join(f"  {i.key}: {i.reason}" for i in skipped[-self.LISTED :])
            raise ValueError(
                f"{len(skipped)} of {count} samples could not be used, more than data.max_skipped="
                f"{self.max_skipped}. Mend or remove them (timeviper shards check FOLDER), or raise the "
                f"bound:\n{listed}"
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        total = self.total
        used = ", ".join(f"{n} {total.used[n]:,}" for n in sorted(total.used))
        parts = {"skipped": len(total.skipped), "replaced": total.replaced.total(), "truncated": len(total.truncated)}
        rest = "; ".join(f"{name}: {n}" for name, n in parts.items() if n or name == "skipped")
        print(f"samples used: {used or 'none'}; {rest}", flush=True)
