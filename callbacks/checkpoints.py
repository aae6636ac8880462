"""When a checkpoint is written: every so many steps, at the end, on Ctrl-C, SIGTERM or SIGUSR1, and without data."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import Any, cast

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.loops.progress import _ProcessedTracker

from timeviper.config import TrainConfig
from timeviper.pack import StepBatch
from timeviper.training.ends import NoData, told_by_all
from timeviper.training.module import ViperModule
from timeviper.training.strategy import Sharded


class Checkpoints(pl.Callback):
    """Saves every `train.checkpoint_every` steps, and ends a run cleanly when it is asked to stop."""

    def __init__(
        self,
        train: TrainConfig,
        resume_hint: str,
        pause: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """`resume_hint`: the command that continues the run. `pause`: entered while a checkpoint is waited for."""
        self.train, self.resume_hint, self.pause = train, resume_hint, pause
        self.asked_to_stop = 0
        self.stopped = False
        self._asked = ""
        self._deadline: threading.Timer | None = None
        self._handlers: dict[int, Any] = {}
        self._saved = -1
        self._began = self._step_seconds = self._save_seconds = 0.0
        self._doing = ""

    # ---- signals ----------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._doing = "starting"
        self._strategy = cast(Sharded, trainer.strategy)

    def listen(self) -> None:
        """Take over the signals. Must come after Lightning has (it answers SIGTERM with a broadcast from within the
        handler, which waits for ever when the ranks are at different places) and before the first data are read."""
        for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._handlers[s] = signal.signal(s, self._note)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved = trainer.global_step
        self._began = time.monotonic()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for s, handler in self._handlers.items():
            signal.signal(s, handler)
        self._handlers = {}
        if self._deadline is not None:
            self._deadline.cancel()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, NoData):  # all ranks are here, in the same step
            if trainer.global_step > self._saved:
                _end_step(trainer)
                self.save(trainer)
            self.finish()
        if isinstance(trainer.strategy, Sharded):
            trainer.strategy.abandon_write(self.train.stop_within)
        self.teardown(trainer, pl_module, "fit")

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked_to_stop += 1
        self._asked = signal.Signals(number).name
        if self.asked_to_stop > 1:
            raise KeyboardInterrupt(f"{self._asked} twice: stopped without saving")
        seconds = self.train.stop_within
        self._deadline = threading.Timer(seconds, self._late)
        self._deadline.daemon = True
        self._deadline.start()
        if self._strategy.global_rank == 0:
            needs, slow = self._step_seconds + self._save_seconds, ""
            if needs > seconds:
                slow = f" (expected to take {needs:.0f} s, more than train.stop_within={seconds:g})"
            print(
                f"\n{self._asked}: finishing this step and saving{slow}; once more to stop without saving", flush=True
            )

    def _late(self) -> None:
        """The grace is over and the process still here: say what a kill would leave."""
        if self._strategy.global_rank:
            return
        kept = self._strategy.store.latest()
        print(
            f"{self._asked} was {self.train.stop_within:g} s ago (train.stop_within), and nothing is saved yet: "
            f"still {self._doing}. Killed now, the run would continue from {kept.name if kept else 'its beginning'}. "
            "Ask for an earlier signal (SLURM: --signal=USR1@SECONDS), or save more often (train.checkpoint_every).",
            flush=True,
        )

    # ---- steps ------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self._doing = f"in step {trainer.global_step}"

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        now = time.monotonic()
        self._step_seconds, self._began = now - self._began, now
        stop, failed = self._any_rank(trainer, self.asked_to_stop > 0, self._strategy.write_failed)
        if failed:
            self.finish()
        step = trainer.global_step
        self._doing = f"waiting for data before step {step}"
        last = step >= trainer.max_steps
        if stop or last or step % self.train.checkpoint_every == 0:
            self.save(trainer)
        # Lightning validates when it is to stop, so the last weights are validated whatever train.validate_every is.
        trainer.should_stop |= stop or last
        if stop and not last:
            self.finish()
            self.stopped = True
            if trainer.is_global_zero:
                print(f"saved {self._strategy.store.path(step)}. To continue: {self.resume_hint}", flush=True)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: StepBatch, *_: Any
    ) -> None:
        """A validation may take longer than there is time: it ends here, and the stop follows the next step. So it does
        where a store is away for too long, and the run ends at the next step if that has no data either."""
        self._doing = "validating"
        stop, away = self._any_rank(trainer, self.asked_to_stop > 0, bool(batch.away))
        if away:
            told = told_by_all(batch.away, trainer)
            if trainer.is_global_zero:
                print(f"no held-out figures of step {trainer.global_step}: {told}", flush=True)
        if stop or away:
            cast(ViperModule, pl_module).cut_validation()
            raise StopIteration  # how Lightning's loop is told that there are no more batches

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.should_stop and not self.stopped:  # also where a callback has ended the stage before its last step
            self.save(trainer)
        self.finish()

    def _any_rank(self, trainer: pl.Trainer, *flags: bool) -> list[bool]:
        """Signals and failures reach ranks at different steps; all must act on them after the same one."""
        if trainer.world_size == 1:
            return list(flags)
        shared = torch.tensor([float(f) for f in flags], device=trainer.strategy.root_device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return [bool(f) for f in shared.tolist()]

    # ---- writing ----------------------------------------------------------------------------------------

    def save(self, trainer: pl.Trainer) -> None:
        """Begin a checkpoint of this step, once the one before is on disk; with `checkpoint_async` off, also end it."""
        step = trainer.global_step
        if step == self._saved:
            return
        self._doing = "writing the checkpoint"
        began = time.monotonic()
        self.finish()
        with self.pause():
            trainer.save_checkpoint(self._strategy.store.path(step))
        self._saved = step
        if not self.train.checkpoint_async:
            self.finish()
        self._save_seconds = time.monotonic() - began

    def finish(self) -> None:
        """Wait for the checkpoint under way. Raises OSError, on all ranks alike, if it could not be written."""
        with self.pause():
            reason = self._strategy.finish_write()
        if reason is None:
            return
        store = self._strategy.store
        kept = store.latest()
        raise OSError(
            f"could not write the checkpoint of step {self._saved} under {store.folder}: {reason}. "
            + (f"{kept.name} is still valid; " if kept else "")
            + f"free space or choose another out=, then continue with: {self.resume_hint}"
        )


def _end_step(trainer: pl.Trainer) -> None:
    """Set Lightning's counters back from within a step to the end of the one before, from where it expects to go on."""
    loop = trainer.fit_loop.epoch_loop
    for tracker in (loop.batch_progress.total, loop.batch_progress.current):
        progress = cast(_ProcessedTracker, tracker)
        progress.ready = progress.started = progress.processed
        progress.completed = progress.processed - 1
    loop._batches_that_stepped -= 1
