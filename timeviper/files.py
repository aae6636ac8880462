"""Files and folders that are whole or not there, whatever ends the process or the machine.

Each is written beside its place under a name that ends in `.tmp`, and takes the place when its bytes are on the disk.
(A rename alone may get there before the data of what it moves.)
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

TEMPORARY = ".tmp"


@contextmanager
def whole_file(path: Path, lasting: bool = True) -> Iterator[Path]:
    """Where to write what is `path` at the end of the block; an error leaves an older file, and nothing of the new.

    lasting: False for what nobody believes after the machine has stopped, and which so need not wait for the disk.
    """
    partial = path.with_name(f"{path.name}.{uuid4().hex[:8]}{TEMPORARY}")  # its own: two may write the same file
    try:
        yield partial
        put(partial, path, lasting)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes, lasting: bool = True) -> Path:
    """A file of this content, text as UTF-8. lasting: as for `whole_file`."""
    with whole_file(path, lasting) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, which is `path` at the end of the block; an error leaves an older one as it was."""
    partial = path.with_name(path.name + TEMPORARY)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        put(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Nobody else who asks writes `path` again and again meanwhile. OSError, naming it, where somebody does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f"{path.name}.lock")
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.fstat(handle).st_nlink > 0  # else the one before has just gone, with the name
        except BlockingIOError:
            held = False
        if not held:
            raise OSError(f"{path} is being written by another process: name another file, or end that one")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)  # still held: who takes the name next makes a file of his own
    finally:
        os.close(handle)


def new_folder(path: str | Path) -> Path:
    """`path`, which may be an empty folder or nothing yet. FileExistsError if it holds anything."""
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} is there already and is not overwritten: name a new folder, or remove it first")
    return path


def put(partial: Path, path: Path, lasting: bool = True) -> None:
    """Give a file or folder its name once all of it is on the disk, in the place of an older one."""
    for part in (*partial.rglob("*"), partial):
        if part.is_file():
            part.chmod(0o666 & ~_umask())  # some writers (safetensors) make files that only their owner may read
        if lasting:
            _to_disk(part)
    old = _aside(path) if path.is_dir() else None
    partial.replace(path)
    if lasting:
        _to_disk(path.parent)
    if old:
        shutil.rmtree(old, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """A folder that is being removed has no final name any more, so that nobody takes the rest for a whole one."""
    shutil.rmtree(_aside(path), ignore_errors=True)


def _aside(folder: Path) -> Path:
    gone = folder.with_name(f"{folder.name}.old{TEMPORARY}")
    shutil.rmtree(gone, ignore_errors=True)
    return folder.rename(gone)


def _umask() -> int:
    """The process's mask for new files; read where that needs no change of it, which other threads would feel."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some network file systems cannot do it for folders
            raise
    finally:
        os.close(handle)
