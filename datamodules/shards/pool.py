"""Writing many shards at once, by processes that each write whole shards; what was stopped continues.

Which sample is in which shard depends on the order of the samples alone, so any number of processes, any parts on
any machines, and any number of interruptions end in the same files.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from timeviper.datamodules.shards.tar import ShardError
from timeviper.datamodules.shards.writer import Sample, write_shard
from timeviper.files import TEMPORARY

EVERY = 0.5  # seconds between two reports of progress
AHEAD = 2  # shards that wait for each process


@dataclass
class Written:
    """How far the writing of one part has come."""

    shards: int = 0
    samples: int = 0
    """Those in whole shards, and those copied into shards that are not whole yet."""
    bytes: int = 0
    """Copied by this run."""
    kept: int = 0
    """Samples of shards that were there already."""
    errors: list[ShardError] = field(default_factory=list)


@dataclass(frozen=True)
class _Job:
    path: Path
    samples: list[Sample]


def write_shards(
    samples: Iterable[Sample],
    out: str | Path,
    samples_per_shard: int = 256,
    name: str = "shard",
    *,
    workers: int = 1,
    part: tuple[int, int] = (1, 1),
    progress: Callable[[Written], None] | None = None,
) -> Written:
    """Write all samples as `out/<name>-00000.tar`, ... with their indexes; finished shards are kept.

    A run that was stopped continues when it is given the same samples again: give media as paths, so that those of
    finished shards are not even read. `part=(i, n)` writes every n-th shard, beginning with the i-th (from 1).
    Samples that cannot be used do not keep other shards from being written; one ShardError at the end names them all.
    """
    folder, (i, n) = Path(out), part
    if not (1 <= i <= n and samples_per_shard >= 1 and workers >= 1):
        raise ValueError(
            f"part {i}/{n}, {samples_per_shard} samples a shard, {workers} workers: needed are 1 <= part <= parts, "
            "and numbers above 0"
        )
    _clear(folder, name, part)
    jobs = _jobs(iter(samples), folder, samples_per_shard, name, part)
    report = progress or (lambda done: None)
    try:
        done = _alone(jobs, report) if workers == 1 else _side_by_side(jobs, workers, report)
    except BaseException:
        _clear(folder, name, part)
        raise
    errors = sorted(done.errors, key=lambda error: error.shard)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        listed = "".join(f"\n{error}" for error in errors)
        raise ShardError(folder, f"{len(errors)} shards cannot be written:{listed}", kind=errors[0].kind)
    return done


def _clear(folder: Path, name: str, part: tuple[int, int]) -> None:
    """Remove what a killed run of this part has left."""
    for path in folder.glob(f"{name}-*{TEMPORARY}") if folder.is_dir() else ():
        number = re.match(rf"{re.escape(name)}-(\d+)\.", path.name)
        if number and int(number[1]) % part[1] == part[0] - 1:
            path.unlink(missing_ok=True)


def _jobs(
    samples: Iterator[Sample], folder: Path, samples_per_shard: int, name: str, part: tuple[int, int]
) -> Iterator[_Job]:
    number = 0
    while held := list(islice(samples, samples_per_shard)):
        if number % part[1] == part[0] - 1:
            yield _Job(folder / f"{name}-{number:05d}.tar", held)
        number += 1
    if not number:
        raise ValueError(f"no samples to write to {folder}")


def _alone(jobs: Iterable[_Job], report: Callable[[Written], None]) -> Written:
    """Every shard in this process."""
    done, copied = Written(), [0, 0]

    def count(size: int) -> None:
        copied[:] = copied[0] + 1, copied[1] + size
        report(_so_far(done, copied))

    for job in jobs:
        done = _sum([done, _write(job, count)])
        report(_so_far(done, copied))
    return _so_far(done, copied)


def _so_far(done: Written, copied: Sequence[int]) -> Written:
    """What is whole, with the samples and bytes that have been copied."""
    return replace(done, samples=max(done.samples, done.kept + copied[0]), bytes=copied[1])


def _write(job: _Job, copied: Callable[[int], None]) -> Written:
    """One shard. Samples that cannot be used are an outcome, not the end."""
    kept = len(job.samples) if job.path.exists() else 0
    try:
        write_shard(job.path, job.samples, copied)
    except ShardError as error:
        return Written(errors=[error])
    return Written(shards=1, samples=len(job.samples), kept=kept)


def _sum(parts: Sequence[Written]) -> Written:
    counts = {name: sum(getattr(p, name) for p in parts) for name in ("shards", "samples", "kept")}
    return Written(**counts, errors=[error for p in parts for error in p.errors])


def _side_by_side(jobs: Iterator[_Job], workers: int, report: Callable[[Written], None]) -> Written:
    """Shards in `workers` processes, which end with this one, whatever ends it."""
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    lifeline, held = context.Pipe(duplex=False)
    copied = context.RawArray("q", 2)  # samples, bytes; read here without their lock: who held it may have been killed
    begin = (lifeline, context.Lock(), copied)
    done, running = Written(), set[Future[Written]]()
    with held, ProcessPoolExecutor(workers, context, _begin, begin) as pool:
        try:
            while True:
                with _uninterrupted():  # a process that is being started must not take a Ctrl-C for its own
                    for job in islice(jobs, AHEAD * workers - len(running)):
                        running.add(pool.submit(_write_counted, job))
                if not running:
                    return _so_far(done, list(copied))
                ended, running = wait(running, EVERY, FIRST_COMPLETED)
                done = _sum([done, *(future.result() for future in ended)])
                report(_so_far(done, list(copied)))
        except BrokenProcessPool as error:
            raise OSError(
                "a process that wrote shards was killed, perhaps for want of memory; run again to continue, with "
                "fewer --workers"
            ) from error
        finally:
            if running:
                held.close()
                pool.shutdown(cancel_futures=True)


_counts: tuple[Any, Any]  # of a worker: the lock, and the numbers that the parent reads


def _begin(lifeline: Connection, lock: Any, copied: Any) -> None:
    """Of a worker: Ctrl-C is the parent's business, and without it there is nothing to do."""
    global _counts
    _counts = lock, copied
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def leave_with_parent() -> None:
        try:
            lifeline.poll(None)
        finally:
            os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


def _write_counted(job: _Job) -> Written:
    lock, copied = _counts

    def count(size: int) -> None:
        with lock:
            copied[0] += 1
            copied[1] += size

    return _write(job, count)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the end of the block; processes that are started in it never see one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
