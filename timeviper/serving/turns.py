"""A long computation that goes on only while it is its turn.

What reads a prompt is written as one function (frames in, state out). An engine that writes answers meanwhile lets it
run piece by piece: the function calls `pause` between two pieces, and there waits until it is let on. It has a thread
of its own for its stack alone: whoever calls `step` waits as long as it runs, so that one of both computes at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
Pause = Callable[[], None]


class Stopped(BaseException):
    """Raised by `pause` in a computation that nobody wants any more."""


class Turns(Generic[T]):
    """`work(pause)` in turns."""

    def __init__(self, work: Callable[[Pause], T]) -> None:
        self._work, self._stopped = work, False
        self._mine, self._theirs = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self.ended = False

    def step(self) -> bool:
        """Let it go on to its next pause or its end; whether that was the end. Raises what it raises."""
        if self.ended:
            return True
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="timeviper-prompt", daemon=True)
            self._thread.start()
        else:
            self._theirs.release()
        self._mine.acquire()
        if self.ended and self._error is not None:
            raise self._error
        return self.ended

    @property
    def result(self) -> T:
        """What it has returned, once it has ended."""
        return self._result

    def close(self) -> None:
        """End it at its pause, without a result."""
        self._stopped = True
        if self._thread is not None and not self.ended:
            self._theirs.release()
            self._mine.acquire()
        self.ended = True

    def _run(self) -> None:
        try:
            self._result = self._work(self._pause)
        except Stopped:
            pass
        except BaseException as error:
            self._error = error
        self.ended = True
        self._mine.release()

    def _pause(self) -> None:
        self._mine.release()
        self._theirs.acquire()
        if self._stopped:
            raise Stopped
