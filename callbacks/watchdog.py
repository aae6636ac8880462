"""Says where a rank hangs: which step, which samples are being read, and where each thread of the process is."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl

from timeviper.config import WatchdogConfig

FIRST = 5.0  # a start loads weights, starts loader processes and compiles: it may take so many times as long
USUAL, MARGIN = 600.0, 5.0  # seconds that no step takes unless it is planned to; how much longer one may take
AWAY = 1.5  # times as long as a store is waited for, and then the run has ended by itself
GRACE = 10.0  # seconds between the message and `abort`: time for the other ranks to say where they are
EXIT = 75  # exit code of an abort: sysexits' "temporary failure", the same command may continue


class Watchdog(pl.Callback):
    """A thread of each rank that looks at what the rank is doing. Must be the last callback of the list.

    Only steps and waits for data are timed: validation, checkpoints and bundles take as long as they take.
    """

    def __init__(
        self, config: WatchdogConfig, at_hand: Callable[[int], str], planned: float = 0.0, patience: float = 0.0
    ) -> None:
        """at_hand: a sentence on the samples that this rank reads for a step; called only for a message. planned:
        seconds that a step is expected to take, by which the limit goes where the recipe names none. patience: seconds
        for which a store may be away, which is no hanging."""
        self.config, self.at_hand = config, at_hand
        usual = max(USUAL, MARGIN * planned, AWAY * patience)
        self.seconds = usual if config.seconds is None else config.seconds
        self._began = self._longest = 0.0
        self._what, self._step, self._since, self._limit = "", 0, 0.0, 0.0
        self._paused = 0
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    # ---- what the rank is doing -------------------------------------------------------------------------

    def _does(self, what: str, step: int) -> None:
        """Empty `what`: nothing that is timed."""
        self._what, self._step, self._since = what, step, time.monotonic()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """For work within a step that may take long."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1
            self._since = time.monotonic()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.seconds:
            return
        self._rank, self._limit = trainer.global_rank, self.seconds * FIRST
        self._does("starting, before", trainer.global_step)  # the first data are read before `on_train_start`
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self._does("in", trainer.global_step)
        self._began = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        over = trainer.should_stop or trainer.global_step >= trainer.max_steps
        self._longest = max(self._longest, time.monotonic() - self._began)
        self._limit = self.seconds if self.config.seconds is not None else max(self.seconds, MARGIN * self._longest)
        # Not "of" the step: the data that are waited for may be those of the step after it.
        self._does("" if over else "waiting for data before", trainer.global_step)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._before, self._what = self._what, ""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._does(self._before, trainer.global_step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stop()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.stop()

    def stop(self) -> None:
        self._end.set()

    # ---- the thread -------------------------------------------------------------------------------------

    def _watch(self) -> None:
        told: float | None = None
        while not self._end.wait(min(self.seconds / 10, 5.0)):
            what, since = self._what, self._since
            late = bool(what) and not self._paused and time.monotonic() - since > self._limit
            if late and since != told:
                told = since
                self._tell(what, time.monotonic() - since)
                if self.config.abort and not self._end.wait(GRACE) and self._since == since:
                    print(f"rank {self._rank}: aborted (train.watchdog.abort)", file=sys.stderr, flush=True)
                    os._exit(EXIT)

    def _tell(self, what: str, seconds: float) -> None:
        try:
            samples = self.at_hand(self._step)
        except Exception as error:  # the message must come whatever state the run is in
            samples = f"Its samples are not known ({error})"
        wish = "the process ends" if self.config.abort else "it waits on (train.watchdog.abort=true would end it)"
        print(
            f"watchdog: rank {self._rank} has been {what} step {self._step} for {seconds:.0f} s "
            f"(train.watchdog.seconds={self._limit:g}); {wish}. {samples}. Its threads:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
