"""A pool of processes that keeps the order of its jobs and outlives a crash of one of them."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

AHEAD = 8  # jobs waiting for each worker: enough to be busy behind a slow one, few enough for memory


def ordered(
    function: Callable[[Job], Result],
    jobs: Iterable[Job],
    workers: int,
    crashed: Callable[[Job], Result],
) -> Iterator[tuple[Job, Result]]:
    """Each job with its result, in the order of `jobs`; 0 workers: in this process, one after the other.

    A job whose process dies (a decoder that crashes, memory that runs out) gets the result of `crashed`, and
    the others go on. Errors that `function` raises are raised here.
    """
    if workers < 1:
        for job in jobs:
            yield job, function(job)
        return
    left = iter(jobs)
    waiting: deque[tuple[Job, Future[Result]]] = deque()
    pool = _pool(workers)
    try:
        while True:
            while len(waiting) < AHEAD * workers and (job := next(left, None)) is not None:
                waiting.append((job, _submit(pool, function, job)))
            if not waiting:
                return
            job, future = waiting.popleft()
            try:
                result = future.result()
            except BrokenProcessPool:
                # Which of the running jobs it was is not told: this one gets a process of its own, the rest wait.
                pool.shutdown(cancel_futures=True)
                result = _alone(function, job, crashed)
                pool = _pool(workers)
                waiting = deque((other, _again(pool, function, other, future)) for other, future in waiting)
            yield job, result
    finally:
        pool.shutdown(cancel_futures=True)


def _pool(workers: int) -> ProcessPoolExecutor:
    # A fork of a process with threads may hang.
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _submit(pool: ProcessPoolExecutor, function: Callable[[Job], Result], job: Job) -> Future[Result]:
    try:
        return pool.submit(function, job)
    except BrokenProcessPool as error:  # noticed before a result was asked for
        future: Future[Result] = Future()
        future.set_exception(error)
        return future


def _again(
    pool: ProcessPoolExecutor, function: Callable[[Job], Result], job: Job, future: Future[Result]
) -> Future[Result]:
    """What is done stays done."""
    lost = future.cancelled() or not future.done() or isinstance(future.exception(), BrokenProcessPool)
    return _submit(pool, function, job) if lost else future


def _alone(function: Callable[[Job], Result], job: Job, crashed: Callable[[Job], Result]) -> Result:
    with _pool(1) as pool:
        try:
            pool.submit(_arrive, function).result()
        except BrokenProcessPool as error:
            raise OSError("worker processes end as soon as they start: their message stands above") from error
        try:
            return pool.submit(function, job).result()
        except BrokenProcessPool:
            return crashed(job)


def _arrive(function: object) -> None:
    """Done once a process is up and has imported what the function needs."""
