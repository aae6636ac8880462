"""Sharded checkpoints that are either whole or not there, and a clean stop on Ctrl-C, SIGTERM or SIGUSR1."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch.distributed.checkpoint import CheckpointException

PREFIX = "step="


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(PREFIX))


def whole_checkpoints(folder: Path) -> list[Path]:
    """Oldest first. A folder gets its final name only when all of it is on disk."""
    return sorted((p for p in folder.glob(f"{PREFIX}*") if p.name.removeprefix(PREFIX).isdigit()), key=step_of)


def latest_checkpoint(folder: Path) -> Path | None:
    return next(reversed(whole_checkpoints(folder)), None)


class Checkpoints(pl.Callback):
    """Writes `<folder>/step=N` every `every` steps, at the end, and when asked to stop; keeps the newest `keep`."""

    def __init__(self, folder: Path, every: int, keep: int, resume_hint: str) -> None:
        self.folder, self.every, self.keep, self.resume_hint = folder, every, keep, resume_hint
        self.asked_to_stop = 0
        self.stopped = False
        self._saved = -1
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved = trainer.global_step
        for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._handlers[s] = signal.signal(s, self._note)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for s, handler in self._handlers.items():
            signal.signal(s, handler)
        self._handlers = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked_to_stop += 1
        name = signal.Signals(number).name
        if self.asked_to_stop == 1:
            print(f"\n{name}: finishing this step and saving; once more to stop without saving", flush=True)
        else:
            raise KeyboardInterrupt(f"{name} twice: stopped without saving")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        stop = self._any_rank_asked(trainer)
        step = trainer.global_step
        last = step >= trainer.max_steps
        if stop or last or (self.every and step % self.every == 0):
            self.save(trainer)
        if stop and not last:
            self.stopped = True
            trainer.should_stop = True
            if trainer.is_global_zero:
                print(f"saved {self.folder}/{PREFIX}{step}. To continue: {self.resume_hint}", flush=True)

    def _any_rank_asked(self, trainer: pl.Trainer) -> bool:
        """Signals reach ranks at different steps; all must leave after the same one."""
        if trainer.world_size == 1:
            return self.asked_to_stop > 0
        flag = torch.tensor(float(self.asked_to_stop > 0), device=trainer.strategy.root_device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)

    def save(self, trainer: pl.Trainer) -> None:
        """Write under a temporary name, then rename: whatever happens, older checkpoints stay as they are."""
        step = trainer.global_step
        if step == self._saved:
            return
        final, partial = self.folder / f"{PREFIX}{step}", self.folder / f"{PREFIX}{step}.tmp"
        if trainer.is_global_zero:
            for stale in self.folder.glob(f"{PREFIX}*.tmp"):
                shutil.rmtree(stale, ignore_errors=True)
        trainer.strategy.barrier()
        try:
            trainer.save_checkpoint(partial)
        except (Exception, CheckpointException) as error:  # the latter is no Exception
            shutil.rmtree(partial, ignore_errors=True)
            kept = latest_checkpoint(self.folder)
            # Distributed saving wraps the operating system's error; its text is what the user needs.
            raise OSError(
                f"could not write the checkpoint of step {step} under {self.folder}: {_root(error)}. "
                + (f"{kept.name} is still valid; " if kept else "")
                + f"free space or choose another out=, then continue with: {self.resume_hint}"
            ) from error
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            for old in whole_checkpoints(self.folder)[: -self.keep or None]:
                shutil.rmtree(old, ignore_errors=True)
        self._saved = step
        trainer.strategy.barrier()


def _root(error: BaseException) -> str:
    """The innermost cause, in words."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
