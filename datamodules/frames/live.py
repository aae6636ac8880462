"""Frames of a video that is still being made: a file that grows, a pipe, or a camera's address.

Nothing is known beforehand, and nothing is sought: what comes is decoded, and of it the frames are taken that a player
shows at the centres of equal parts, `fps` a second; as `read_video` takes them of a file that lasts a whole number of
them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from timeviper.datamodules.frames.container import FORMATS, LIMITS, Container, VideoError, named
from timeviper.datamodules.frames.video import lead_in, resized

POLL = 0.1  # seconds between two looks at a file that may grow
CAMERAS = "rtsp,mpjpeg"  # beside what files are: only for an address that the operator has typed
PROTOCOLS = "rtsp,rtp,udp,tcp,http,https,tls"


@dataclass(frozen=True)
class LiveFrame:
    """One frame as it comes."""

    pixels: NDArray[np.uint8]
    """`[3, S, S]` RGB."""
    seconds: float
    """When a player shows it, as in `Frames.times`."""
    until: float
    """How much of the video had come when it was sure: the part that it is shown in ends here."""


class _Source:
    """Bytes for FFmpeg, which swallows what is raised while it reads, and reads on: a Ctrl-C is the end of the bytes,
    and `interrupted` tells of it."""

    interrupted = False

    def read(self, size: int = -1) -> bytes:
        if self.interrupted:
            return b""
        try:
            return self._next(size)
        except KeyboardInterrupt:
            self.interrupted = True
            return b""

    def _next(self, size: int) -> bytes:
        raise NotImplementedError


class Growing(_Source):
    """A file that is written while it is read; its end is where nothing has come for `patience` seconds."""

    def __init__(self, path: Path, patience: float) -> None:
        self.name, self._patience = str(path), patience
        self._file = open(path, "rb")  # noqa: SIM115  (closed with the container)

    def _next(self, size: int) -> bytes:
        waited_since = time.monotonic()
        while not (found := self._file.read(size)):
            if time.monotonic() - waited_since >= self._patience:
                return b""
            time.sleep(POLL)
        return found

    def close(self) -> None:
        self._file.close()


class _Pipe(_Source):
    """Standard input or any other stream, of which FFmpeg may only read on."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.name, self._stream = str(getattr(stream, "name", "pipe")), stream

    def _next(self, size: int) -> bytes:
        return self._stream.read(size)


class LiveContainer(Container):
    """A container without a beginning to go back to and without limits of a file."""

    def __init__(self, source: str | Path | IO[bytes], patience: float) -> None:
        self._patience, self._bytes = patience, _Source()
        super().__init__(source)
        self.packets_left = self.pixels_left = sys.maxsize

    def _opened(self) -> InputContainer:
        source, options = self.source, LIMITS | {"format_whitelist": FORMATS, "protocol_whitelist": "none"}
        with named(self.where):
            if isinstance(source, str) and "://" in source:
                options |= {"format_whitelist": f"{FORMATS},{CAMERAS}", "protocol_whitelist": PROTOCOLS}
                if source.startswith("rtsp"):
                    options["rtsp_transport"] = "tcp"
                return av.open(source, "r", options=options, timeout=(None, max(self._patience, 1.0)))
            if isinstance(source, str | Path):
                if not Path(source).exists():
                    raise VideoError(self.where, "no such file; it may grow, but must be there")
                self._bytes = Growing(Path(source), self._patience)
            else:
                self._bytes = _Pipe(source)
            return av.open(self._bytes, "r", options=options, metadata_errors="replace")

    def check_interrupted(self) -> None:
        """Raises the KeyboardInterrupt that FFmpeg has swallowed, if there was one."""
        if self._bytes.interrupted:
            raise KeyboardInterrupt


def live_frames(source: str | Path | IO[bytes], size: int, fps: float, patience: float = 30.0) -> Generator[LiveFrame]:
    """The frames as they come, resized to `size` pixels square; ends with the source.

    source: a file that may grow, an open stream of bytes, or an address (rtsp://, http://, udp://). patience: seconds
    without anything new after which a file or an address counts as ended.
    Raises VideoError for what is no video, or cannot be read from its beginning on, such as an MP4 file whose index is
    written last.
    """
    live = LiveContainer(source, patience)
    with live as container:
        first = before = None
        number, lead, step = 0, 0.0, container.usual * container.tick
        for frame in _decoded(container):
            live.check_interrupted()
            first = frame.pts if first is None else first
            assert first is not None
            if before is None:
                lead = lead_in(container, first)
            seconds = lead + container.seconds((frame.pts or 0) - first)
            if before is not None:
                seconds = max(seconds, before[1])  # a clock that goes back stands still
                step = seconds - before[1] or step
                while (number + 0.5) / fps < seconds - 1e-6 * container.tick:
                    number += 1
                    yield LiveFrame(resized(before[0], size), before[1], number / fps)
            before = (frame, seconds)
        live.check_interrupted()
        if before is None:
            raise VideoError(container.where, "ended before it showed a frame")
        while (number + 0.5) / fps < before[1] + step - 1e-6:
            number += 1
            yield LiveFrame(resized(before[0], size), before[1], number / fps)


def _decoded(container: Container) -> Iterator[VideoFrame]:
    for packet in chain(container.packets(), [None]):
        try:
            frames = container.decode(packet)
        except FFmpegError:  # a damaged packet costs its own frames
            continue
        yield from (frame for frame in frames if frame.pts is not None)
