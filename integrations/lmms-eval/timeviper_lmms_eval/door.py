"""A running `timeviper bench lines`, in its own environment: one line of JSON in, one out."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from typing import Any


class DoorError(RuntimeError):
    """The program does not run, or has ended."""


class Door:
    """Starts the program, and waits until its model is loaded."""

    def __init__(self, command: str, run: str, frames: str = "run", overrides: str = "") -> None:
        words = [*shlex.split(command), "bench", "lines", run, *shlex.split(overrides), "--frames", frames]
        if shutil.which(words[0]) is None:
            raise DoorError(
                f"there is no program {words[0]}: say where timeviper is, with command=/path/to/bin/timeviper"
            )
        # Variables of this environment's Python are none of the other one's.
        env = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "VIRTUAL_ENV")}
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=env
        )
        if self._line().get("ready") is not True:
            raise DoorError(f"{shlex.join(words)} did not say that it is ready: is it timeviper with `bench lines`?")

    def ask(self, **asked: Any) -> dict[str, Any]:
        """A reply: reply, tokens, finish, error."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise DoorError("timeviper has ended; its own message stands above") from error
        return self._line()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            try:
                found = json.loads(line)
            except ValueError:
                continue  # a warning of some library
            if isinstance(found, dict):
                return found
        raise DoorError("timeviper has ended; its own message stands above")

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
