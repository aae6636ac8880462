"""Media of strangers as frames that the model reads, decoded in processes of their own (see `decoder.py`)."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger("timeviper")

HEAD = struct.Struct("<cQ")
LOOK = 250  # milliseconds between two looks at a process that says nothing

SAYS = {
    "unreadable": "it cannot be read as a video or picture: it is damaged, or of a kind that is not taken",
    "memory": "decoding it takes more memory than is allowed",
    "ended": "decoding it takes more time or memory than is allowed, or it is damaged",
    "stalled": "it cannot be read: its disk gives nothing, or it takes more time than is allowed",
}


class MediaError(Exception):
    """Media that cannot be had or decoded. What the decoder said of it is logged, and told to nobody."""

    def __init__(self, why: str = "unreadable") -> None:
        super().__init__(SAYS.get(why, why))


@dataclass(frozen=True)
class DecodeLimits:
    """Of one process that decodes."""

    memory: int = 2 << 30
    """Bytes of its address space."""
    seconds: int = 900
    """Of the processor, for one file; ten hours of Full HD take a quarter of it where keyframes are wanted alone."""
    idle: float = 30.0
    """Seconds by the clock in which it may say nothing without computing anything, such as when a disk hangs."""
    wall: float = 3600.0
    """Seconds by the clock until it must have said something, whatever it does."""
    max_pixels: int = 1 << 26
    """Of one frame: 8,192 x 8,192."""
    max_decoded: int = 1 << 40
    """Pixels decoded of one file: about five hours of Full HD, every frame of it."""
    max_packets: int = 1 << 22


Opener = Callable[[], int]
"""Opens the bytes anew; the descriptor is the caller's."""


class Decoders:
    """The process that forks decoders, started again when it has gone."""

    def __init__(self, limits: DecodeLimits | None = None, at_once: int = 4) -> None:
        """at_once: files that are looked at (not read) at a time; more wait."""
        self.limits = limits or DecodeLimits()
        self._lock, self._room = threading.Lock(), threading.Semaphore(at_once)
        self._link: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._link is not None:
            self._link.close()
        if self._process is not None:
            self._process.wait()
        self._link = self._process = None

    def ask(self, do: str, opened: int, **more: Any) -> Reply:
        """Let a child do something with an open file."""
        request = {"do": do, "still": False, "part": None, "count": 0, **asdict(self.limits), **more}
        read, write = os.pipe()
        try:
            self._send(json.dumps(request).encode(), [opened, write])
        except OSError:
            os.close(read)
            raise MediaError("ended") from None
        finally:
            os.close(write)
        return Reply(read, self.limits)

    def facts(self, do: str, opener: Opener, **more: Any) -> dict[str, Any]:
        """What a child says of a file in one line. Raises MediaError."""
        with self._room:
            opened = opener()
            try:
                reply = self.ask(do, opened, **more)
            finally:
                os.close(opened)
            with reply:
                return json.loads(reply.message()[1])

    def stills(self, opened: int, cuts: list[tuple[int, int]], size: int) -> NDArray[np.uint8]:
        """Pictures `[F, 3, S, S]` from places (start, length) of an open file. Raises MediaError."""
        with self._room, self.ask("stills", opened, cuts=cuts, size=size, frames={}) as reply:
            return frames_of(reply.message()[1], size)[1]

    def _send(self, line: bytes, files: list[int]) -> None:
        with self._lock:
            for attempt in (0, 1):
                if self._link is None:
                    self._start()
                assert self._link is not None
                try:
                    socket.send_fds(self._link, [line], files)
                    return
                except OSError:  # it was killed, such as for want of memory
                    self._close()
                    if attempt:
                        raise

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "timeviper.serving.decoder"]
        environment = {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.defpath, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, env=environment)
        theirs.close()
        self._link = ours


class Reply:
    """What a child answers; leaving the `with` block ends the child."""

    def __init__(self, read: int, limits: DecodeLimits) -> None:
        self._file, self._limits = os.fdopen(read, "rb", buffering=0), limits
        self._pid, self._done, self._closed = 0, False, False
        self._poll = select.poll()  # select() ends at 1,024 open files
        self._poll.register(read, select.POLLIN)

    def __enter__(self) -> Reply:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.kill()
        self._file.close()

    def kill(self) -> None:
        """Whoever waits for a message gets MediaError soon, also where a hanging disk keeps the child from dying."""
        self._closed = True
        if self._pid and not self._done:
            with suppress(OSError):
                os.kill(self._pid, signal.SIGKILL)

    def _wait(self) -> None:
        """Until there is something to read. MediaError where it has been killed, or does nothing."""
        since = changed = time.monotonic()
        used = -1.0
        while not self._poll.poll(LOOK):
            now, before = time.monotonic(), used
            used = cpu_seconds(self._pid, now)
            changed = now if used != before else changed
            if self._closed:
                raise MediaError("ended")
            if now - changed > self._limits.idle or now - since > self._limits.wall:
                raise MediaError("stalled")

    def _read(self, size: int) -> bytearray:
        """So many bytes, which may be written over: they become tensors."""
        found = bytearray(size)
        rest = memoryview(found)
        while rest:
            self._wait()
            if not (count := self._file.readinto(rest)):
                raise MediaError("ended")
            rest = rest[count:]
        return found

    def message(self) -> tuple[bytes, bytearray]:
        """The next one, J(SON), P(ixels) or the E(nd). Raises MediaError for what the child says is wrong."""
        while True:
            kind, size = HEAD.unpack(self._read(HEAD.size))
            body = self._read(size)
            if kind != b"J":
                self._done = kind == b"E"
                return kind, body
            said = json.loads(body)
            if "pid" in said:
                self._pid = said["pid"]
            elif "error" in said:
                log.warning("a file cannot be decoded (%s): %r", said["error"], said.get("log", ""))
                raise MediaError(said["error"])
            else:
                return kind, body


def cpu_seconds(process: int, unknown: float) -> float:
    """That a process has computed so far; `unknown` where nothing tells."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            user, system = file.read().rpartition(b")")[2].split()[11:13]
    except OSError:
        return unknown
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def frames_of(body: bytes | bytearray, size: int) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Seconds `[F]` and pixels `[F, 3, S, S]`."""
    (count,) = struct.unpack_from("<Q", body)
    times = np.frombuffer(body, "<f8", count, 8)
    return times, np.frombuffer(body, np.uint8, offset=8 + 8 * count).reshape(count, 3, size, size)
