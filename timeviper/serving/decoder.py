"""The processes in which media of strangers are decoded; `decoders.py` starts `python -m timeviper.serving.decoder`.

One process is started with a socket as its standard input, and loads the decoders. For each request that comes through
the socket (a line of JSON with open files) it forks a child, which can do nothing but that: it has the bytes and a pipe
to answer by, may open no further file or socket, and no more memory and time than it was given. So FFmpeg is handed
bytes, never a name, and what goes wrong in it ends that child. A child says what is wrong by one of our own words.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import pkgutil
import resource
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from typing import IO, Any

import av.logging
import numpy as np
from numpy.typing import NDArray

from timeviper.config import FramesConfig
from timeviper.datamodules.frames import container
from timeviper.datamodules.frames.container import Container, Source, Still, VideoError
from timeviper.datamodules.frames.part import Part
from timeviper.datamodules.frames.stream import FrameStream
from timeviper.datamodules.frames.video import iter_video

# What people film, stream, record on screens and draw; not the hundreds of others that FFmpeg knows.
CODECS = (
    "h264,hevc,av1,libdav1d,vp8,vp9,libvpx,libvpx-vp9,mpeg1video,mpeg2video,mpeg4,h263,msmpeg4v2,msmpeg4,wmv1,wmv2,wmv3,"
    "vc1,flv,theora,prores,dnxhd,dvvideo,ffv1,mjpeg,png,apng,gif,webp,bmp,tiff,rawvideo,"
    "aac,mp3,mp3float,opus,libopus,vorbis,libvorbis,flac,ac3,eac3,pcm_s16le,pcm_s16be,pcm_u8"
)
HEAD = struct.Struct("<cQ")  # what follows, J(SON), P(ixels) or nothing (the E(nd)), and how many bytes
LARGEST = 1 << 20  # bytes of a request
NO_MEMORY = json.dumps({"error": "memory"}).encode()


def send(to: IO[bytes], kind: bytes, *parts: bytes | memoryview) -> None:
    to.write(HEAD.pack(kind, sum(len(part) for part in parts)))
    for part in parts:
        to.write(part)
    to.flush()


def load_all() -> None:
    """Every module that PyAV would import when a file needs it: a child can open none."""
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if module.name.rpartition(".")[2] != "__main__":
            importlib.import_module(module.name)


def serve(link: socket.socket) -> None:
    """Fork a child a request, until the socket is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children need not be waited for
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the server's, which closes the socket
    while True:
        line, files, _, _ = socket.recv_fds(link, LARGEST, 3)
        if not line:
            return
        if os.fork() == 0:
            link.close()
            _child(json.loads(line), *files)
        for file in files:
            os.close(file)


def _child(request: dict[str, Any], media: int, answer: int) -> None:
    """One request, then the end of the process."""
    to = os.fdopen(answer, "wb")
    try:
        send(to, b"J", json.dumps({"pid": os.getpid()}).encode())
        _confine(request)
        with _Bytes(media, to) as file:
            _work(request, file, to)
        send(to, b"E")
    except VideoError as error:
        send(to, b"J", json.dumps({"error": "unreadable", "log": error.reason[:500]}).encode())
    except MemoryError:
        send(to, b"J", NO_MEMORY)
    except (BrokenPipeError, KeyboardInterrupt):  # nobody reads any more
        pass
    except Exception as error:
        send(to, b"J", json.dumps({"error": "unreadable", "log": repr(error)[:500]}).encode())
    finally:
        os._exit(0)  # nothing of the parent's is to be finished here


class _Bytes(io.BufferedReader):
    """The file. Without memory for a read the child ends there: FFmpeg would not be told, and read on for ever."""

    def __init__(self, media: int, to: IO[bytes]) -> None:
        super().__init__(io.FileIO(media))
        self._to = to

    def read(self, size: int | None = -1, /) -> bytes:
        try:
            return super().read(size)
        except MemoryError:
            try:
                send(self._to, b"J", NO_MEMORY)
            finally:
                os._exit(0)


def _confine(request: dict[str, Any]) -> None:
    """From here on: no new file, socket or core, so much memory and time of the processor, first to go when memory is
    short; of FFmpeg's decoders those of the list."""
    container.LIMITS |= {"codec_whitelist": CODECS, "max_pixels": str(request["max_pixels"])}
    container.MAX_PIXELS, container.MAX_DECODED = request["max_pixels"], request["max_decoded"]
    container.MAX_PACKETS = request["max_packets"]
    av.logging.set_level(None)
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass  # elsewhere than on Linux
    for what, most in (
        (resource.RLIMIT_AS, request["memory"]),
        (resource.RLIMIT_CPU, request["seconds"]),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 0),
    ):
        resource.setrlimit(what, (most, most))


def _work(request: dict[str, Any], file: IO[bytes], to: IO[bytes]) -> None:
    if request["do"] == "digest":
        return send(to, b"J", json.dumps({"sha256": hashlib.file_digest(file, "sha256").hexdigest()}).encode())  # pyright: ignore[reportArgumentType]
    size, frames = request["size"], FramesConfig(**request["frames"])
    part = Part(*request["part"]) if request["part"] else None
    if request["do"] == "stills":
        send(to, b"P", *_buffers(np.zeros(len(request["cuts"])), _stills(file, request["cuts"], size)))
        return
    source: Source = Still(file) if request["still"] else file
    if request["still"]:
        _check_picture(file)
    if request["do"] == "pieces":
        for piece in iter_video(source, size, frames, chunk=request["count"], part=part):
            send(to, b"P", *_buffers(piece.times, piece.pixels))
        return
    stream = FrameStream(source, size, frames, part=part)
    if request["do"] == "recount":
        stream.recount()
    facts = {"duration": stream.duration, "kind": stream.kind, "missing": stream.missing}
    send(to, b"J", json.dumps(facts | {"times": stream.times.tolist()}).encode())


def _stills(file: IO[bytes], cuts: list[tuple[int, int]], size: int) -> NDArray[np.uint8]:
    """Pictures `[F, 3, S, S]` that lie one behind the other in a file."""
    found = np.empty((len(cuts), 3, size, size), np.uint8)
    for picture, (start, length) in zip(found, cuts):
        file.seek(start)
        one = io.BytesIO(file.read(length))
        _check_picture(one)
        (frame,) = iter_video(Still(one), size, FramesConfig(), chunk=None)
        picture[...] = frame.pixels[0]
    return found


def _check_picture(file: IO[bytes]) -> None:
    with Container(file) as opened:
        if not opened.is_image and opened.format not in ("gif", "apng", "ico"):
            raise VideoError("picture", f"is a {opened.format} file, which is no picture")


def _buffers(times: NDArray[np.float64], pixels: NDArray[np.uint8]) -> Iterator[bytes | memoryview]:
    """Number of frames, their seconds, their pixels."""
    yield struct.pack("<Q", len(times))
    yield times.astype("<f8").tobytes()
    yield np.ascontiguousarray(pixels).data.cast("B")


if __name__ == "__main__":
    load_all()
    serve(socket.socket(fileno=sys.stdin.fileno()))
