"""All test sets by name, and how one is loaded: annotations into items, items onto videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from timeviper.benchmarking.defects import mark_repeats
from timeviper.benchmarking.item import Item
from timeviper.benchmarking.media import Library, resolve
from timeviper.benchmarking.rows import annotation_files
from timeviper.benchmarking.sets.charades import CHARADES
from timeviper.benchmarking.sets.videomme import VIDEOMME
from timeviper.benchmarking.sets.youcook2 import YOUCOOK2
from timeviper.benchmarking.testset import TestSet, Unread
from timeviper.errors import did_you_mean, one_of

SETS: dict[str, TestSet] = {s.name: s for s in (VIDEOMME, CHARADES, YOUCOOK2)}
OWN = ("mcq", "grounding", "caption", "dense")
"""Generic forms, which many files look like."""


@dataclass
class Loaded:
    """A test set as it lies on a disk."""

    set: TestSet
    files: list[Path]
    """Annotation files, in the order in which they were read."""
    digest: str
    """sha256 over their names and bytes."""
    items: list[Item] = field(default_factory=list)
    """All of them, also those whose video is missing."""
    unread: list[Unread] = field(default_factory=list)
    library: Library | None = None
    missing: dict[str, str] = field(default_factory=dict)
    """Videos that are not there, by the set's name, and why; empty if no folder of videos was given."""


def set_named(name: str) -> TestSet:
    """ValueError, with what there is, for another name."""
    if name not in SETS:
        raise ValueError(f"there is no test set {name!r}.{did_you_mean(name, SETS)} There are {one_of(SETS)}")
    return SETS[name]


def load_set(
    name: str, annotations: str | Path, videos: str | Path | Sequence[Path] | None = None, names: Path | None = None
) -> Loaded:
    """Read the annotations of a set, and find its videos (and subtitles) below one or more folders.

    names: a file that says what videos are called there (`media.read_names`). ValueError for annotations that are not
    there, are none of this set (with which they look like), or hold nothing; entries that alone are wrong are `unread`.
    """
    wanted = set_named(name)
    files = annotation_files(Path(annotations), wanted.patterns)
    loaded = Loaded(wanted, files, digest_of(files))
    try:
        for one in wanted.read(files):
            (loaded.items if isinstance(one, Item) else loaded.unread).append(one)  # pyright: ignore[reportArgumentType]
    except ValueError as error:
        raise ValueError(f"{error}{_looks_like(files, name)}") from error
    if not loaded.items:
        first = loaded.unread[0] if loaded.unread else Unread(files[0].name, "holds no entry")
        raise ValueError(
            f"{annotations} has no item of {wanted.title}: {first.where} {first.reason}{_looks_like(files, name)}"
        )
    loaded.items = mark_repeats(loaded.items)
    if videos is not None:
        folders = [Path(videos)] if isinstance(videos, str | Path) else [Path(v) for v in videos]
        loaded.library = Library(folders, names)
        loaded.items, loaded.missing = resolve(loaded.items, loaded.library)
    return loaded


def digest_of(files: Sequence[Path]) -> str:
    """Of annotation files: who has the same has the same questions."""
    found = sha256()
    for path in files:
        found.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def _looks_like(files: Sequence[Path], name: str) -> str:
    """A sentence with the other sets whose reader takes the first entry; empty if none does."""
    found = [other.name for other in SETS.values() if other.name not in (name, *OWN) and _takes(other, files)]
    return f"; it looks like annotations of {one_of(found)}" if found else ""


def _takes(other: TestSet, files: Sequence[Path]) -> bool:
    try:
        return isinstance(next(iter(other.read(files)), None), Item)
    except (ValueError, AttributeError, TypeError, KeyError):
        return False
