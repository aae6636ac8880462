"""What was found in each shard, a file a shard: a check that was stopped goes on, and parts of one come together.

A file tells what it is of (size and time of the tar and of its index, what was looked for), and counts only while
that is so; one that was cut or changed is as good as none. About 2 KB a medium, nearly all of it its look.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from timeviper.datamodules.checks.defects import Defect
from timeviper.datamodules.checks.perceptual import LOOKS
from timeviper.datamodules.checks.sample import CheckConfig, Examined, Sample
from timeviper.datamodules.frames.part import Part
from timeviper.datamodules.shards.index import index_path
from timeviper.datamodules.shards.index_file import MERGED
from timeviper.files import write_whole

VERSION = 1
"""Raised with every change of what is found in the same shard."""
SUFFIX = ".checked.npz"
COLUMNS = {
    "entry": ("i4", ()),  # number of the sample among the entries
    "digest": ("u1", (16,)),
    "said": ("u1", (16,)),
    "part": ("f8", (2,)),  # seconds; to inf: to the end
    "offset": ("i8", ()),  # in the tar
    "look": ("i4", ()),  # row of its look; -1: none
    "still": ("?", ()),  # which look: of a picture
}


@dataclass
class Entry:
    """A sample; or what is wrong with files that are none, or with a whole shard (an empty key)."""

    key: str
    findings: list[tuple[str, str]]
    sample: bool = True
    frames: int = 0
    seconds: float | None = None
    conversations: int = 0
    members: list[str] = field(default_factory=list)
    """Its media."""


class Found:
    """What was found in one shard, in the order of its samples."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._rows: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        self._looks: dict[bool, list[NDArray[np.uint8]]] = {False: [], True: []}

    def add(self, found: Sample | Defect, examined: Examined) -> None:
        if isinstance(found, Defect):
            self.entries.append(Entry(found.key, [(found.kind, found.detail)], sample=False))
            return
        rows = self._rows
        for member, digest in examined.digests.items():
            part = examined.parts.get(member, Part())
            look = examined.seen.get(member)
            still = look is not None and len(look) == 1
            rows["entry"].append(len(self.entries))
            rows["digest"].append([*digest])
            rows["said"].append([*(examined.said or bytes(16))])
            rows["part"].append((part.start, np.inf if part.end is None else part.end))
            rows["offset"].append(found.members[member].offset)
            rows["look"].append(-1 if look is None else len(self._looks[still]))
            rows["still"].append(still)
            if look is not None:
                self._looks[still].append(look)
        entry = Entry(found.key, list(examined.findings), True, examined.frames, examined.seconds)
        entry.conversations, entry.members = examined.conversations, list(examined.digests)
        self.entries.append(entry)

    def encode(self, about: dict[str, Any]) -> bytes:
        out = io.BytesIO()
        content = json.dumps({"about": about, "entries": [[*vars(e).values()] for e in self.entries]})
        columns = {n: np.array(self._rows[n], dt).reshape(-1, *shape) for n, (dt, shape) in COLUMNS.items()}
        looks = {
            name: np.array(self._looks[still], np.uint8).reshape(-1, *shape) for still, (name, shape) in LOOKS.items()
        }
        arrays: dict[str, Any] = {"content": np.frombuffer(content.encode(), np.uint8), **columns, **looks}
        np.savez(out, **arrays)
        return out.getvalue()


class Shelf:
    """The files of a folder of shards."""

    def __init__(self, place: Path, shards: Path, config: CheckConfig) -> None:
        self.place, self._shards = place, shards
        wants = asdict(config)
        del wants["accept"]  # which counts when the report is made
        self._wants = json.loads(json.dumps(wants))

    def about(self, tar: Path) -> dict[str, Any]:
        """What a file is of. OSError if the tar is gone."""
        index = next((p for p in (index_path(tar), tar.with_name(MERGED)) if p.exists()), None)
        files = [[p.stat().st_size, p.stat().st_mtime_ns] for p in (tar, index) if p]
        return {"version": VERSION, "files": files, "wants": self._wants}

    def put(self, tar: Path, found: Found, about: dict[str, Any]) -> None:
        """`about`: from before the tar was read, so that a change meanwhile is noticed."""
        path = self._path(tar)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, found.encode(about))

    def has(self, tar: Path, whatever_was_wanted: bool = False) -> bool:
        """Whether what was found in the tar as it is now is there, whole."""
        try:
            with np.load(self._path(tar), allow_pickle=False) as file:
                about = json.loads(file["content"].tobytes())["about"]
                same = about | ({"wants": self._wants} if whatever_was_wanted else {}) == self.about(tar)
                return same and file.zip.testzip() is None
        except (OSError, ValueError, KeyError, TypeError, BadZipFile, EOFError):
            return False

    def entries(self, tar: Path) -> list[Entry]:
        with np.load(self._path(tar), allow_pickle=False) as file:
            entries = [Entry(*values) for values in json.loads(file["content"].tobytes())["entries"]]
        for entry in entries:
            entry.findings = [(kind, detail) for kind, detail in entry.findings]
        return entries

    def columns(self, tar: Path) -> dict[str, NDArray[Any]]:
        """Of its media, as `COLUMNS` has them."""
        with np.load(self._path(tar), allow_pickle=False) as file:
            return {name: file[name] for name in COLUMNS}

    def looks(self, tar: Path, still: bool) -> NDArray[np.uint8]:
        with np.load(self._path(tar), allow_pickle=False) as file:
            return file[LOOKS[still][0]]

    def _path(self, tar: Path) -> Path:
        return self.place / (str(tar.relative_to(self._shards)) + SUFFIX)


@contextmanager
def shelf(place: Path | None, shards: Path, config: CheckConfig) -> Iterator[Shelf]:
    """In a folder that is made where it is missing; None: one that is gone afterwards."""
    if place is None:
        with TemporaryDirectory(prefix="timeviper-check-") as scratch:
            yield Shelf(Path(scratch), shards, config)
        return
    if place.resolve().is_relative_to(shards.resolve()):
        raise ValueError(f"{place} lies in {shards}, which holds the shards alone; name another folder")
    place.mkdir(parents=True, exist_ok=True)
    yield Shelf(place, shards, config)
