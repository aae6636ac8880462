"""Loader processes: whole steps in the plan's order, read ahead as far as memory allows.

A step crosses from process to process as one block of shared memory. (Tensor by tensor, a step of many packs
would take a file descriptor each and soon reach the usual limit of 1,024.)
"""

from __future__ import annotations

import atexit
import io
import logging
import multiprocessing
import os
import pickle
import re
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from math import prod
from multiprocessing import resource_tracker
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from timeviper.datamodules.plan import StepPlan
from timeviper.datamodules.reader import PackReader
from timeviper.pack import StepBatch

log = logging.getLogger("timeviper")

SHARED = "/dev/shm"  # where Linux keeps shared memory; in a container often 64 MB
ALIGN = 16  # bytes; enough for every dtype
TOKEN_BYTES = 17  # ids and labels int64, kind uint8


class PlanSampler(Sampler[StepPlan]):
    """One rank's shares, in order. Without a length, so that Lightning counts steps and not epochs."""

    def __init__(self, plans: Callable[[], Iterable[StepPlan]], rank: int, world: int) -> None:
        self.plans, self.rank, self.world = plans, rank, world

    def __iter__(self) -> Iterator[StepPlan]:
        return (plan.share(self.rank, self.world) for plan in self.plans())


def make_loader(
    reader: PackReader,
    sampler: PlanSampler,
    workers: int,
    prefetch: int,
    pin: bool,
    *,
    step_bytes: int,
    prefetch_gb: float,
) -> DataLoader[StepBatch]:
    """A loader whose items are whole steps; several processes keep the order of the sampler.

    Each process reads up to `prefetch` steps ahead, fewer where all of them together would take more than
    `prefetch_gb`, given that a step takes at most `step_bytes`; at least one.
    """
    if workers:
        workers, prefetch = that_fit(workers, prefetch, step_bytes, prefetch_gb)
    return _Loader(
        _InOneBlock(reader) if workers else reader,
        sampler=sampler,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        worker_init_fn=ignore_signals,
        pin_memory=pin,
        # Forked loaders would inherit the locks of torch's threads and of the process group.
        multiprocessing_context="spawn" if workers else None,
    )


def plan_bytes(plan: StepPlan, image_size: int) -> int:
    """Bytes of a step, or a rank's share of one, when it is read."""
    items = [item for pack in plan.packs for item in pack]
    return sum(item.read * 3 * image_size**2 + item.tokens * TOKEN_BYTES for item in items)


def most_bytes(packs: int, tokens_per_pack: int, tokens_per_frame: int, vision_share: float, image_size: int) -> int:
    """Bytes of `packs` packs that hold nothing but frames; `vision_share` as in `CostModel`."""
    tokens = tokens_per_pack / vision_share
    return round(packs * tokens * (3 * image_size**2 / tokens_per_frame + TOKEN_BYTES))


