"""Writing many shards at once, by processes that each write whole shards; what was stopped continues.

Which sample is in which shard depends on the order of the samples alone, so any number of processes, any parts on
any machines, and any number of interruptions end in the same files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from timeviper.datamodules.ordered_pool import SPAWN, ordered
from timeviper.datamodules.shards.tar import ShardError
from timeviper.datamodules.shards.writer import Sample, write_shard, write_usable
from timeviper.files import TEMPORARY

AHEAD = 4  # shards taken for each process: fewer than usual, as their samples may be in memory


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
    left_out: list[ShardError] = field(default_factory=list)
    """Samples that cannot be used, where these are to be skipped."""


@dataclass(frozen=True)
class _Job:
    path: Path
    samples: list[Sample]
    skip: bool


def write_shards(
    samples: Iterable[Sample],
    out: str | Path,
    samples_per_shard: int = 256,
    name: str = "shard",
    *,
    workers: int = 1,
    part: tuple[int, int] = (1, 1),
    progress: Callable[[Written], None] | None = None,
    skip: bool = False,
) -> Written:
    """Write all samples as `out/<name>-00000.tar`, ... with their indexes; finished shards are kept.

    A run that was stopped continues when it is given the same samples again: give media as paths, so that those of
    finished shards are not even read. `part=(i, n)` writes every n-th shard, beginning with the i-th (from 1).
    Samples that cannot be used are left out if `skip`. Else they do not keep other shards from being written, and one
    ShardError at the end names them all.
    """
    folder, (i, n) = Path(out), part
    if not (1 <= i <= n and samples_per_shard >= 1 and workers >= 1):
        raise ValueError(
            f"part {i}/{n}, {samples_per_shard} samples a shard, {workers} workers: needed are 1 <= part <= parts, "
            "and numbers above 0"
        )
    _clear(folder, name, part)
    jobs = _jobs(iter(samples), folder, samples_per_shard, name, part, skip)
    report = progress or (lambda done: None)
    try:
        done = _write_all(jobs, workers, report)
    except BaseException:
        _clear(folder, name, part)
        raise
    if len(done.errors) == 1:
        raise done.errors[0]
    if done.errors:
        listed = "".join(f"\n{error}" for error in done.errors)
        raise ShardError(folder, f"{len(done.errors)} shards cannot be written:{listed}", kind=done.errors[0].kind)
    return done


def _clear(folder: Path, name: str, part: tuple[int, int]) -> None:
    """Remove what a killed run of this part has left."""
    for path in folder.glob(f"{name}-*{TEMPORARY}") if folder.is_dir() else ():
        number = re.match(rf"{re.escape(name)}-(\d+)\.", path.name)
        if number and int(number[1]) % part[1] == part[0] - 1:
            path.unlink(missing_ok=True)


def _jobs(
    samples: Iterator[Sample], folder: Path, samples_per_shard: int, name: str, part: tuple[int, int], skip: bool
) -> Iterator[_Job]:
    number = 0
    while held := list(islice(samples, samples_per_shard)):
        if number % part[1] == part[0] - 1:
            yield _Job(folder / f"{name}-{number:05d}.tar", held, skip)
        number += 1
    if not number:
        raise ValueError(f"no samples to write to {folder}")


def _write_all(jobs: Iterable[_Job], workers: int, report: Callable[[Written], object]) -> Written:
    """Every shard, by `workers` processes, or by this one where that is enough."""
    done, lock, copied = Written(), SPAWN.Lock(), SPAWN.RawArray("q", 2)

    def tell() -> Written:
        # What is copied is read without the lock: who held it may have been killed.
        so_far = replace(done, samples=max(done.samples, done.kept + copied[0]), bytes=copied[1])
        report(so_far)
        return so_far

    write = _write
    if workers == 1:
        write, workers = partial(_write, count=_counter(lock, copied, tell)), 0
    share = partial(_share, lock, copied)
    try:
        for _, new in ordered(write, jobs, workers, ahead=AHEAD, setup=share, meanwhile=tell):
            done.shards += new.shards
            done.samples += new.samples
            done.kept += new.kept
            done.errors += new.errors
            done.left_out += new.left_out
            tell()
    except BrokenProcessPool as error:
        raise OSError(
            "a process that wrote shards was killed, perhaps for want of memory; run again to continue, with "
            "fewer --workers"
        ) from error
    return tell()


_count: Callable[[int], None]  # of a worker: what it copies is told to the parent


def _share(lock: Any, copied: Any) -> None:
    global _count
    _count = _counter(lock, copied)


def _counter(lock: Any, copied: Any, then: Callable[[], object] = lambda: None) -> Callable[[int], None]:
    def count(size: int) -> None:
        with lock:
            copied[0] += 1
            copied[1] += size
        then()

    return count


def _write(job: _Job, count: Callable[[int], None] | None = None) -> Written:
    """One shard. Samples that cannot be used are an outcome, not the end."""
    was_there, left_out = job.path.exists(), []
    try:
        if job.skip:
            index, left_out = write_usable(job.path, job.samples, count or _count)
        else:
            index = write_shard(job.path, job.samples, count or _count)
    except ShardError as error:
        return Written(errors=[error])
    written = len(index.samples) if index else 0
    return Written(int(written > 0), written, kept=written if was_there else 0, left_out=left_out)
