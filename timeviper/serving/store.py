"""Uploaded files on disk, by the SHA-256 of their bytes: whole or not there, whatever ends the server.

    STORE/<tenant>/files/<id>/data       the bytes
                             /meta.json  name, type and size as the client gave them

A tenant is who shares a key; nobody sees another's. The id is made of the content, so the same bytes are stored once,
and a client that knows them need not send them again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO
from uuid import uuid4

from timeviper.files import TEMPORARY, put, remove_folder
from timeviper.serving.problems import ApiError

FILE_ID = re.compile(r"file-[0-9a-f]{32}")
NAME = 200  # characters of a file's name that are kept


@dataclass(frozen=True)
class StoredFile:
    """One uploaded file."""

    id: str
    name: str
    """As the client called it; for people."""
    type: str
    """As the client said; nobody believes it."""
    bytes: int
    created: int
    """Seconds since 1970."""
    sha256: str

    def as_dict(self) -> dict[str, object]:
        return {
            "id": self.id, "object": "file", "bytes": self.bytes, "created_at": self.created, "filename": self.name,
            "purpose": "user_data", "status": "processed",
        }  # fmt: skip


class Incoming:
    """A file that is being written; `close` without `keep` leaves nothing."""

    def __init__(self, store: FileStore, most: int) -> None:
        self._store, self._most = store, most
        self._folder = store.folder / f"incoming-{uuid4().hex[:12]}{TEMPORARY}"
        self._folder.mkdir(parents=True)
        self._file: IO[bytes] = open(self._folder / "data", "wb")  # noqa: SIM115
        self._digest, self.size = hashlib.sha256(), 0

    def write(self, data: bytes) -> None:
        """413 for more than may come; 507 for a full disk."""
        self.size += len(data)
        if self.size > self._most:
            raise ApiError(413, f"a file may have {self._most:,} bytes at most")
        self._digest.update(data)
        try:
            self._file.write(data)
        except OSError:
            raise ApiError(507, "the server's disk does not take the file") from None

    def keep(self, name: str, type: str) -> StoredFile:
        """The file, stored; the one that is there already, if it is the same. 507 for a full disk."""
        try:
            return self._keep(name, type)
        except OSError:
            raise ApiError(507, "the server's disk does not take the file") from None

    def _keep(self, name: str, type: str) -> StoredFile:
        self._file.close()
        digest, now = self._digest.hexdigest(), int(time.time())
        found = StoredFile(f"file-{digest[:32]}", name[-NAME:], type[:80], self.size, now, digest)
        (self._folder / "meta.json").write_text(json.dumps(asdict(found)))
        with self._store.lock:
            place = self._store.folder / found.id
            if not place.is_dir():
                put(self._folder, place)
        self.close()
        return self._store.get(found.id)

    def close(self) -> None:
        self._file.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class FileStore:
    """The files of one tenant."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder, self._most = folder, most_bytes
        self.lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        for rest in folder.glob(f"*{TEMPORARY}"):  # of an upload that a kill has ended
            shutil.rmtree(rest, ignore_errors=True)

    def incoming(self, most: int) -> Incoming:
        """Where to write a new file of at most so many bytes. 507 if there is no room for any."""
        left = self._most - sum(file.bytes for file in self)
        if left <= 0:
            raise ApiError(507, f"files may take {self._most:,} bytes in all: delete some (DELETE /v1/files/ID)")
        return Incoming(self, min(most, left))

    def get(self, id: str) -> StoredFile:
        """404 for one that is not there."""
        if FILE_ID.fullmatch(id):
            with suppress(OSError, ValueError, TypeError):
                return StoredFile(**json.loads((self.folder / id / "meta.json").read_text()))
        raise ApiError(404, "there is no such file: upload it with POST /v1/files", "file_id")

    def open(self, id: str) -> int:
        """A descriptor of its bytes."""
        self.get(id)
        try:
            return os.open(self.folder / id / "data", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            raise ApiError(404, "there is no such file: upload it with POST /v1/files", "file_id") from None

    def delete(self, id: str) -> None:
        self.get(id)
        with self.lock, suppress(OSError):
            remove_folder(self.folder / id)

    def __iter__(self) -> Iterator[StoredFile]:
        """The newest last."""
        found = []
        for place in self.folder.iterdir():
            with suppress(ApiError):
                found.append(self.get(place.name))
        return iter(sorted(found, key=lambda file: (file.created, file.id)))


def tenant_of(key: str) -> str:
    """The name of a key's folder, which does not tell the key."""
    return f"key-{hashlib.sha256(key.encode()).hexdigest()[:16]}" if key else "open"
