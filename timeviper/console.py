"""Where tables and progress go: as wide as the terminal, or wide enough for every column when there is none."""

from __future__ import annotations

import math
import sys
import time

from rich.console import Console

UNBOUNDED = 250  # characters; a file or a pipe has no width of its own


def console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=UNBOUNDED)


class LiveLine:
    """A line of progress: rewritten in place on a terminal, elsewhere a new line now and then."""

    def __init__(self) -> None:
        self.live = sys.stdout.isatty()
        self.shown = -math.inf

    def __call__(self, text: str, last: bool = False) -> None:
        """Show a state; the `last` one always, the others as often as one can read."""
        now = time.monotonic()
        if not last and now - self.shown < (0.1 if self.live else 10.0):
            return
        self.shown = now
        sys.stdout.write(f"\r\x1b[K{text}{chr(10) * last}" if self.live else f"{text}\n")
        sys.stdout.flush()
