"""Frames of a video that is still being made: a file that grows, a pipe, or a camera's address.

Nothing is known beforehand, and nothing is sought: what comes is decoded, and of it the frames are taken that a player
shows at the centres of equal parts, `fps` a second; as `read_video` takes them of a file that lasts a whole number of
them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import IO

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from timeviper.datamodules.frames.container import FORMATS, LIMITS, Container, VideoError, named
from timeviper.datamodules.frames.draw import resized
from timeviper.datamodules.frames.video import lead_in

POLL = 0.1  # seconds between two looks at what may come, or end
AHEAD = 4  # frames that wait for who takes them
LEAVE = 1.0  # seconds to take leave of a camera; one that says nothing is left without
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


class Growing:
    """A file that is written while it is read; its end is where nothing has come for `patience` seconds."""

    def __init__(self, path: Path, patience: float, ended: Event) -> None:
        self.name, self._patience, self._ended = str(path), patience, ended
        self._file = open(path, "rb")  # noqa: SIM115  (closed with the container)

    def read(self, size: int = -1) -> bytes:
        waited_since = time.monotonic()
        while not (found := self._file.read(size)):
            if time.monotonic() - waited_since >= self._patience or self._ended.wait(POLL):
                return b""
        return found

    def close(self) -> None:
        self._file.close()


class _Pipe:
    """Standard input or any other stream, of which FFmpeg may only read on, what is there at once."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.name, self._stream = str(getattr(stream, "name", "pipe")), getattr(stream, "raw", stream)

    def read(self, size: int = -1) -> bytes:
        return self._stream.read(size)


class LiveContainer(Container):
    """A container without a beginning to go back to and without limits of a file."""

    def __init__(self, source: str | Path | IO[bytes], patience: float, ended: Event) -> None:
        self._patience, self._ended = patience, ended
        super().__init__(source)
        self.packets_left = self.pixels_left = sys.maxsize

    def _opened(self) -> InputContainer:
        source, options = self.source, LIMITS | {"format_whitelist": FORMATS, "protocol_whitelist": "none"}
        with named(self.where):
            if isinstance(source, str) and "://" in source:
                options |= {"format_whitelist": f"{FORMATS},{CAMERAS}", "protocol_whitelist": PROTOCOLS}
                if source.startswith("rtsp"):
                    options["rtsp_transport"] = "tcp"
                return av.open(source, "r", options=options, timeout=max(self._patience, 1.0))
            if isinstance(source, str | Path):
                if not Path(source).exists():
                    raise VideoError(self.where, "no such file; it may grow, but must be there")
                bytes_of = Growing(Path(source), self._patience, self._ended)
            else:
                bytes_of = _Pipe(source)
            return av.open(bytes_of, "r", options=options, metadata_errors="replace")


def live_frames(
    source: str | Path | IO[bytes], size: int, fps: float, patience: float = 30.0, stop: Event | None = None
) -> Generator[LiveFrame]:
    """The frames as they come, resized to `size` pixels square; ends with the source, or when `stop` is set.

    source: a file that may grow, an open stream of bytes, or an address (rtsp://, http://, udp://). patience: seconds
    without anything new after which a file or an address counts as ended.
    Raises VideoError for what is no video, or cannot be read from its beginning on, such as an MP4 file whose index is
    written last.
    """
    # In a thread: FFmpeg hears of no Ctrl-C while it waits for a camera, and swallows one raised while it reads a file.
    stop, ended = stop or Event(), Event()
    ready: Queue[LiveFrame | Exception | None] = Queue(AHEAD)

    def put(item: LiveFrame | Exception | None) -> None:
        while not ended.is_set():
            with suppress(Full):
                return ready.put(item, timeout=POLL)

    def read() -> None:
        try:
            with closing(_frames(source, size, fps, patience, ended)) as frames:
                for frame in frames:
                    put(frame)
                    if ended.is_set():
                        return
            put(None)
        except Exception as error:
            put(error)

    thread = Thread(target=read, name="timeviper-live", daemon=True)
    thread.start()
    try:
        while not stop.is_set():
            try:
                item = ready.get(timeout=POLL)
            except Empty:
                continue
            if isinstance(item, Exception):
                raise item
            if item is None:
                return
            yield item
    finally:
        ended.set()
        thread.join(LEAVE)


def _frames(
    source: str | Path | IO[bytes], size: int, fps: float, patience: float, ended: Event
) -> Generator[LiveFrame]:
    with LiveContainer(source, patience, ended) as container:
        first = before = None
        number, lead, step = 0, 0.0, container.usual * container.tick
        for frame in _decoded(container):
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
