"""Files that one process of a node brings here, and all of them read: indexes, from wherever the shards are.

They lie in the folder of the cache, each under a name that tells the place it is of and what that held. So a file is
never written to once it is there, and may be mapped: nobody cuts it short under those who read it (which ends a process
without a word), whatever is done to the one that it was made from, and every file system that shards lie on will do.

They are of one boot of the machine, which their names tell, and made anew in the next. So no start of a run waits until
gigabytes are on a disk (a minute where it takes 50 MB a second): nothing is believed that may not have got there.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from timeviper.files import TEMPORARY, write_whole

FOLDER, ENDING = "indexes", ".safetensors"
LATELY = 60.0  # s for which ranks of one node believe what another one has found
UNUSED = 30 * 86400.0  # s after which a file goes


def _boot() -> str:
    """Some letters that stand for this boot of the machine; "" where it does not tell."""
    with suppress(OSError):
        return sha256(Path("/proc/sys/kernel/random/boot_id").read_bytes()).hexdigest()[:8]
    return ""


BOOT = _boot()
LASTING = not BOOT  # whether files must be on the disk before they are believed


class NodeFiles:
    """The files of this node."""

    def __init__(self, cache: str | Path = "") -> None:
        """cache: as `data.cache`; "": timeviper-cache in the temporary folder."""
        self.folder = Path(cache or Path(tempfile.gettempdir()) / "timeviper-cache") / FOLDER

    def get(self, place: str, look: Callable[[], str], make: Callable[[Path], object]) -> Path:
        """The file of what `place` holds now. OSError if it can be kept nowhere.

        look: a word that stands for what it holds. make: writes the file, whole. Either is called by one process of the
        node; the others wait, and believe it if it looked after they asked (or just before, if they are ranks of one
        run, begun by one process: these must not see different things).
        """
        asked, several = time.time(), int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1
        name = sha256(place.encode()).hexdigest()[:24]
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked(name):
            known, looked, run = self._noted(name)
            if looked < asked - (LATELY if several and run == os.getppid() else 0.0):
                looked, known = time.time(), look()
            file = self.folder / f"{name}-{known}{BOOT and f'-{BOOT}'}{ENDING}"
            if not file.exists():
                self._clear(name)
                make(file)
            os.utime(file)
            said = {"holds": known, "looked": looked, "run": os.getppid()}
            write_whole(self.folder / f"{name}.json", json.dumps(said), lasting=False)  # one that is lost costs a look
        return file

    def forget(self, place: str) -> None:
        """Have the file of a place made anew: it is not as it was made."""
        self._clear(sha256(place.encode()).hexdigest()[:24])

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        lock = os.open(self.folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _noted(self, name: str) -> tuple[str, float, int]:
        """What the place held when a process looked, when that was, and whose child it is."""
        try:
            said = json.loads((self.folder / f"{name}.json").read_text())
            return str(said["holds"]), float(said["looked"]), int(said["run"])
        except (OSError, ValueError, KeyError, TypeError):
            return "", 0.0, 0

    def _clear(self, name: str) -> None:
        """Remove what this place held before, what was left behind, and what nobody has used for a month."""
        for file in self.folder.iterdir():
            with suppress(OSError):
                old = time.time() - file.stat().st_mtime > UNUSED
                mine = file.name.startswith(f"{name}-") and (ENDING in file.name or file.name.endswith(TEMPORARY))
                if mine or (old and not file.name.endswith(".lock")):
                    file.unlink()
