"""Processes for many jobs: results in the order of the jobs, and no process that outlives this one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from itertools import islice
from multiprocessing.connection import Connection
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")
Setup = Callable[[], object] | None

SPAWN = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
AHEAD = 8  # jobs taken for each worker: enough to be busy behind a slow one, few enough for memory
EVERY = 0.5  # seconds between two calls of `meanwhile`
GRACE = 5.0  # seconds that a job which is cut short may take to clear up


def ordered(
    function: Callable[[Job], Result],
    jobs: Iterable[Job],
    workers: int,
    crashed: Callable[[Job], Result] | None = None,
    *,
    ahead: int = AHEAD,
    setup: Setup = None,
    meanwhile: Callable[[], object] | None = None,
) -> Iterator[tuple[Job, Result]]:
    """Each job with its result, in the order of `jobs`; 0 workers: in this process, one after the other.

    A job whose process dies (a decoder that crashes, memory that runs out) gets the result of `crashed`, and
    the others go on; without `crashed`, BrokenProcessPool is raised. Errors that `function` raises are raised here,
    when it is their job's turn. Where the iteration ends early, jobs under way are cut short by a SystemExit.

    ahead: jobs taken for each worker. setup: called in every process that is started. meanwhile: called now and
    then while a result is waited for.
    """
    if workers < 1:
        for job in jobs:
            yield job, function(job)
        return
    left = iter(jobs)
    taken: deque[tuple[Job, Future[Result]]] = deque()
    with ExitStack() as running:
        pool = running.enter_context(_Pool(workers, setup))
        while True:
            taken.extend((job, pool.begin(function, job)) for job in islice(left, ahead * workers - len(taken)))
            if not taken:
                return
            job, future = taken.popleft()
            while meanwhile and not wait([future], EVERY).done:
                meanwhile()
            try:
                result = future.result()
            except BrokenProcessPool:
                if crashed is None:
                    raise
                # Which of the running jobs it was is not told: this one gets a process of its own, the rest wait.
                pool.lifeline.close()
                running.close()
                result = _alone(function, job, crashed, setup)
                pool = running.enter_context(_Pool(workers, setup))
                taken = deque((job, pool.begin(function, job) if _lost(f) else f) for job, f in taken)
            yield job, result


class _Pool(ProcessPoolExecutor):
    """Its processes end when `lifeline` is closed, which the end of this process does, too, whatever its cause."""

    def __init__(self, workers: int, setup: Setup) -> None:
        theirs, self.lifeline = SPAWN.Pipe(duplex=False)
        super().__init__(workers, SPAWN, _begin, (theirs, setup))

    def begin(self, function: Callable[[Job], Result], job: Job) -> Future[Result]:
        # A process that is being started must not take a Ctrl-C for its own; it inherits what is blocked here.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return self.submit(_work, function, job)
        except BrokenProcessPool as error:  # noticed before a result was asked for
            future: Future[Result] = Future()
            future.set_exception(error)
            return future
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        if exc_type:
            self.lifeline.close()
        self.shutdown(cancel_futures=True)


def _lost(future: Future[Result]) -> bool:
    """What is done stays done."""
    return future.cancelled() or not future.done() or isinstance(future.exception(), BrokenProcessPool)


def _alone(function: Callable[[Job], Result], job: Job, crashed: Callable[[Job], Result], setup: Setup) -> Result:
    with _Pool(1, setup) as pool:
        try:
            pool.begin(_arrive, function).result()
        except BrokenProcessPool as error:
            raise OSError("worker processes end as soon as they start: their message stands above") from error
        try:
            return pool.begin(function, job).result()
        except BrokenProcessPool:
            return crashed(job)


def _arrive(function: object) -> None:
    """Done once a process is up and has imported what the function needs."""


# ---- in a worker ----------------------------------------------------------------------------------------


def _begin(lifeline: Connection, setup: Setup) -> None:
    """Ctrl-C is the parent's business, and without it there is nothing to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main = threading.get_ident()

    def leave_with_parent() -> None:
        try:
            lifeline.poll(None)
        finally:
            signal.pthread_kill(main, signal.SIGTERM)
            time.sleep(GRACE)
            os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
    if setup:
        setup()


def _work(function: Callable[[Job], Result], job: Job) -> Result:
    signal.signal(signal.SIGTERM, _cut_short)
    try:
        return function(job)
    except SystemExit:  # the executor would take it for an outcome, and go on to the next job
        os._exit(1)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _cut_short(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the executor asks, too; the job must clear up in peace
    raise SystemExit
