"""A step's share, or a part of it, in memory that one process fills and another one maps: nothing is copied between.

The memory is a file without a name. It has no limit of its own (that of /dev/shm is often 64 MB in a container), goes
when the last process lets go of it, and takes a file descriptor only on its way.
"""

from __future__ import annotations

import io
import os
import pickle
import tempfile
from math import prod
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

import torch
from torch import Tensor

from timeviper.datamodules.room import Room
from timeviper.pack import StepBatch

ALIGN = 16  # bytes; enough for every dtype
Place = tuple[torch.dtype, tuple[int, ...], int]  # of a tensor in the block: dtype, shape, first byte


class Block:
    """Memory to be filled: first a room in which frames are decoded, one medium behind the other; then the rest."""

    def __init__(self, room: int) -> None:
        """room: bytes of all frames, as planned. What is not touched takes no memory."""
        self._fd = _nameless_file()
        self.room = Room(_mapped(self._fd, room))
        self._end = _aligned(room)

    def place(self, tensor: Tensor) -> Place:
        """Where a tensor lies in the block; one from elsewhere is copied to its end."""
        start = self.room.start(tensor)
        if start is None:
            start, self._end = self._end, _aligned(self._end + tensor.nbytes)
            _write(self._fd, tensor, start)
        return tensor.dtype, tuple(tensor.shape), start

    def send(self, batch: StepBatch, to: Connection, number: int) -> None:
        """Send a batch, whose frames may lie in the room, with its number among the jobs; once."""
        rest = io.BytesIO()
        _Pickler(rest, self).dump(batch)
        try:
            to.send((number, rest.getvalue(), self._end))
            send_handle(to, self._fd, os.getppid())
        finally:
            os.close(self._fd)


def receive(message: tuple[int, bytes, int], source: Connection) -> tuple[int, StepBatch]:
    """What `Block.send` has sent: the number and the batch, given the message that has just come from there."""
    number, rest, size = message
    fd = recv_handle(source)
    try:
        block = _mapped(fd, size)
    finally:
        os.close(fd)
    return number, _Unpickler(io.BytesIO(rest), block).load()


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("timeviper-block")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _mapped(fd: int, size: int) -> Tensor:
    """The first bytes of a file as a tensor. (Python's own mapping would keep a descriptor for as long as it lives.)"""
    if not size:
        return torch.empty(0, dtype=torch.uint8)
    if os.fstat(fd).st_size < size:
        os.ftruncate(fd, size)
    return torch.from_file(f"/dev/fd/{fd}", shared=True, size=size, dtype=torch.uint8)


def _write(fd: int, tensor: Tensor, start: int) -> None:
    left = tensor.contiguous().view(-1).view(torch.uint8).numpy()
    while len(left):
        done = os.pwrite(fd, left.data, start)  # a call writes 2 GB at most
        left, start = left[done:], start + done


def _aligned(count: int) -> int:
    return -(-count // ALIGN) * ALIGN


class _Pickler(pickle.Pickler):
    """Leaves tensors out, wherever they are, and gives each a place."""

    def __init__(self, file: io.BytesIO, block: Block) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._block = block

    def persistent_id(self, obj: Any) -> Place | None:
        return self._block.place(obj) if isinstance(obj, Tensor) else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, block: Tensor) -> None:
        super().__init__(file)
        self._block = block

    def persistent_load(self, pid: Place) -> Tensor:
        dtype, shape, start = pid
        return self._block[start : start + prod(shape) * dtype.itemsize].view(dtype).view(shape)
