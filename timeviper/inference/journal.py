"""Answers of an evaluation that is under way: `RUN/eval.partial/rank-0.jsonl`, a whole line each as they come.

A process that is killed leaves them; the next start reads the lines of all ranks, and only what is missing is
answered. Each line tells what it belongs to (checkpoint, settings, dtype), so that answers of two are never mixed.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from timeviper.config import Recipe
from timeviper.files import remove_folder
from timeviper.inference.metrics import Answered
from timeviper.package import VERSION
from timeviper.weights.lineage import read_lineage, recipe_digest

log = logging.getLogger("timeviper")

PARTIAL = "eval.partial"


@dataclass(frozen=True)
class Entry:
    """What became of one question under one variant."""

    variant: str
    answered: Answered
    reason: str = ""
    """Why the question could not be read; then nothing is written."""

    @property
    def place(self) -> tuple[str, str, str]:
        """What is asked about which bytes, and of which variant."""
        return self.variant, self.answered.key, self.answered.sample


def digest_of(export: Path, recipe: Recipe, dtype: str) -> str:
    """16 hexadecimal digits of all that answers depend on, apart from the questions."""
    weights = read_lineage(export).get("weights")
    if weights is None:  # an export of an earlier version
        files = sorted(export.glob("*.safetensors"))
        weights = [(file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
    return sha256(json.dumps([weights, recipe_digest(recipe), dtype, VERSION]).encode()).hexdigest()[:16]


class Journal:
    """The partial answers in a run folder; each rank writes a file of its own."""

    def __init__(self, run: Path, digest: str, rank: int = 0, name: str = PARTIAL) -> None:
        self.folder, self.digest, self.rank = run / name, digest, rank

    def begin(self, again: bool = False) -> list[Entry]:
        """What is there of this evaluation; for the first rank alone, before any other writes.

        Answers of others are removed, which is said, and with `again` all.
        """
        rows = list(self._rows())
        own = [] if again else [_entry(row) for row in rows if row["of"] == self.digest]
        if len(own) < len(rows):
            what = "are to be given again" if again else "are of another checkpoint, other settings or another dtype"
            log.warning("started anew: %d answers in %s %s; they are removed", len(rows) - len(own), self.folder, what)
            self.end()
            self.add(own)
        return list({entry.place: entry for entry in own}.values())

    def is_begun(self) -> bool:
        """Whether anything is there of this evaluation."""
        return any(row["of"] == self.digest for row in self._rows())

    def add(self, entries: Iterable[Entry]) -> None:
        """Write lines, which are on the disk afterwards."""
        lines = [{"of": self.digest, "variant": e.variant, **asdict(e.answered), "reason": e.reason} for e in entries]
        if not lines:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"rank-{self.rank}.jsonl").open("ab+") as file:
            if end := file.seek(0, os.SEEK_END):
                file.seek(end - 1)
                if file.read(1) != b"\n":  # a line that was torn when a process was killed
                    file.write(b"\n")
            file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())

    def end(self) -> None:
        if self.folder.is_dir():
            remove_folder(self.folder)

    def _rows(self) -> Iterator[dict[str, Any]]:
        """Every line that is whole; the question of a torn one is answered again."""
        names = {"of", "variant", "reason", *(f.name for f in fields(Answered))}
        for file in sorted(self.folder.glob("rank-*.jsonl")) if self.folder.is_dir() else ():
            for line in file.read_bytes().decode(errors="replace").splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict) and row.keys() == names and all(isinstance(v, str) for v in row.values()):
                    yield row


def _entry(row: dict[str, Any]) -> Entry:
    return Entry(row["variant"], Answered(**{f.name: row[f.name] for f in fields(Answered)}), row["reason"])
