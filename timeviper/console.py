"""Where tables go: as wide as the terminal, or wide enough for every column when there is none."""

from __future__ import annotations

import sys

from rich.console import Console

UNBOUNDED = 250  # characters; a file or a pipe has no width of its own


def console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=UNBOUNDED)
