"""A run of memory in which frames come to lie one behind the other, so that joining them copies nothing."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Room:
    def __init__(self, memory: Tensor | None = None) -> None:
        """memory: `[n]` uint8; None: there is none, and everything lies somewhere else."""
        self.memory = torch.empty(0, dtype=torch.uint8) if memory is None else memory
        self._taken = 0

    def empty(self, shape: Sequence[int]) -> NDArray[np.uint8]:
        """An array of bytes behind the one before; somewhere else where there is no room for it."""
        start, size = self._taken, prod(shape)
        if start + size > len(self.memory):
            return np.empty(shape, np.uint8)
        self._taken += size
        return self.memory[start : start + size].view(*shape).numpy()

    def start(self, tensor: Tensor) -> int | None:
        """The byte of the room at which a tensor begins; None: it lies somewhere else."""
        start = tensor.data_ptr() - self.memory.data_ptr()
        inside = tensor.is_contiguous() and 0 <= start <= len(self.memory) - tensor.nbytes
        return start if inside and tensor.nbytes else None

    def cat(self, tensors: list[Tensor]) -> Tensor:
        """`torch.cat`, without a copy where there is nothing to move."""
        if len(tensors) == 1:
            return tensors[0]
        parts = [t for t in tensors if t.nbytes]
        starts = [self.start(t) for t in parts]
        if not parts or starts[0] is None or any(t.dtype != torch.uint8 for t in parts):
            return torch.cat(tensors)
        end = starts[0]
        for start, part in zip(starts, parts):
            if start != end:
                return torch.cat(tensors)
            end += part.nbytes
        return self.memory[starts[0] : end].view(-1, *parts[0].shape[1:])
