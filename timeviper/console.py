"""Where tables and progress go: as wide as the terminal, or wide enough for every column when there is none."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from datetime import timedelta
from typing import Any, TextIO

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table

UNBOUNDED = 250  # characters; a file or a pipe has no width of its own
LIVE, PLAIN = 0.1, 10.0  # seconds between two states of a line of progress, on a terminal and elsewhere
WIPE = "\r\x1b[K"  # back to the start of the line, and nothing on it


def table(*columns: str, title: str | None = None) -> Table:
    """A table without walls, for 80 columns; what is too long goes on in the next line, whole."""
    made = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left")
    for name in columns:
        made.add_column(name, overflow="fold")
    return made


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
        self._apart: dict[str, TextIO] = {}

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
            self._leave("\n" if self.stays else WIPE)
        for name, stream in self._apart.items():
            setattr(sys, name, stream)
        self._apart = {}

    def step_aside(self) -> None:
        """Wipe the line for a message; it comes again with the next state."""
        if self._open:
            self._leave(WIPE)

    def _leave(self, last: str) -> None:
        self.to.write(last)
        self.to.flush()
        self._open = False

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _show(self) -> None:
        if not self._state:
            return
        if self.live and not self._apart:
            self._apart = {name: stream for name in ("stdout", "stderr") if (stream := getattr(sys, name)).isatty()}
            for name, stream in self._apart.items():
                setattr(sys, name, _Apart(stream, self))
        self.to.write(WIPE + fitted(self._state, columns(self.to)) if self.live else self._state + "\n")
        self.to.flush()
        self.shown, self._state, self._open = time.monotonic(), "", self.live


class _Apart:
    """stdout or stderr while a line of progress is on the terminal: what is written begins on a line of its own."""

    def __init__(self, stream: TextIO, line: ProgressLine) -> None:
        self._stream, self._line = stream, line

    def write(self, text: str) -> int:
        self._line.step_aside()
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def columns(to: TextIO) -> int:
    """Characters in a line of a terminal."""
    try:
        found = os.get_terminal_size(to.fileno()).columns
    except (OSError, ValueError):  # no terminal behind it, or nothing at all
        found = 0
    return found or shutil.get_terminal_size().columns


def fitted(text: str, width: int) -> str:
    """A state in less than `width` characters, so that no terminal wraps it: first without its bar, then without the
    parts (two spaces stand between them) from the last but one to the third; at last cut."""
    if cell_len(text) < width:
        return text
    parts = re.split(" {2,}", re.sub(r"^\[=* *\] ", "", text))
    while len(parts) > 2 and cell_len("  ".join(parts)) >= width:
        del parts[max(len(parts) - 2, 1)]
    text = "  ".join(parts)
    return text if cell_len(text) < width else set_cell_size(text, max(width - 1, 0))
