"""METEOR 1.5 through its own jar, which is an extra: the program is Java, and its numbers are those of no other.

Whoever wants it names the jar; its SHA-256 goes into every report. Nothing is downloaded.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from hashlib import file_digest
from pathlib import Path

MEMORY = "2G"
ADVICE = "It is in the archive meteor-1.5.tar.gz, and in the wheel of pycocoevalcap (meteor/meteor-1.5.jar)"


class MeteorError(ValueError):
    """METEOR cannot be had, or ended."""


class Meteor:
    """A running METEOR process, a context manager: each pair of a candidate and its references to 0..1."""

    def __init__(self, jar: str | Path, java: str = "java", language: str = "en") -> None:
        """Raises MeteorError without the jar or Java."""
        self.jar = Path(jar)
        if not self.jar.is_file():
            raise MeteorError(f"{jar} is no file: METEOR and SODA_c need meteor-1.5.jar. {ADVICE}")
        if shutil.which(java) is None:
            raise MeteorError(
                f"METEOR is a Java program, and there is no {java} here: install a Java runtime (8 or later)"
            )
        with self.jar.open("rb") as file:
            self.sha256 = file_digest(file, "sha256").hexdigest()
        command = [java, f"-Xmx{MEMORY}", "-jar", self.jar.name, "-", "-", "-stdio", "-l", language, "-norm"]
        self._process = subprocess.Popen(  # in its folder: it looks for its tables beside itself
            command,
            cwd=self.jar.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )

    @property
    def name(self) -> str:
        """For reports."""
        return f"{self.jar.name} sha256:{self.sha256[:16]}"

    def segments(self, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """Of each candidate by itself; the mean of these is not the score of the corpus."""
        return self._eval(candidates, references)[:-1]

    def corpus(self, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """Of all together, whose matches are added before the formula."""
        return self._eval(candidates, references)[-1]

    def _eval(self, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        if not candidates:
            return [0.0]
        found = [self._ask(f"SCORE ||| {' ||| '.join(map(_clean, refs))} ||| {_clean(said)}")
                 for said, refs in zip(candidates, references)]  # fmt: skip
        first = self._ask(f"EVAL ||| {' ||| '.join(found)}")
        return [float(first), *(float(self._line()) for _ in found)]  # each segment, then the corpus

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise MeteorError(
                f"{self.jar} ended: is it METEOR 1.5, with its data folder beside it? {ADVICE}"
            ) from error
        return self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise MeteorError(f"{self.jar} ended: is it METEOR 1.5, with its data folder beside it? {ADVICE}")
        return line.strip()

    def __enter__(self) -> Meteor:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def _clean(text: str) -> str:
    """Without what separates fields."""
    return " ".join(text.replace("|||", " ").split())
