"""Is a test set whole? Counts against the published ones, known defects, videos that are missing, broken or others.

Nothing of it needs a model. Problems make a score another set's; notes are what one has to know of the set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from timeviper.benchmarking import defects
from timeviper.benchmarking.defects import SAYS, counted
from timeviper.benchmarking.item import Item, VideoRef
from timeviper.benchmarking.media import open_video
from timeviper.benchmarking.registry import Loaded
from timeviper.config import FramesConfig
from timeviper.datamodules.checks.overlap import Overlap, find_overlap
from timeviper.datamodules.frames.container import VideoError
from timeviper.datamodules.frames.video import read_video
from timeviper.datamodules.ordered_pool import ordered
from timeviper.datamodules.shards.schema import VIDEO

FRAMES = FramesConfig(fps=1e6, max_frames=8)  # decoded of each video, all over it
SIZE = 32  # pixels square
SHOWN = 5  # names that a sentence lists
SECONDS, SHARE = 2.0, 0.05  # by which a video may be longer or shorter than the set says
CUT_SLACK = 1.0  # seconds that a clip may be longer than its cut

WRONG = (defects.BEYOND_OPTIONS, defects.NO_OPTION, defects.TURNED, defects.CLOCK, defects.NO_WINDOW)
WRONG += (defects.SAME_KEY, defects.HIDDEN, defects.SHORT_GROUP)
"""Defects that are problems, unless as many of them were published; others are notes."""
LICENCES = ("LICENSE*", "LICENCE*", "README.md")

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Compared:
    """A count that was published, and what is there."""

    what: str
    published: int
    found: int


@dataclass
class Checked:
    """What was found out about a set."""

    set: str
    title: str
    digest: str
    items: int
    videos: int
    counts: list[Compared] = field(default_factory=list)
    defects: list[Compared] = field(default_factory=list)
    """Items with each defect; `published` 0: the number is not known."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    """Videos that are not there, and why."""
    broken: dict[str, str] = field(default_factory=dict)
    """Videos that cannot be decoded, and why."""
    lengths: dict[str, float] = field(default_factory=dict)
    """Seconds of each video that could be."""
    overlap: Overlap | None = None


def check_set(loaded: Loaded, *, part: bool = False, workers: int = 0, progress: Progress | None = None) -> Checked:
    """Check what was loaded, videos only if a folder of them was given.

    part: that fewer are there than were published is no problem. workers: processes that decode; 0: none but this one.
    """
    items = loaded.items
    checked = Checked(loaded.set.name, loaded.set.title, loaded.digest, len(items), len({i.video.name for i in items}))
    _unread(loaded, checked)
    _counts(loaded, checked, part)
    _defects(loaded, checked)
    _licence(loaded, checked)
    if loaded.library is not None:
        _places(loaded, checked)
        _decode(items, checked, workers, progress)
        _lengths(items, checked)
    checked.notes += loaded.set.remarks
    return checked


def _unread(loaded: Loaded, checked: Checked) -> None:
    if loaded.unread:
        told = "; ".join(f"{one.where} {one.reason}" for one in loaded.unread[:SHOWN])
        checked.problems.append(f"{len(loaded.unread)} entries cannot be read and are not asked: {told}")


def _counts(loaded: Loaded, checked: Checked, part: bool) -> None:
    published, items = loaded.set.counts, loaded.items
    groups = len({item.group for item in items if item.group})
    pairs = [("videos", published.videos, checked.videos), ("questions", published.questions, len(items))]
    pairs.append(("groups", published.groups, groups))
    for label, wanted in published.by.items():
        found = Counter(v for item in items for v in ((item.letter,) if label == "letter" else item.label(label)))
        pairs += [(f"{label} {value}", count, found[value]) for value, count in wanted.items()]
        if odd := sorted(found.keys() - wanted.keys() - {""}):
            checked.problems.append(f"{label} has values that the set has not: {', '.join(odd[:SHOWN])}")
    checked.counts = [Compared(what, count, there) for what, count, there in pairs if count]
    other = next((name for name, count in published.others.items() if count == len(items)), "")
    differ = [c for c in checked.counts if c.published != c.found]
    if other:
        checked.problems.append(f"these are {len(items):,} questions: that is {other}, not {loaded.set.title}")
    elif more := [c for c in differ if c.found > c.published]:
        told = ", ".join(f"{c.what} {c.found:,} for {c.published:,}" for c in more[:SHOWN])
        checked.problems.append(f"more than was published ({told}): annotations of another version or split")
    elif differ and not part:
        told = ", ".join(f"{c.what} {c.found:,} of {c.published:,}" for c in differ[:SHOWN])
        checked.problems.append(f"not what was published ({told}): a part (--part allows it), or another version")


def _defects(loaded: Loaded, checked: Checked) -> None:
    found = counted(loaded.items)
    known = loaded.set.defects
    for name in dict.fromkeys([*known, *found]):
        count, published = found[name], known.get(name, 0)
        checked.defects.append(Compared(name, published, count))
        if not count:
            continue
        keys = [item.key for item in loaded.items if name in item.notes]
        told = f"{name}: {count} items ({', '.join(keys[:SHOWN])}{', ...' if count > SHOWN else ''})"
        told += f"; {SAYS[name]}" if name in SAYS else ""
        told += f"; {published} were published" if published else ""
        wrong = name in WRONG and count > published
        (checked.problems if wrong else checked.notes).append(told)


def _licence(loaded: Loaded, checked: Checked) -> None:
    """Nothing on a disk proves what somebody accepted; but what comes with an accepted download is not there."""
    told = loaded.set
    if not told.licence:
        return
    folders = {p for path in loaded.files for p in (path.parent, path.parent.parent)}
    there = any(found for folder in folders for name in LICENCES for found in folder.glob(name))
    gate = "; its page asks to accept the terms before a download" if told.gated else ""
    note = "" if there else "; no licence file lies beside the annotations, so see that its terms were accepted"
    checked.notes.append(f"licence: {told.licence}{gate}{note}")


def _places(loaded: Loaded, checked: Checked) -> None:
    library = loaded.library
    assert library is not None
    checked.problems += [f"archive {problem}" for problem in library.problems]
    if library.compressed:
        checked.notes.append(
            f"{len(library.compressed)} archives are compressed ({library.compressed[0]}): each opening reads what "
            "lies before; unpack them once (tar -xzf) if that takes long"
        )
    checked.missing = dict(loaded.missing)
    if not loaded.missing:
        return
    lost = sum(item.video.missing for item in loaded.items)
    names = [f"{name} ({why})" for name, why in list(loaded.missing.items())[:SHOWN]]
    told = f"{len(loaded.missing)} of {checked.videos} videos are missing: {', '.join(names)}"
    told += f"; their {lost} of {len(loaded.items)} items stay in the denominator"
    if len(loaded.missing) == checked.videos and library.count:
        other = next(iter(library.videos.values()))[0].inside.rpartition("/")[2]
        told += (
            f". There are {library.count} videos of other names, such as {other}: say which is which with --names "
            "(JSON, or CSV of two columns: what the set says, the file)"
        )
    checked.problems.append(told)


@dataclass(frozen=True)
class Looked:
    """One file that items need. `name` and `open` make it a medium that can be compared with shards."""

    ref: VideoRef

    @property
    def name(self) -> str:
        """With an ending of a video."""
        ending = (self.ref.member or self.ref.path).rpartition(".")[2].lower()
        named = self.ref.name.rpartition(".")[2].lower() in VIDEO
        return self.ref.name if named else f"{self.ref.name}.{ending if ending in VIDEO else 'mov'}"

    def open(self) -> IO[bytes]:
        found = open_video(self.ref)
        return open(found, "rb") if isinstance(found, str) else found


def files_of(items: Iterable[Item]) -> list[Looked]:
    """Each file once, without its clips, in the order in which archives are read best."""
    found = {item.video.file: Looked(replace(item.video, start=None, end=None)) for item in items if item.video.path}
    return list(found.values())


def _decode(items: Iterable[Item], checked: Checked, workers: int, progress: Progress | None) -> None:
    files = files_of(items)
    for number, (looked, found) in enumerate(ordered(_length, files, workers, lambda _: "ends its decoder"), 1):
        if isinstance(found, str):
            checked.broken[looked.ref.name] = found
        else:
            checked.lengths[looked.ref.file] = found
        if progress:
            progress(number, len(files), looked.ref.name)
    if checked.broken:
        told = "; ".join(f"{name}: {why}" for name, why in list(checked.broken.items())[:SHOWN])
        checked.problems.append(f"{len(checked.broken)} of {len(files)} videos cannot be decoded: {told}")


def _length(looked: Looked) -> float | str:
    """Seconds of a video, of which some frames were decoded; or what is wrong with it."""
    try:
        source = looked.open()
    except (ValueError, OSError) as error:
        return str(error)
    with source as file:
        try:
            return read_video(file, SIZE, FRAMES).duration
        except VideoError as error:
            return error.reason


def _lengths(items: Iterable[Item], checked: Checked) -> None:
    """Videos of another length than the set says, and clips and windows that lie outside of them."""
    found: dict[str, dict[str, str]] = {}
    for item in items:
        lasts = checked.lengths.get(item.video.file)
        if lasts is not None and (wrong := _misfit(item, lasts)):
            kind, numbers = wrong
            found.setdefault(kind, {}).setdefault(item.video.name, numbers)
    for kind, names in found.items():
        told = [f"{name} ({numbers})" for name, numbers in names.items()]
        checked.problems.append(f"{len(told)} videos, {kind}: {'; '.join(told[:SHOWN])}")


def _misfit(item: Item, lasts: float) -> tuple[str, str] | None:
    """The first thing that does not fit a video of `lasts` seconds: what it is, and the numbers."""
    start, end, stated = item.video.start, item.video.end, item.duration
    if end is not None and end > lasts + SECONDS:
        clip = end - (start or 0.0)
        if abs(lasts - clip) <= CUT_SLACK:
            return "cut already, and would be cut again (--precut reads them whole)", f"as long as its clip, {clip:g} s"
        return "clip outside", f"{start or 0:g} to {end:g} s of {lasts:.1f} s"
    if stated and abs(stated - lasts) > max(SECONDS, SHARE * stated) and not (start or end):
        return "other length", f"{lasts:.1f} s, but the set says {stated:.1f} s"
    if item.windows and end is None and (last := max(e for _, e in item.windows)) > lasts + SECONDS:
        return "window outside", f"until {last:.1f} s of {lasts:.1f} s"
    return None


def compare_with(
    checked: Checked,
    items: Iterable[Item],
    shards: Path,
    workers: int = 0,
    progress: Callable[[int, str], None] | None = None,
    state: Path | None = None,
) -> None:
    """Look for the set's videos in training shards, by bytes and by look (whole files: cut or cropped ones are not
    found), and note which questions are about them. ValueError if no video is there."""
    items = list(items)
    files = files_of(items)
    if not files:
        raise ValueError("no video of the set is there: nothing can be compared with shards (give --videos)")
    checked.overlap = find_overlap(shards, files, workers, progress, state)
    by_name = {looked.name: looked.ref.file for looked in files}
    seen = {by_name[pair.media] for pair in checked.overlap.found}
    if seen:
        asked = sum(item.video.file in seen for item in items)
        names = list(dict.fromkeys(pair.media for pair in checked.overlap.found))
        checked.problems.append(
            f"{len(seen)} of {len(files)} videos, which {asked} of {len(items)} items are about, are in {shards}: "
            f"{', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}; a score on them is of what was trained"
        )
