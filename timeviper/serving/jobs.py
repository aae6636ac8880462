"""A request as the engine sees it, why it may be refused, and what is counted."""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from timeviper.serving.turns import Pause
from timeviper.serving.writing import Shown, Style


class QueueFullError(Exception):
    """As many requests wait as may."""

    def __init__(self, waiting: int, seconds: int) -> None:
        super().__init__(f"{waiting} requests are waiting, which is as many as may")
        self.seconds = seconds
        """After which to try again, from how long requests took lately."""


class TooLargeError(ValueError):
    """A request that the memory given to the engine will never hold."""


class EndedError(Exception):
    """The engine ends before the answer."""


@dataclass(eq=False)
class Job:
    """A request as the engine sees it. The callbacks run in the engine's thread, and must be quick."""

    read: Callable[[Pause], Any]
    """Reads the prompt, calling `pause` between pieces, and returns it as `Prefilled`."""
    style: Style | None
    """None: nothing is to be written, and what `read` returns is all."""
    num_bytes: int
    """That its states will take at most, over all of its answers."""
    on_text: Callable[[int, Shown], None] = lambda *_: None
    """Told the number of an answer and what was added to it."""
    on_start: Callable[[Any], None] = lambda _: None
    """Told what `read` has returned."""
    on_error: Callable[[Exception], None] = lambda _: None
    """Told why there will be no (more) text."""
    ready: Callable[[], bool] = lambda: True
    """Whether the next piece can be read without waiting for anything."""
    priority: int = 0
    """Lower ones come first."""
    gone: bool = False
    """Nobody wants it any more; see `Engine.abort`."""
    began: float = field(default_factory=time.monotonic)
    open_rows: int = 0
    tokens: int = 0
    """Written so far, over all answers."""


class Waiting:
    """The queue: by priority, then in the order in which they came. Any thread may call."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._jobs: list[tuple[int, int, Job]] = []
        self._order, self._lock = count(), threading.Lock()

    def __len__(self) -> int:
        return len(self._jobs)

    def check_room(self, seconds: float) -> None:
        """QueueFullError where there is no room. seconds: that a request takes lately; a tenth of the queue is waited
        for."""
        waiting = len(self._jobs)
        if waiting >= self.most:
            raise QueueFullError(waiting, min(max(math.ceil(seconds * waiting / 10), 1), 60))

    def put(self, job: Job) -> None:
        with self._lock:
            heapq.heappush(self._jobs, (job.priority, next(self._order), job))

    def take(self, num_bytes: int) -> Job | None:
        """The first, if it needs no more than so many bytes. Nobody overtakes it: a large one must come in some day."""
        with self._lock:
            if not self._jobs or self._jobs[0][2].num_bytes > num_bytes:
                return None
            return heapq.heappop(self._jobs)[2]

    def drop_gone(self) -> int:
        """Forget those whose client has gone; how many."""
        with self._lock:
            before = len(self._jobs)
            if any(job.gone for *_, job in self._jobs):
                self._jobs = [entry for entry in self._jobs if not entry[2].gone]
                heapq.heapify(self._jobs)
            return before - len(self._jobs)

    def clear(self) -> list[Job]:
        with self._lock:
            jobs, self._jobs = self._jobs, []
            return [job for *_, job in jobs]


@dataclass
class Counts:
    """What has happened so far."""

    steps: int = 0
    requests: int = 0
    finished: int = 0
    aborted: int = 0
    failed: int = 0
    refused: int = 0
    tokens: int = 0
    slices: int = 0
    prompts: int = 0
    most_rows: int = 0
