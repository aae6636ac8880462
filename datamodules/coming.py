"""A step on its way: what Lightning takes one ahead of the step that it trains on, so that it need not be there yet."""

from __future__ import annotations

from collections.abc import Callable

from timeviper.pack import StepBatch


class Coming:
    def __init__(self, read: Callable[[], StepBatch]) -> None:
        self._read = read

    def read(self) -> StepBatch:
        """The step, once; waits for it."""
        return self._read()
