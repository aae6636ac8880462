"""The processes of one launch that share the questions of an evaluation: texts go between them, tensors never do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")

MEET = timedelta(minutes=30)  # until all ranks have loaded the model
LONGEST = timedelta(days=30)  # that one rank may be at work when another has finished


class Ranks:
    """As torchrun numbers them; one without it."""

    def __init__(self) -> None:
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self._patient: Any = None

    @contextmanager
    def together(self) -> Iterator[None]:
        """Within it the ranks are connected."""
        if self.world == 1:
            yield
            return
        dist.init_process_group("gloo", timeout=MEET)
        try:
            self._patient = dist.new_group(backend="gloo", timeout=LONGEST)
            yield
        finally:
            dist.destroy_process_group()

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first rank makes, on all of them."""
        if self.world == 1:
            return make()
        held = [make() if self.rank == 0 else None]
        dist.broadcast_object_list(held)
        return held[0]  # pyright: ignore[reportReturnType]

    def from_all(self, mine: list[T]) -> list[T]:
        """The lists of all ranks, one after the other. ConnectionError if one of them is gone."""
        if self.world == 1:
            return mine
        held: list[list[T]] = [[] for _ in range(self.world)]
        try:
            dist.all_gather_object(held, mine, group=self._patient)
        except RuntimeError as error:  # gloo's, for a connection that is closed
            raise ConnectionError(f"another rank is gone ({str(error).splitlines()[0]})") from error
        return [one for each in held for one in each]
