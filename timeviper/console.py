"""Where tables and progress go: as wide as the terminal, or wide enough for every column when there is none."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import TextIO

from rich.console import Console

UNBOUNDED = 250  # characters; a file or a pipe has no width of its own
LIVE, PLAIN = 0.1, 10.0  # seconds between two states of a line of progress, on a terminal and elsewhere
WIPE = "\r\x1b[K"  # back to the start of the line, and nothing on it


def console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=UNBOUNDED)


class ProgressLine:
    """How far something is: a line rewritten in place on a terminal, elsewhere a new one now and then.

    A context manager, at whose end the last state always shows.
    """

    def __init__(self, to: TextIO | None = None, *, every: float | None = None, stays: bool = True) -> None:
        """to: stdout if not said. every: seconds between two states. stays: else nothing is shown at the end."""
        self.to, self.stays = to or sys.stdout, stays
        self.live = self.to.isatty()
        usual = LIVE if self.live else PLAIN
        self.every = usual if every is None else every
        self.begun = self.shown = time.monotonic()
        self._state, self._open = "", False

    @property
    def seconds(self) -> float:
        """Since the beginning; never 0."""
        return max(time.monotonic() - self.begun, 1e-3)

    def count(self, done: int, total: int, unit: str, *more: str, kept: int = 0) -> None:
        """`12/40 samples`, then `more`, then the time left. kept: how many of those done took no time."""
        state = "  ".join([f"{done:,}/{total:,} {unit}", *more])
        self(state + self.left(done - kept, total - done))

    def left(self, done: int, more: int) -> str:
        """The time that `more` will take at the speed so far, with spaces before it; empty if nothing tells."""
        return f"  left {timedelta(seconds=round(self.seconds / done * more))}" if done > 0 < more else ""

    def __call__(self, text: str) -> None:
        """Show a state, unless the one before was shown just now."""
        self._state = text
        if time.monotonic() - self.shown >= self.every:
            self._show()

    def end(self) -> None:
        """Show the last state; what is printed next begins a line of its own."""
        if self.stays:
            self._show()
        if self._open:
            self.to.write("\n" if self.stays else WIPE)
            self.to.flush()
            self._open = False

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _show(self) -> None:
        if self._state:
            self.to.write(WIPE + self._state if self.live else self._state + "\n")
            self.to.flush()
            self.shown, self._state, self._open = time.monotonic(), "", self.live
