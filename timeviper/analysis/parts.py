"""Figures of an analysis: a line for each pack, so that what was stopped continues."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from timeviper.analysis.subject import Subject
from timeviper.inference.journal import digest_of


def digest_of_settings(subject: Subject, *settings: Any) -> str:
    """16 hexadecimal digits of all that figures depend on: weights, recipe, precision and what is asked."""
    computed = str(next(subject.model.parameters()).dtype)
    known = digest_of(subject.export, subject.recipe, computed)
    return sha256(json.dumps([known, settings]).encode()).hexdigest()[:16]


class Parts:
    """A file of lines: figures of packs by number, of one digest; those of another are thrown away."""

    def __init__(self, path: Path, digest: str) -> None:
        self.path, self.digest = path, digest
        self.found: dict[int, dict[str, Any]] = {}
        whole = ""
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else ():
            try:
                entry = json.loads(line)
                if entry["digest"] == digest and line.endswith("\n"):
                    self.found[entry["pack"]] = entry["figures"]
                    whole += line
            except (ValueError, KeyError, TypeError):
                continue  # the process ended while it wrote
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(whole, encoding="utf-8")

    def add(self, pack: int, figures: Mapping[str, Any]) -> None:
        self.found[pack] = dict(figures)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"digest": self.digest, "pack": pack, "figures": figures}) + "\n")
