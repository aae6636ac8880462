"""Which media of shards are those of another set, by bytes or by look: held-out videos in one's training data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from timeviper.config import FramesConfig
from timeviper.datamodules.checks.defects import Defect
from timeviper.datamodules.checks.kept import Shelf, shelf
from timeviper.datamodules.checks.lookalikes import lookalikes
from timeviper.datamodules.checks.perceptual import FRAMES, LOOKS, SAME_CELL, SAME_RMS, SIZE, Signature, signature
from timeviper.datamodules.checks.sample import CheckConfig
from timeviper.datamodules.checks.shards import examine_shards, find_shards, walk_shard
from timeviper.datamodules.checks.twins import table_of, write_looks
from timeviper.datamodules.frames.container import Still, VideoError
from timeviper.datamodules.frames.video import read_video
from timeviper.datamodules.ordered_pool import ordered
from timeviper.datamodules.shards.schema import media_type
from timeviper.datamodules.shards.tar import CHUNK, SliceFile, is_litter

LITTLE = CheckConfig(FramesConfig(fps=0.0, max_frames=1), image_size=SIZE)
"""What shards are examined for that no check has remembered: little beside the look of their media."""
Progress = Callable[[int, str], None] | None


@dataclass(frozen=True)
class Common:
    """A medium of the set, and one of the shards that is the same or looks the same."""

    media: str
    shard: str
    key: str
    member: str
    rms: float | None
    """Difference in levels of 255; None: they have the same bytes."""


@dataclass
class Overlap:
    """Of a set of media with shards."""

    media: int = 0
    compared: int = 0
    """Media of the shards."""
    found: list[Common] = field(default_factory=list)
    """In the order of the shards: each of their media once for its bytes, or for the first that it looks like; and what
    of the set is not among these, with the first of the shards that it looks like."""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """What could not be compared, by look at least, and why."""


class Openable(Protocol):
    """A video or an image, wherever it lies; it travels to other processes."""

    @property
    def name(self) -> str:
        """With the ending of its type."""
        ...

    def open(self) -> IO[bytes]:
        """Its bytes. ValueError, with what is wrong, where they cannot be had."""
        ...


@dataclass(frozen=True)
class _Medium:
    """A file, or a member of a tar."""

    name: str
    path: Path
    offset: int = 0
    size: int = -1

    def open(self) -> IO[bytes]:
        return self.path.open("rb") if self.size < 0 else SliceFile(self.path, self.offset, self.size)


@dataclass
class _Seen:
    digest: bytes = bytes(16)
    look: Signature | None = None
    problem: str = ""


def find_overlap(
    shards: str | Path,
    media: str | Path | Iterable[Openable],
    workers: int = 0,
    progress: Progress = None,
    state: str | Path | None = None,
) -> Overlap:
    """Look for each of `media` (below a folder: files, or shards of them; or one file; or what opens) in `shards`.

    `state`: where a check of the shards has remembered what it found, which then is not read again. ValueError if
    there is nothing to compare.
    """
    shards = Path(shards)
    tars, overlap = find_shards(shards), Overlap()
    theirs: list[tuple[str, _Seen]] = []
    listed = _media_of(Path(media), overlap) if isinstance(media, str | Path) else media
    for medium, seen in ordered(_look, listed, workers, lambda _: _Seen(problem="ends its decoder")):
        theirs.append((medium.name, seen))
        if seen.problem:
            overlap.unreadable.append((medium.name, seen.problem))
        if progress:
            progress(len(theirs), medium.name)
    if not theirs:
        raise ValueError(f"no media: {media} has no file that ends as one of a video or an image, and no .tar")
    with shelf(Path(state) if state else None, shards, LITTLE) as kept:
        left = [tar for tar in tars if not kept.has(tar, whatever_was_wanted=True)]
        for done, (_, shard) in enumerate(examine_shards(kept, shards, left, LITTLE, workers)):
            if progress:
                progress(len(theirs) + done, shard)
        table = table_of(kept, tars)
        pairs = _same_bytes(theirs, table)
        for still in LOOKS:
            pairs += _same_look(kept, tars, table, theirs, still, {row for row, _, _ in pairs})
        overlap.media, overlap.compared = len(theirs), len(table["entry"])
        firsts = np.searchsorted(table["shard"], np.arange(len(tars) + 1))
        names: list[tuple[str, str]] = []
        number = -1
        for row, medium, rms in sorted(pairs, key=lambda pair: pair[:2]):
            if table["shard"][row] != number:
                number = int(table["shard"][row])
                names = [(entry.key, member) for entry in kept.entries(tars[number]) for member in entry.members]
            shard = str(tars[number].relative_to(shards))
            key, member = names[row - firsts[number]]
            overlap.found.append(Common(theirs[medium][0], shard, key, member, rms))
    return overlap


def _media_of(source: Path, overlap: Overlap) -> Iterator[_Medium]:
    """Files of media below a folder, and those in tars; what cannot be had goes to `overlap.unreadable`."""
    if not source.exists():
        raise ValueError(f"{source} is not there")
    files = sorted(p for p in source.rglob("*") if p.is_file() and not is_litter(p)) if source.is_dir() else [source]
    for path in files:
        name = str(path.relative_to(source)) if path != source else path.name
        if path.suffix == ".tar":
            for found in walk_shard(path, name):
                if isinstance(found, Defect):
                    if found.kind not in ("index", "missing"):  # of which nothing is wanted here
                        overlap.unreadable.append((f"{name}:{found.key}", found.detail))
                    continue
                for field, member in found.members.items():
                    if media_type(field):
                        yield _Medium(f"{name}:{found.key}.{field}", path, member.offset, member.size)
        elif media_type(path.name):
            yield _Medium(name, path)


def _look(medium: Openable) -> _Seen:
    strong = blake2b(digest_size=16)
    try:
        opened = medium.open()
    except ValueError as error:
        return _Seen(problem=str(error))
    with opened as file:
        while chunk := file.read(CHUNK):
            strong.update(chunk)
        seen = _Seen(strong.digest())
        try:
            source = Still(file) if media_type(medium.name) == "image" else file
            seen.look = signature(read_video(source, SIZE, FRAMES).pixels)
        except VideoError as error:
            seen.problem = error.reason
    return seen


Pairs = list[tuple[int, int, float | None]]  # row of the shards' media, number of the set's, difference


def _same_bytes(theirs: list[tuple[str, _Seen]], table: dict[str, NDArray[Any]]) -> Pairs:
    known: dict[bytes, int] = {}
    for number, (_, seen) in enumerate(theirs):
        known.setdefault(seen.digest, number)
    found = (known.get(digest.tobytes()) for digest in table["digest"])
    return [(row, number, None) for row, number in enumerate(found) if number is not None]


def _same_look(
    kept: Shelf,
    tars: list[Path],
    table: dict[str, NDArray[Any]],
    theirs: list[tuple[str, _Seen]],
    still: bool,
    done: set[int],
) -> Pairs:
    """Each medium of the shards, but those done, in the set; then what is left of the set in the shards."""
    shape = LOOKS[still][1]
    numbers = [i for i, (_, seen) in enumerate(theirs) if seen.look is not None and seen.look.shape == shape]
    rows = np.flatnonzero((table["look"] >= 0) & (table["still"] == still))
    if not numbers or not len(rows):
        return []
    set_looks = b"".join(theirs[i][1].look.tobytes() for i in numbers)  # pyright: ignore[reportOptionalMemberAccess]
    with TemporaryDirectory(prefix=".looks-", dir=kept.place) as scratch:
        path = Path(scratch) / "looks"
        with path.open("wb") as file:  # so that either may be searched in the other
            file.write(set_looks)
            write_looks(kept, tars, table, rows, still, file)
            file.write(set_looks)
        looks = np.memmap(path, np.uint8, "r", shape=(2 * len(numbers) + len(rows), *shape))
        ours, differ = lookalikes(looks[: -len(numbers)], SAME_RMS, SAME_CELL, known=len(numbers))
        back, differ_back = lookalikes(looks[len(numbers) :], SAME_RMS, SAME_CELL, known=len(rows))
        del looks
    pairs: Pairs = []
    for place in np.flatnonzero((ours >= 0) & (ours < len(numbers))).tolist():
        row = int(rows[place - len(numbers)])
        if row not in done:
            pairs.append((row, numbers[ours[place]], float(differ[place])))
    there = {number for _, number, _ in pairs}
    for place in np.flatnonzero((back >= 0) & (back < len(rows))).tolist():
        row, number = int(rows[back[place]]), numbers[place - len(rows)]
        if row not in done and number not in there:
            pairs.append((row, number, float(differ_back[place])))
    return pairs
