"""One thread that owns the model: prompts are read in slices between the steps in which all answers grow by a token.

A request waits in a queue of bounded length until the bytes that it is predicted to keep fit the budget; then its
prompt is read piece by piece, a piece of one prompt after each step, so that answers under way are not held up; then
its answers join those that are being written (`answers.py`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Any

import torch

from timeviper.kernels import dispatch
from timeviper.model.viper import TimeViper
from timeviper.serving.answers import Answers
from timeviper.serving.jobs import Counts, EndedError, Job, QueueFullError, TooLargeError, Waiting
from timeviper.serving.turns import Turns
from timeviper.tokenizer import Tokenizer

log = logging.getLogger("timeviper")

IDLE = 0.5  # seconds after which an idle engine looks around unasked


class Engine:
    """The thread, its queue and its rows."""

    def __init__(
        self,
        model: TimeViper,
        tokenizer: Tokenizer,
        *,
        width: int = 16,
        queue: int = 256,
        prompts: int = 4,
        num_bytes: int = 1 << 40,
        kernel: dict[str, str] | None = None,
    ) -> None:
        """width: rows of a step; more answers than that take several. queue: requests that wait at most. prompts: that
        are read in turns at a time. num_bytes: of states of all requests that are read or written."""
        self.prompts, self.budget = prompts, num_bytes
        self.counts, self.held = Counts(), 0
        self.answers = Answers(model, tokenizer, width, self.counts, self._leave)
        self._kernel = kernel
        self._queue = Waiting(queue)
        self._reading: deque[tuple[Job, Turns[Any]]] = deque()
        self._wake, self._stop = threading.Event(), False
        self._seconds = 1.0  # that a request takes lately
        self._step_seconds = 0.0  # that the last step took: half of the time is for prompts
        self._thread = threading.Thread(target=self._run, name="timeviper-engine", daemon=True)

    def start(self) -> Engine:
        self._thread.start()
        return self

    def stop(self) -> None:
        """End the thread; whoever waits is told that it has ended."""
        self._stop = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def wake(self) -> None:
        """Something that a prompt waited for has come."""
        self._wake.set()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def rows(self) -> int:
        """Answers that are being written."""
        return len(self.answers.rows)

    @property
    def reading(self) -> int:
        return len(self._reading)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def check_room(self) -> None:
        """QueueFullError where `submit` would refuse any request."""
        try:
            self._queue.check_room(self._seconds)
        except QueueFullError:
            self.counts.refused += 1
            raise

    def submit(self, job: Job) -> None:
        """Queue a request. Raises QueueFullError, and TooLargeError for one that can never be taken."""
        if job.num_bytes > self.budget:
            raise TooLargeError(
                f"its states would take {job.num_bytes / 1e6:,.0f} MB, and the server has {self.budget / 1e6:,.0f} MB "
                "for all: take fewer frames or a shorter answer"
            )
        self.check_room()
        self._queue.put(job)
        self.counts.requests += 1
        self._wake.set()

    def abort(self, job: Job) -> None:
        """Forget a request: its rows are free before the next step but one."""
        job.gone = True
        self._wake.set()

    # ---- the thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        if self._kernel is not None:
            dispatch.configure(**self._kernel)
        with torch.inference_mode():
            while not self._stop:
                try:
                    busy = self.turn()
                except Exception as error:  # of no request in particular: the next ones are answered
                    log.exception("the engine failed: the requests under way have ended")
                    self._end_all(error)
                    busy = True
                if not busy:
                    self._wake.wait(IDLE)
        self._end_all(EndedError("the server is going down"))

    def turn(self) -> bool:
        """One round: who has gone leaves, who fits comes in, slices of prompts for as long as the step before took (one
        at least), a token of every answer. Whether there was anything to do."""
        self._wake.clear()
        self._drop_gone()
        until, worked = time.monotonic() + self._step_seconds, False
        while True:
            self._admit()
            if not self._read_a_slice():
                break
            worked = True
            if time.monotonic() >= until:
                break
        began = time.monotonic()
        worked |= self.answers.step()
        self._step_seconds = time.monotonic() - began
        return worked

    def _drop_gone(self) -> None:
        self.counts.aborted += self._queue.drop_gone()
        for job, turns in [pair for pair in self._reading if pair[0].gone]:
            turns.close()
            self._reading.remove((job, turns))
            self._leave(job, "aborted")
        self.answers.drop_gone()

    def _admit(self) -> None:
        while len(self._reading) < self.prompts:
            job = self._queue.take(self.budget - self.held)
            if job is None:
                return
            self.held += job.num_bytes
            self._reading.append((job, Turns(job.read)))

    def _read_a_slice(self) -> bool:
        """Of the first prompt that has its next piece; it goes to the end of the line."""
        for _ in range(len(self._reading)):
            job, turns = self._reading.popleft()
            try:
                if not job.ready():
                    self._reading.append((job, turns))
                    continue
                self.counts.slices += 1
                if turns.step():
                    self._begin(job, turns.result)
                else:
                    self._reading.append((job, turns))
            except Exception as error:
                self._fail(job, error)
            return True
        return False

    def _begin(self, job: Job, result: Any) -> None:
        """What follows a prompt that has been read."""
        job.on_start(result)
        if job.style is None:
            self._leave(job, "finished")
        else:
            self.answers.join(job, job.style, result)

    # ---- ends -----------------------------------------------------------------------------------------------

    def _leave(self, job: Job, how: str) -> None:
        self.held -= job.num_bytes
        setattr(self.counts, how, getattr(self.counts, how) + 1)
        if how == "finished":
            self._seconds += 0.1 * (time.monotonic() - job.began - self._seconds)

    def _fail(self, job: Job, error: Exception) -> None:
        self.answers.drop(job)
        self._leave(job, "failed")
        job.on_error(error)

    def _end_all(self, error: Exception) -> None:
        jobs = {*self.answers.clear(), *(job for job, _ in self._reading), *self._queue.clear()}
        for _, turns in self._reading:
            turns.close()
        self.held = 0
        self._reading.clear()
        for job in jobs:
            job.on_error(error)