def that_fit(workers: int, prefetch: int, step_bytes: int, prefetch_gb: float) -> tuple[int, int]:
    """Processes, and steps that each reads ahead, within the memory that may be taken and the one that is there."""
    step = max(step_bytes, 1)
    if workers * step > prefetch_gb * 1e9:
        log.warning(
            "each of %d loader processes reads a step of up to %s ahead, which is more than data.prefetch_gb = %g; "
            "lower data.workers or data.tokens_per_pack if memory runs short",
            workers,
            _size(step),
            prefetch_gb,
        )
    ahead = max(min(prefetch, int(prefetch_gb * 1e9 / step) // workers), 1)
    if not os.path.isdir(SHARED):
        return workers, ahead
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    there = int(shutil.disk_usage(SHARED).free / ranks / step)  # steps
    if there >= workers:
        return workers, min(ahead, there // workers)
    log.warning(
        "%s has %s free, and a step of each of %d loader processes on each of %d ranks may take up to %s: reading in "
        "%s; give the container more shared memory (docker run --shm-size=...), or lower data.workers or "
        "data.tokens_per_pack",
        SHARED,
        _size(shutil.disk_usage(SHARED).free),
        workers,
        ranks,
        _size(step),
        f"{there} processes" if there else "the training process",
    )
    return there, 1


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class _Loader(DataLoader[StepBatch]):
    """Its processes leave Ctrl-C, SIGTERM and SIGUSR1 to the training process, which stops them when it has saved.
    SLURM and terminals send a signal to all processes of a job, and one may come while they start."""

    def __iter__(self) -> Any:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # children inherit it; here it comes afterwards
        try:
            if self.num_workers:
                resource_tracker.ensure_running()  # else it is started with the first process, and unblocks some
                signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
            found = super().__iter__()
            return _Watched(found) if self.num_workers else found
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Watched:
    """Items of loader processes.

    When one is gone, torch may find out from a closed socket and say only that. Here it is always torch's own
    "DataLoader worker (pid N) is killed by signal: ...", which `lost_loader` reads.
    """

    def __init__(self, items: Any) -> None:
        self.items = items

    def __iter__(self) -> Iterator[StepBatch]:
        return self

    def __next__(self) -> StepBatch:
        try:
            return next(self.items)
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
            for process in () if _LOST.search(str(error)) else self.items._workers:
                process.join(0.5)  # its socket may be closed before its end is known
                if code := process.exitcode:
                    cause = f"is killed by signal: {signal.Signals(-code).name}." if code < 0 else _exit(code)
                    raise RuntimeError(f"DataLoader worker (pid {process.pid}) {cause}") from error
            raise


def _exit(code: int) -> str:
    return f"exited unexpectedly with exit code {code}."


_LOST = re.compile(
    r"DataLoader worker \(pid.*?(\d+)\) (?:is killed by signal: (.*?)\.|exited unexpectedly(.*))", re.DOTALL
)
_CAUSES = {
    "kill": "as the system does when memory runs out (dmesg tells): lower data.workers, data.prefetch_gb or "
    "data.tokens_per_pack, or give the job more memory.",
    "bus error|sigbus": "as happens when shared memory runs out: give the container more (docker run --shm-size=...), "
    "or lower data.workers or data.tokens_per_pack.",
    "segmentation|sigsegv|abort|sigabrt|illegal|sigill": "as happens when a damaged file brings a decoder down: "
    "`timeviper shards check` looks at each; data.workers=0 shows where.",
}


def lost_loader(error: BaseException) -> str | None:
    """What has ended a loader process, and what to do about it; None if the error says nothing of one."""
    found = _LOST.search(str(error))
    if found is None:
        return None
    code = re.search(r"exit code \d+", found[3] or "")
    cause = found[2] or (f"it ended with {code[0]}" if code else "it ended of itself")
    advice = next((advice for words, advice in _CAUSES.items() if re.search(words, cause, re.IGNORECASE)), "")
    read = " ".join(getattr(error, "__notes__", []))
    return " ".join(
        f"a loader process (pid {found[1]}) is gone: {cause}{', ' if advice else '. '}{advice} {read}".split()
    )


def ignore_signals(_: int) -> None:
    for stop in STOPS:
        signal.signal(stop, signal.SIG_IGN)


@atexit.register
def _end_with_this_process() -> None:
    """multiprocessing would ask them with SIGTERM, and wait for ever."""
    if left := [child for child in multiprocessing.active_children() if child.daemon]:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would report them as lost
        for child in left:
            child.kill()


class _InOneBlock(Dataset[StepBatch]):
    """The reader, in a loader process: what it returns arrives in the training process as a `StepBatch` again."""

    def __init__(self, reader: PackReader) -> None:
        self.reader = reader

    def __getitem__(self, plan: StepPlan) -> Any:
        return _Block(self.reader[plan])


class _Block:
    """A `StepBatch` as one tensor with the bytes of all its tensors, and the rest of it; arrives as a `StepBatch`."""

    def __init__(self, batch: StepBatch) -> None:
        rest = io.BytesIO()
        pickler = _Pickler(rest, pickle.HIGHEST_PROTOCOL)
        pickler.dump(batch)
        self.rest = rest.getvalue()
        self.block = torch.empty(0, dtype=torch.uint8)
        self.block.set_(torch.UntypedStorage._new_shared(max(pickler.end, 1)))  # type: ignore[call-overload]
        for tensor, place in pickler.found:
            _view(self.block, place).copy_(tensor)

    def __reduce__(self) -> tuple[Callable[[bytes, Tensor], StepBatch], tuple[bytes, Tensor]]:
        return _unpack, (self.rest, self.block)


Place = tuple[torch.dtype, tuple[int, ...], int]  # of a tensor in the block: dtype, shape, first byte


class _Pickler(pickle.Pickler):
    """Leaves tensors out, wherever they are, and gives each a place."""

    def __init__(self, file: io.BytesIO, protocol: int) -> None:
        super().__init__(file, protocol)
        self.found: list[tuple[Tensor, Place]] = []
        self.end = 0

    def persistent_id(self, obj: Any) -> Place | None:
        if not isinstance(obj, Tensor):
            return None
        place = (obj.dtype, tuple(obj.shape), self.end)
        self.found.append((obj, place))
        self.end += -(-obj.nbytes // ALIGN) * ALIGN
        return place


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, block: Tensor) -> None:
        super().__init__(file)
        self.block = block

    def persistent_load(self, pid: Place) -> Tensor:
        return _view(self.block, pid)


def _view(block: Tensor, place: Place) -> Tensor:
    dtype, shape, start = place
    return block[start : start + prod(shape) * dtype.itemsize].view(dtype).view(shape)


def _unpack(rest: bytes, block: Tensor) -> StepBatch:
    return _Unpickler(io.BytesIO(rest), block).load()
