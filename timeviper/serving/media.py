"""References of a request, opened: as frames that are decoded elsewhere, within the server's bounds."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from timeviper.config import FramesConfig
from timeviper.datamodules.frames.part import Part
from timeviper.datamodules.frames.video import Frames
from timeviper.serving.apart import ApartStream
from timeviper.serving.decoders import Decoders, MediaError, Opener
from timeviper.serving.problems import ApiError
from timeviper.serving.references import Elsewhere, Inline, Medium, OnDisk, Pictures, Stored, Wanted
from timeviper.serving.remote import Fetcher
from timeviper.serving.settings import ServeSettings
from timeviper.serving.store import FileStore

OUTSIDE = "it is no file below the server's media root"


@dataclass(frozen=True)
class Bytes:
    """The bytes of a medium, and what they are called."""

    opener: Opener
    content: str
    """SHA-256."""
    held: object = None
    """What must stay open as long as they are read."""


@dataclass(frozen=True)
class OpenMedium:
    """A medium whose times are known and whose frames can be read."""

    frames: Frames | ApartStream
    content: str
    """SHA-256 of its bytes; empty where it has none of its own."""
    wanted: Wanted


class Temporary:
    """A file that is gone when nobody holds this."""

    def __init__(self, folder: Path) -> None:
        number, name = tempfile.mkstemp(dir=folder)
        self.file, self.path = os.fdopen(number, "wb"), Path(name)

    def open(self) -> int:
        return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        self.file.close()
        self.path.unlink(missing_ok=True)


class MediaRoom:
    """Opens media for a model that sees frames of `size` pixels, `frames` of them where nothing else is asked for."""

    def __init__(
        self,
        settings: ServeSettings,
        decoders: Decoders,
        size: int,
        frames: FramesConfig,
        fetcher: Fetcher | None = None,
    ) -> None:
        self.settings, self.decoders, self.size, self.frames = settings, decoders, size, frames
        self.fetcher = fetcher or Fetcher(settings.domains, settings.max_fetch)
        self.root = None if settings.media_root is None else settings.media_root.resolve()
        self.work = settings.store / "work"
        self.work.mkdir(parents=True, exist_ok=True)
        self._digests: dict[tuple[int, ...], str] = {}

    def open(self, medium: Medium, files: FileStore, wake: Callable[[], None] = lambda: None) -> OpenMedium:
        """Raises ApiError: 404 for an id, 400 for what is not read here, 422 for what cannot be had or decoded."""
        try:
            if isinstance(medium.place, Pictures):
                return OpenMedium(self._pictures(medium.place), "", medium.wanted)
            found = self.bytes_of(medium, files)
            wanted = medium.wanted
            config, part = self.config_of(wanted), Part(wanted.start or 0.0, wanted.end)
            stream = ApartStream(found.opener, self.decoders, self.size, config, part, medium.still)
        except MediaError as error:
            where = f"{medium.where}: " if medium.where else ""
            raise ApiError(422, f"{where}{error}", medium.where or None) from None
        stream.wake = wake
        stream.held = found.held
        return OpenMedium(stream, found.content, medium.wanted)

    def config_of(self, wanted: Wanted) -> FramesConfig:
        """Which frames are taken."""
        usual = self.settings.max_frames if wanted.fps else self.frames.max_frames  # a rate that is asked for binds
        most = min(wanted.max_frames or usual, self.settings.max_frames)
        if wanted.num_frames:
            most = wanted.num_frames
            return FramesConfig(wanted.fps or self.frames.fps, most, most)
        return FramesConfig(wanted.fps or self.frames.fps, min(self.frames.min_frames, most), most)

    def bytes_of(self, medium: Medium, files: FileStore) -> Bytes:
        place = medium.place
        if isinstance(place, Stored):
            file = files.get(place.id)
            return Bytes(lambda: files.open(file.id), file.sha256)
        if isinstance(place, OnDisk):
            return self._on_disk(place.path)
        held = Temporary(self.work)
        digest = hashlib.sha256()

        def write(data: bytes) -> None:
            digest.update(data)
            held.file.write(data)

        try:
            if isinstance(place, Elsewhere):
                self.fetcher.fetch(place.url, write)
            elif isinstance(place, Inline):
                write(place.data)
            held.file.close()
        except OSError:
            raise ApiError(507, "the server's disk does not take the file") from None
        return Bytes(held.open, digest.hexdigest(), held)

    # ---- files of the media root ----------------------------------------------------------------------------

    def _on_disk(self, named: str) -> Bytes:
        if self.root is None:
            message = "this server reads no files of its own: upload the file (POST /v1/files) and give its id"
            raise ApiError(400, message, "url")
        below = self._below_root(named)
        return Bytes(lambda: self._open_below(below), self._digest(self._open_below(below)))

    def _below_root(self, named: str) -> tuple[str, ...]:
        """The way from the root to a file, without links. 422, with the same words whatever is there or not."""
        assert self.root is not None
        path = unquote(named.removeprefix("//")) if named.startswith("//") else named
        try:
            found = (self.root / path).resolve(strict=True)
            return found.relative_to(self.root).parts  # by components: /media-other is not below /media
        except (OSError, ValueError, RuntimeError):
            raise ApiError(422, OUTSIDE, "url") from None

    def _open_below(self, below: tuple[str, ...]) -> int:
        """Component by component, so that nothing that becomes a link meanwhile leads elsewhere; a regular file."""
        assert self.root is not None
        folder = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW
        file = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe must not make it wait
        opened = os.open(self.root, folder)
        try:
            for name in below:
                inner = os.open(name, file if name is below[-1] else folder, dir_fd=opened)
                os.close(opened)
                opened = inner
            if not below or not stat.S_ISREG(os.fstat(opened).st_mode):
                raise OSError
        except OSError:
            os.close(opened)
            raise ApiError(422, OUTSIDE, "url") from None
        return opened

    def _digest(self, opened: int) -> str:
        """SHA-256 of an open file, which is closed; computed once for each state of it, in a child: a disk may hang."""
        try:
            facts = os.fstat(opened)
            key = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)
            if key not in self._digests:
                self._digests[key] = self.decoders.facts("digest", lambda: os.dup(opened))["sha256"]
            return self._digests[key]
        finally:
            os.close(opened)

    # ---- frames that the request brings along ---------------------------------------------------------------

    def _pictures(self, place: Pictures) -> Frames:
        cuts, start, held = [], 0, Temporary(self.work)
        with held.file:
            for data in place.data:
                held.file.write(data)
                cuts.append((start, len(data)))
                start += len(data)
        opened = held.open()
        try:
            pixels = self.decoders.stills(opened, cuts, self.size)
        finally:
            os.close(opened)
        times = np.array(place.times)
        gap = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1.0
        duration = place.duration if place.duration is not None else float(times[-1] + max(gap - times[0], 0.0))
        return Frames(pixels, times, duration, len(times), len(times) / duration if duration else 0.0)


def remove_work(store: Path) -> None:
    """What a server that was killed has left of requests."""
    for rest in (store / "work").glob("*"):
        rest.unlink(missing_ok=True)
