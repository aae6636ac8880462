"""A request as the engine sees it, why it may be refused, and what is counted."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
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
