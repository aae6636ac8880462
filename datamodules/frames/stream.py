"""Frames of a long video as they are needed, their number and times known before any is decoded.

A prompt tells the times of all its frames, and TransV counts from their number, so both must be known when the first
frame goes through the model. Packets tell them, which takes no decoding. Only damage shows later: what the decoder
gives is held against what was foretold, and where it differs, the file is decoded once without keeping anything
(`recount`), after which its frames are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from timeviper.config import FramesConfig
from timeviper.datamodules.frames.container import Container, Source, VideoError, name_of
from timeviper.datamodules.frames.part import Part
from timeviper.datamodules.frames.video import Frames, Sampling, iter_video, read_video


class FramesDifferError(Exception):
    """What was decoded is not what was foretold: `recount` the stream, and begin again with the times that it has."""

    def __init__(self, stream: FrameStream) -> None:
        super().__init__("some frames cannot be decoded")
        self.stream = stream


class FrameStream:
    """`read_video`, whose frames are not in memory. Raises VideoError as that does."""

    times: NDArray[np.float64]
    """`[F]` seconds, as in `Frames`."""
    duration: float
    kind: Literal["video", "image"]
    missing: int

    def __init__(
        self,
        source: Source | Callable[[], AbstractContextManager[Source]],
        size: int,
        frames: FramesConfig,
        duration: float | None = None,
        part: Part | None = None,
    ) -> None:
        """source: a path, or what opens the file anew each time it is called. The rest as for `read_video`."""
        self._open = source if callable(source) else lambda: nullcontext(source)
        self._size, self._frames, self._duration, self._sure = size, frames, duration, False
        self._part = part
        with self._sampling() as sampling:
            self._note(sampling, sampling.reader.foresee(sampling.targets))

    def recount(self) -> None:
        """Decode the wanted frames, and keep their times alone: from now on these are known for certain."""
        with self._sampling() as sampling:
            found = [(stamp, serves) for _, stamp, serves in sampling.reader.read(sampling.targets)]
            self._note(sampling, found)
        self._sure = True

    def pieces(self, count: int) -> Iterator[NDArray[np.uint8]]:
        """Pixels `[f, 3, S, S]`, `count` frames at a time (the last time fewer). FramesDifferError if they are others
        than foretold; VideoError if they are others each time."""
        start = 0
        with self._open() as source:
            for piece in iter_video(source, self._size, self._frames, self._duration, count, self._part):
                end = start + len(piece.times)
                if not np.array_equal(piece.times, self.times[start:end]):
                    self._differ()
                start = end
                yield piece.pixels
        if start < len(self.times):
            self._differ()

    def read(self) -> Frames:
        """All of them, in memory."""
        with self._open() as source:
            return read_video(source, self._size, self._frames, self._duration, self._part)

    @contextmanager
    def _sampling(self) -> Iterator[Sampling]:
        with self._open() as source, Container(source) as container:
            yield Sampling(container, self._frames, self._duration, self._part)

    def _note(self, sampling: Sampling, found: list[tuple[int, int]]) -> None:
        seconds = [sampling.seconds(stamp) for stamp, serves in found for _ in range(serves)]
        self.times, self.duration, self.kind = np.array(seconds), sampling.duration, sampling.kind
        self.missing = sampling.missing(len(seconds))

    def _differ(self) -> None:
        if self._sure:
            with self._open() as source:
                where = name_of(source)
            raise VideoError(where, "gives other frames each time it is decoded: it changes, or its disk is failing")
        raise FramesDifferError(self)
