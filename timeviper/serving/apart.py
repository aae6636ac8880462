"""The frames of a file as a prompt reads them, decoded in another process while the turn is another's."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from timeviper.config import FramesConfig
from timeviper.datamodules.frames.part import Part
from timeviper.datamodules.frames.stream import FramesDifferError, FrameStream
from timeviper.serving.decoders import Decoders, MediaError, Opener, frames_of
from timeviper.serving.turns import Pause

AHEAD = 1  # pieces of a video that wait for the model, beside the one that is being decoded


class ApartStream(FrameStream):
    """The frames of a file as `FrameStream` gives them, decoded elsewhere. MediaError in place of VideoError.

    Whoever reads it in turns sets `pause`, which is called while nothing is there, and looks at `ready`.
    """

    def __init__(
        self,
        opener: Opener,
        decoders: Decoders,
        size: int,
        frames: FramesConfig,
        part: Part | None = None,
        still: bool = False,
    ) -> None:
        self._opener, self._decoders, self._size = opener, decoders, size
        self._request = {"size": size, "frames": asdict(frames), "part": part, "still": still}
        self._sure = False
        self._reader: _Reader | None = None
        self._counting: threading.Thread | None = None
        self.held: object = None
        """What must live as long as this does."""
        self.pause: Pause | None = None
        self.wake: Callable[[], None] = lambda: None
        self._take("facts")

    @property
    def ready(self) -> bool:
        """Whether it can go on without waiting."""
        if self._counting is not None and self._counting.is_alive():
            return False
        return self._reader is None or self._reader.ready

    def recount(self) -> None:
        if self.pause is None:
            self._take("recount")
        else:
            self._recount_apart(self.pause)
        self._sure = True

    def _recount_apart(self, pause: Pause) -> None:
        """In a thread: it decodes the whole file, and the turn is another's meanwhile."""
        errors: list[MediaError] = []

        def run() -> None:
            try:
                self._take("recount")
            except MediaError as error:
                errors.append(error)
            finally:
                self.wake()

        self._counting = threading.Thread(target=run, name="timeviper-recount", daemon=True)
        self._counting.start()
        while self._counting.is_alive():
            pause()
        if errors:
            raise errors[0]

    def pieces(self, count: int) -> Iterator[NDArray[np.uint8]]:
        start = 0
        reader = self._reader = _Reader(self._decoders, self._opener, {**self._request, "count": count}, self.wake)
        try:
            for body in reader.bodies(self.pause):
                times, pixels = frames_of(body, self._size)
                end = start + len(times)
                if not np.array_equal(times, self.times[start:end]):
                    self._differ()
                start = end
                yield pixels
            if start < len(self.times):
                self._differ()
        finally:
            reader.close()
            self._reader = None

    def _take(self, do: str) -> None:
        facts = self._decoders.facts(do, self._opener, **self._request)
        self.times, self.duration = np.array(facts["times"]), facts["duration"]
        self.kind, self.missing = facts["kind"], facts["missing"]

    def _differ(self) -> None:
        if self._sure:
            raise MediaError("ended")
        raise FramesDifferError(self)


class _Reader:
    """A thread that reads pieces from a child, a few ahead of who takes them."""

    def __init__(self, decoders: Decoders, opener: Opener, request: dict[str, Any], wake: Callable[[], None]) -> None:
        self._queue: queue.Queue[bytearray | MediaError] = queue.Queue(AHEAD)
        self._wake, self._closed = wake, False
        opened = opener()
        try:
            self._reply = decoders.ask("pieces", opened, **request)
        finally:
            os.close(opened)
        self._thread = threading.Thread(target=self._run, name="timeviper-frames", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        return not self._queue.empty()

    def _run(self) -> None:
        try:
            while not self._closed:
                kind, body = self._reply.message()
                self._put(body)
                if kind == b"E":
                    return
        except MediaError as error:
            self._put(error)
        except (OSError, ValueError):  # closed under its hands
            self._put(MediaError("ended"))

    def _put(self, value: bytearray | MediaError) -> None:
        while not self._closed:
            try:
                self._queue.put(value, timeout=0.2)
            except queue.Full:
                continue
            self._wake()
            return

    def bodies(self, pause: Pause | None) -> Iterator[bytearray]:
        while True:
            while pause is not None and self._queue.empty():
                pause()
            value = self._queue.get()
            if isinstance(value, MediaError):
                raise value
            if not value:
                return
            yield value

    def close(self) -> None:
        self._closed = True
        while self._thread.is_alive():
            self._reply.kill()  # or it might decode for minutes what nobody reads
            self._thread.join(0.05)
        self._reply.close()
