"""Loader processes: parts of steps go to whichever is free, come back read, and the end of any of them is told.

Each has a pipe of its own, so that no lock can stay behind with one that is killed. A process whose pipe is closed ends
at once, whatever it is doing: so does the whole of them with the training process.
"""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler

import torch

from timeviper.datamodules.block import Block, receive
from timeviper.datamodules.plan import StepPlan
from timeviper.datamodules.reader import PackReader, plan_bytes
from timeviper.pack import StepBatch

SPAWN = multiprocessing.get_context("spawn")  # a fork would inherit the locks of torch's threads and process groups
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)
IN_HAND = 2  # jobs that a process has: the one that it reads, and the one that it goes on with


class LostLoader(RuntimeError):
    """A loader process is gone: what ended it, and what to do about it."""

    def __init__(self, pid: int | None, code: int | None) -> None:
        cause = f"it ended with exit code {code}" if code else "it ended of itself"
        if code and code < 0:
            cause = signal.Signals(-code).name
        advice = f", {_ADVICE[cause]}" if cause in _ADVICE else "."
        super().__init__(f"a loader process (pid {pid}) is gone: {cause}{advice}")


_DAMAGED = (
    "as happens when a damaged file brings a decoder down: `timeviper shards check` looks at each; data.workers=0 "
    "shows where."
)
_ADVICE = dict.fromkeys(("SIGSEGV", "SIGABRT", "SIGILL", "SIGBUS", "SIGFPE"), _DAMAGED) | {
    "SIGKILL": "as the system does when memory runs out (dmesg tells): lower data.workers, data.prefetch_gb or "
    "data.tokens_per_pack, or give the job more memory."
}


class Processes:
    """Some processes that read. One thread uses it, whichever."""

    def __init__(self, reader: PackReader, count: int) -> None:
        self._in_hand: dict[Connection, int] = {}  # jobs of each
        self._of: dict[Connection, BaseProcess] = {}
        self._sent = 0
        with _left_alone():
            for slot in range(count):
                ours, theirs = SPAWN.Pipe()
                process = SPAWN.Process(target=_work, args=(reader, slot, theirs), daemon=True)
                process.start()
                theirs.close()
                self._of[ours], self._in_hand[ours] = process, 0

    @property
    def is_free(self) -> bool:
        return min(self._in_hand.values()) < IN_HAND

    def begin(self, plan: StepPlan) -> int:
        """Give a part of a step to the one with least to do; its number."""
        to = min(self._in_hand, key=self._in_hand.__getitem__)
        number, self._sent = self._sent, self._sent + 1
        self._in_hand[to] += 1
        with suppress(BrokenPipeError, ConnectionResetError):  # `finished` tells
            to.send((number, plan))
        return number

    def finished(self, others: Connection) -> Iterator[tuple[int, StepBatch]]:
        """Wait until something is there to be told, here or in `others`: what has been read, with its number.

        Raises what reading it raised; LostLoader if a process is gone.
        """
        ready = set(wait([*self._of, *(process.sentinel for process in self._of.values()), others]))
        for pipe, process in self._of.items():
            if pipe in ready:
                yield self._told(pipe)
            elif process.sentinel in ready:  # and has left nothing to be told first
                raise self._lost(pipe)

    def _told(self, pipe: Connection) -> tuple[int, StepBatch]:
        try:
            told = pipe.recv()
            if isinstance(told, BaseException):
                raise told
            number, batch = receive(told, pipe)
        except (EOFError, ConnectionResetError):
            raise self._lost(pipe) from None
        self._in_hand[pipe] -= 1
        return number, batch

    def _lost(self, pipe: Connection) -> LostLoader:
        process = self._of[pipe]
        process.join(1.0)  # its pipe is closed before its end is known
        return LostLoader(process.pid, process.exitcode)

    def close(self) -> None:
        for pipe in self._of:
            pipe.close()
        for process in self._of.values():
            process.join(5.0)
            if process.is_alive():  # in a system call that does not return
                process.kill()


@contextmanager
def _left_alone() -> Iterator[None]:
    """Processes started within leave Ctrl-C, SIGTERM and SIGUSR1 to the training process, which stops them when it has
    saved. SLURM and terminals send a signal to all processes of a job, and one may come while they start."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # children inherit it; here it comes afterwards
    try:
        resource_tracker.ensure_running()  # else it is started with the first process, and unblocks some
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@atexit.register
def _end_with_this_process() -> None:
    """multiprocessing would ask them with SIGTERM, and wait for ever."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


# ---- in a loader process --------------------------------------------------------------------------------


def ignore_signals(_: int = 0) -> None:
    for stop in STOPS:
        signal.signal(stop, signal.SIG_IGN)


def _work(reader: PackReader, slot: int, pipe: Connection) -> None:
    ignore_signals()
    torch.set_num_threads(1)  # the processes are the parallelism
    if reader.reading:
        reader.reading.slot = slot
    jobs: queue.SimpleQueue[tuple[int, StepPlan]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, jobs), daemon=True).start()
    while True:
        number, plan = jobs.get()
        try:
            block = Block(plan_bytes(plan, reader.form.image_size))
            block.send(reader.read(plan, block.room), pipe, number)
            del block  # not kept until there is another job
            _give_back()
        except BrokenPipeError:
            os._exit(0)
        except BaseException as error:
            pipe.send(_sendable(error))


def _give_back() -> None:
    """Free memory, to the system. The planes of large frames, freed in another order than they came in, leave holes
    that the allocator keeps: without this a process grew by 150 MB in 200 steps of 4K, and with it by nothing, in no
    more time. Where the C library is not glibc there is nothing to call."""
    if _TRIM is not None:
        _TRIM(0)


def _listen(pipe: Connection, jobs: queue.SimpleQueue[tuple[int, StepPlan]]) -> None:
    """Take jobs as they come, so that nobody waits for a process that reads."""
    with suppress(EOFError, OSError):
        while True:
            jobs.put(pipe.recv())
    os._exit(0)


def _sendable(error: BaseException) -> BaseException:
    """An error nobody foresaw, with where it was raised."""
    error.add_note("".join(["in a loader process:\n", *traceback.format_exception(error)]))
    try:
        ForkingPickler.dumps(error)
    except Exception:
        return RuntimeError("\n".join(error.__notes__))
    return error
