"""One run at a time in a run folder: a lock that names host, process and time, and that no dead process holds.

The system's own lock on a file says whether its process lives, and is gone with it. Where file systems do not carry
such locks from host to host (or at all), the holder touches the file every few seconds, and whoever finds another
host's name in it watches for that.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK = "run.lock"
BEAT, WATCHED = 5.0, 20.0  # seconds between two touches, and how long a silent holder on another host is watched


class Held(OSError):
    """Another run holds the folder."""


@contextmanager
def run_lock(run: Path, hint: str, doing: str = "training") -> Iterator[None]:
    """Hold `run` (made if it is not there) within the block. Of a job with several ranks, rank 0 holds it for all.

    hint: what to do instead, and doing: what goes on there, for the message. Raises `Held`, an OSError, while another
    process holds it; says so where a process has ended without giving it back.
    """
    new = not run.is_dir()
    run.mkdir(parents=True, exist_ok=True)
    path, job = run / LOCK, _job()
    if int(os.environ.get("RANK", 0)):
        _refuse_another_job(path, job, run, hint, doing)
        yield
        return
    handle = _take(path, run, hint, doing)
    over = threading.Event()
    try:
        about = {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%F %T %z"), "job": job}
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(about).encode(), 0)
        threading.Thread(target=_beat, args=(handle, over), name="run lock", daemon=True).start()
        yield
    finally:
        over.set()
        with suppress(OSError):
            path.unlink()
        os.close(handle)
        if new:
            with suppress(OSError):  # not empty: the run has begun
                run.rmdir()


def _job() -> str:
    """What all ranks of a launch share."""
    place = [os.environ.get(k, "") for k in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")]
    return ":".join(place) if any(place) else f"{socket.gethostname()}:{os.getpid()}"


def _take(path: Path, run: Path, hint: str, doing: str) -> int:
    """The open lock file, ours."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _locked(handle):
                raise _held(path, run, hint, doing)
            before = _about(path)
            if before and before.get("host") != socket.gethostname() and _lives(path, before):
                raise _held(path, run, hint, doing)
            with suppress(OSError):  # gone: its holder ended just now and removed it
                if os.path.samestat(os.fstat(handle), os.stat(path)):
                    if before:
                        print(f"{run}: {_who(before)} ended without giving the folder back; going on", flush=True)
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _locked(handle: int) -> bool:
    """Whether the system's lock is ours now; where a file system has none, whether nothing speaks against it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no such locks here: name, process and heartbeat must do
        before = _about(Path(f"/proc/self/fd/{handle}"))
        return not (before.get("host") == socket.gethostname() and Path(f"/proc/{before.get('process')}").exists())
    return True


def _lives(path: Path, before: dict[str, str]) -> bool:
    """Whether the holder on another host, whose lock does not reach here, touches the file."""
    print(f"{path}: {_who(before)} has not given it back; watching for {WATCHED:g} s whether it lives", flush=True)
    first, end = _touched(path), time.monotonic() + WATCHED
    while time.monotonic() < end and _touched(path) == first:
        time.sleep(BEAT / 5)
    return _touched(path) not in (first, None)


def _touched(path: Path) -> int | None:
    with suppress(OSError), path.open() as file:  # opened: a network file system then asks its server
        return os.fstat(file.fileno()).st_mtime_ns
    return None


def _refuse_another_job(path: Path, job: str, run: Path, hint: str, doing: str) -> None:
    """For the other ranks: end at once when rank 0 will."""
    for _ in range(10):  # rank 0 may be about to write its name
        held = False
        with suppress(OSError), path.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                held = True
        if not held or _about(path).get("job", job) == job:
            return
        time.sleep(0.1)
    raise _held(path, run, hint, doing)


def _beat(handle: int, over: threading.Event) -> None:
    while not over.wait(BEAT):
        with suppress(OSError):
            os.utime(handle)


def _about(path: Path) -> dict[str, str]:
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text())
        return found if isinstance(found, dict) else {}
    return {}


def _who(about: dict[str, str]) -> str:
    if not about:
        return "a process"
    return f"process {about.get('process')} on {about.get('host')}, since {about.get('since')},"


def _held(path: Path, run: Path, hint: str, doing: str) -> Held:
    about: dict[str, str] = {}
    for _ in range(10):  # the holder may be about to write its name
        if about := _about(path):
            break
        time.sleep(0.05)
    return Held(
        f"{run} is in use: {_who(about)} is {doing} there ({path}). Nothing was changed. Wait until it ends, "
        f"stop it, or {hint}."
    )
