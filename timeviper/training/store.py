"""A run's folder of checkpoints: each `step=N` is whole or not there, and `latest` names the one to continue from.

A checkpoint is written under a temporary name and renamed when all of it is on disk. So a process that is killed
at any moment leaves the earlier ones as they were.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from timeviper.config import Recipe
from timeviper.config.load import CONFIG, dump
from timeviper.errors import ConfigError, Problem
from timeviper.files import TEMPORARY, put, remove_folder, write_whole
from timeviper.package import VERSION

log = logging.getLogger("timeviper")

LATEST, ABOUT = "latest", "about.json"
PREFIX = "step="
FORMAT = 1  # raised when an older program can no longer read what is written


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(PREFIX))


class CheckpointStore:
    """The checkpoints of one run. Only rank 0 writes; every rank may read."""

    def __init__(self, folder: Path, keep: int, recipe: Recipe) -> None:
        """`keep`: newest checkpoints that stay on disk."""
        self.folder, self.keep, self.recipe = folder, keep, recipe
        self.beside: Callable[[int], Mapping[str, str]] = lambda step: {}
        """Small files that go into the checkpoint of a step, by name; asked for when the step ends."""

    def path(self, step: int) -> Path:
        return self.folder / f"{PREFIX}{step}"

    def partial(self, step: int) -> Path:
        """Where the checkpoint of a step is written before it has its name."""
        return self.folder / f"{PREFIX}{step}{TEMPORARY}"

    def whole(self) -> list[Path]:
        """Oldest first."""
        found = (p for p in self.folder.glob(f"{PREFIX}*") if p.name.removeprefix(PREFIX).isdigit())
        return sorted(found, key=step_of)

    def latest(self) -> Path | None:
        """The checkpoint that `latest` names, which a person may edit to go back; without the file, the newest."""
        newest = next(reversed(self.whole()), None)
        pointer = self.folder / LATEST
        if not pointer.is_file():
            return newest
        named = self.folder / pointer.read_text().strip()
        if named in self.whole():
            return named
        if newest is not None:
            log.warning("%s names %s, which is not there; taking %s", pointer, named.name, newest.name)
        return newest

    def begin(self, step: int) -> None:
        """Remove what earlier writes left unfinished, and make the folder that a new one goes to."""
        for stale in self.folder.glob(f"{PREFIX}*{TEMPORARY}"):
            shutil.rmtree(stale, ignore_errors=True)
        self.partial(step).mkdir(parents=True)

    def commit(self, step: int, world: int, beside: Mapping[str, str]) -> None:
        """Give the checkpoint its name, point `latest` at it, and remove the oldest beyond `keep`.

        beside: what `self.beside` said at that step.
        """
        partial, final = self.partial(step), self.path(step)
        for name, content in beside.items():
            (partial / name).write_text(content)
        about = {
            "format": FORMAT,
            "timeviper": VERSION,
            "torch": torch.__version__,
            "recipe": self.recipe.name,
            "step": step,
            "ranks": world,
        }
        (partial / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
        dump(self.recipe, partial / CONFIG)
        put(partial, final)  # perhaps in the place of one from before the run went back
        write_whole(self.folder / LATEST, f"{final.name}\n")
        past = [p for p in self.whole() if step_of(p) <= step]
        for old in past[: -self.keep]:
            remove_folder(old)

    def discard(self, step: int) -> None:
        """Remove a write that failed."""
        shutil.rmtree(self.partial(step), ignore_errors=True)


def check_readable(checkpoint: Path, out: str) -> None:
    """ConfigError if a newer program wrote this checkpoint in a form that this one does not know. `out`: the run."""
    about = about_checkpoint(checkpoint)
    if about.get("format", 0) > FORMAT:
        problem = Problem(
            "out",
            out,
            f"{checkpoint.name} was written by timeviper {about.get('timeviper')} in format {about['format']}; this "
            f"is timeviper {VERSION}, which reads formats up to {FORMAT}. Continue with that version or "
            "a later one, or start anew in a folder of its own (out=runs/...). Nothing was changed.",
        )
        raise ConfigError(str(checkpoint.parent), [problem])


def about_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """What `commit` wrote of a checkpoint; empty for one from before it did.

    Raises ValueError when the file is there but cannot be read.
    """
    file = checkpoint / ABOUT
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); remove {checkpoint} to continue from an earlier one") from error
