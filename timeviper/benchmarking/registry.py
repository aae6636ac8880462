"""All test sets by name, and how one is loaded: annotations into items, items onto videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from timeviper.benchmarking.defects import mark_repeats
from timeviper.benchmarking.item import Item
from timeviper.benchmarking.media import Library, resolve
from timeviper.benchmarking.rows import annotation_files
from timeviper.benchmarking.sets.activitynet import ACTIVITYNET
from timeviper.benchmarking.sets.charades import CHARADES
from timeviper.benchmarking.sets.egoschema import EGOSCHEMA, EGOSCHEMA_FULL
from timeviper.benchmarking.sets.longvideobench import LONGVIDEOBENCH
from timeviper.benchmarking.sets.lvbench import LVBENCH
from timeviper.benchmarking.sets.mlvu import MLVU, MLVU_OPEN
from timeviper.benchmarking.sets.mvbench import MVBENCH
from timeviper.benchmarking.sets.nextqa import NEXTQA
from timeviper.benchmarking.sets.own import OWN_SETS
from timeviper.benchmarking.sets.qvhighlights import QVHIGHLIGHTS
from timeviper.benchmarking.sets.tempcompass import (
    TEMPCOMPASS,
    TEMPCOMPASS_CAPTION,
    TEMPCOMPASS_MATCHING,
    TEMPCOMPASS_YESNO,
)
from timeviper.benchmarking.sets.timelens import TIMELENS
from timeviper.benchmarking.sets.tvgbench import TVGBENCH
from timeviper.benchmarking.sets.vdc import VDC
from timeviper.benchmarking.sets.videomme import VIDEOMME
from timeviper.benchmarking.sets.videomme_v2 import VIDEOMME_V2
from timeviper.benchmarking.sets.vnbench import VNBENCH
from timeviper.benchmarking.sets.vniah import VNIAH
from timeviper.benchmarking.sets.youcook2 import YOUCOOK2
from timeviper.benchmarking.testset import TestSet, Unread
from timeviper.errors import did_you_mean, one_of

PUBLIC = (
    VIDEOMME,
    VIDEOMME_V2,
    LVBENCH,
    MLVU,
    MLVU_OPEN,
    LONGVIDEOBENCH,
    MVBENCH,
    TEMPCOMPASS,
    TEMPCOMPASS_YESNO,
    TEMPCOMPASS_MATCHING,
    TEMPCOMPASS_CAPTION,
    EGOSCHEMA,
    EGOSCHEMA_FULL,
    NEXTQA,
    CHARADES,
    ACTIVITYNET,
    QVHIGHLIGHTS,
    TVGBENCH,
    TIMELENS,
    YOUCOOK2,
    VDC,
    VNIAH,
    VNBENCH,
)
SETS: dict[str, TestSet] = {s.name: s for s in (*PUBLIC, *OWN_SETS)}


@dataclass
class Loaded:
    """A test set as it lies on a disk."""

    set: TestSet
    files: list[Path]
    """Annotation files in the order in which they were read, then those beside them."""
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
    name: str,
    annotations: str | Path,
    videos: str | Path | Sequence[Path] | None = None,
    names: Path | None = None,
    precut: bool = False,
) -> Loaded:
    """Read the annotations of a set, and find its videos (and subtitles) below one or more folders.

    names: a file that says what videos are called there (`media.read_names`). precut: the videos are the clips that
    items ask about, cut already. ValueError for annotations that are not
    there, are none of this set (with which they look like), or hold nothing; entries that alone are wrong are `unread`.
    """
    wanted = set_named(name)
    files = annotation_files(Path(annotations), wanted.patterns)
    folders = dict.fromkeys(path.parent for path in files)
    beside = [p for folder in folders for name in wanted.beside if (p := folder / name).is_file() and p not in files]
    loaded = Loaded(wanted, [*files, *beside], digest_of([*files, *beside]))
    try:
        for one in wanted.read(files):
            if isinstance(one, Item):
                loaded.items.append(one)
            else:
                loaded.unread.append(one)
    except ValueError as error:
        raise ValueError(f"{error}{_looks_like(files, name)}") from error
    if not loaded.items:
        first = loaded.unread[0] if loaded.unread else Unread(files[0].name, "holds no entry")
        raise ValueError(
            f"{annotations} has no item of {wanted.title}: {first.where} {first.reason}{_looks_like(files, name)}"
        )
    loaded.items = mark_repeats(loaded.items)
    if precut:
        loaded.items = [replace(i, video=replace(i.video, start=None, end=None)) for i in loaded.items]
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
    found = [other.name for other in PUBLIC if other.name != name and _takes(other, files)]
    return f"; it looks like annotations of {one_of(found)}" if found else ""


def _takes(other: TestSet, files: Sequence[Path]) -> bool:
    try:
        return isinstance(next(iter(other.read(files)), None), Item)
    except (ValueError, AttributeError, TypeError, KeyError):
        return False
