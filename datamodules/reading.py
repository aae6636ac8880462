"""Which sample each loader process is reading, visible to the training process: for a message when one hangs."""

from __future__ import annotations

import multiprocessing
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch.utils.data import get_worker_info

SLOT = 512  # bytes a process: the time when it began, then the key, cut to fit


class Reading:
    """A slot for each loader process in shared memory; it goes to them as loader processes are started, not by pickle.

    One writer a slot and no lock: a message that meets a change may show a key that is cut.
    """

    def __init__(self, workers: int) -> None:
        self.slots = multiprocessing.get_context("spawn").RawArray("c", max(workers, 1) * SLOT)

    @contextmanager
    def sample(self, key: str) -> Iterator[None]:
        """Within it, this process reads the sample `key`."""
        worker = get_worker_info()
        start = (worker.id if worker else 0) * SLOT
        text = struct.pack("d", time.time()) + key.encode()[: SLOT - 9]
        self.slots[start : start + SLOT] = text.ljust(SLOT, b"\0")
        try:
            yield
        finally:
            self.slots[start : start + SLOT] = bytes(SLOT)

    def now(self) -> list[tuple[str, float]]:
        """(key, seconds since its process began with it) of every sample that is being read, longest first."""
        raw = bytes(self.slots[:])  # pyright: ignore[reportArgumentType]
        found = []
        for start in range(0, len(raw), SLOT):
            (began,) = struct.unpack_from("d", raw, start)
            if began:
                key = raw[start + 8 : start + SLOT].rstrip(b"\0").decode(errors="replace")
                found.append((key, time.time() - began))
        return sorted(found, key=lambda f: -f[1])
