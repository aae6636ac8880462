"""Where the videos and subtitles of a set are: below a folder, in archives there, under the names that sets use."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from timeviper.benchmarking.archives import (
    ArchiveError,
    extract,
    is_archive,
    is_compressed,
    is_later_part,
    members_of,
    open_member,
)
from timeviper.benchmarking.item import Item, SubtitleRef, VideoRef
from timeviper.benchmarking.rows import json_of
from timeviper.datamodules.formats.frames import joined
from timeviper.datamodules.formats.names import composed
from timeviper.datamodules.formats.text_files import files_below
from timeviper.datamodules.shards.schema import IMAGE, VIDEO

SUBTITLES = ("srt", "vtt", "json", "jsonl", "ttml")
ID_PREFIX = "v_"  # of ActivityNet's files, which lists may leave out


@dataclass(frozen=True)
class Place:
    """A file, a member of an archive, or a folder of frames (which ends in "/" in an archive)."""

    path: str
    member: str = ""

    @property
    def inside(self) -> str:
        """Its name with folders, to be compared with what a list says."""
        return self.member.rstrip("/") or self.path


class Library:
    """All videos, folders of frames and subtitles below some folders, by their names without folder and ending."""

    def __init__(self, folders: Sequence[Path], names: Path | None = None) -> None:
        """names: a JSON object or a CSV of two columns, from the set's name of a video to the name of its file."""
        self.folders = list(folders)
        self.problems: list[str] = []
        """Archives that cannot be read."""
        self.compressed: list[str] = []
        """Archives of which every opening decompresses what lies before."""
        self.videos: dict[str, list[Place]] = {}
        self.frames: dict[str, list[Place]] = {}
        self.subtitles: dict[str, list[Place]] = {}
        self.named = read_names(names) if names else {}
        for folder in folders:
            if not folder.exists():
                raise ValueError(f"{folder} is not there: --videos is a folder of videos or archives, or an archive")
            for path in files_below(folder) if folder.is_dir() else [folder]:
                self._add(path)

    @property
    def count(self) -> int:
        """Video files."""
        return sum(map(len, self.videos.values()))

    def _add(self, path: Path) -> None:
        if is_later_part(path.name):
            return
        if not is_archive(path.name):
            self._note(Place(str(path)), str(path.parent), "")
            return
        try:
            for name in members_of(path):
                self._note(Place(str(path), name), str(path), name.rpartition("/")[0] + "/")
        except ArchiveError as error:
            self.problems.append(str(error))
        if is_compressed(path):
            self.compressed.append(str(path))

    def _note(self, place: Place, container: str, folder: str) -> None:
        stem, _, ending = place.inside.rpartition("/")[2].rpartition(".")
        kind = ending.lower()
        if kind in VIDEO:
            self.videos.setdefault(composed(stem), []).append(place)
        elif kind in IMAGE:
            whole = Place(container, "" if folder in ("", "/") else folder)
            known = self.frames.setdefault(composed(whole.inside.rpartition("/")[2]), [])
            if whole not in known[-1:]:
                known.append(whole)
        elif kind in SUBTITLES:
            self.subtitles.setdefault(composed(stem), []).append(place)

    def video(self, ref: VideoRef) -> VideoRef | str:
        """Where it is; or what is wrong, as a sentence."""
        name = self.named.get(ref.name, ref.name)
        found = best(name, self.frames if ref.fps is not None else self.videos)
        if isinstance(found, Place):
            return replace(ref, path=found.path, member=found.member)
        if found:
            return f"could be any of {', '.join(p.inside for p in found[:3])}: keep one of them"
        return "no file of this name" if ref.fps is None else "no folder of frames of this name"

    def subtitle(self, ref: SubtitleRef) -> SubtitleRef | None:
        found = best(ref.path, self.subtitles)
        return replace(ref, path=found.path, member=found.member) if isinstance(found, Place) else None


def best(name: str, known: Mapping[str, Sequence[Place]]) -> Place | list[Place]:
    """The place whose folders agree with most of those in a name; several that agree as well; or none."""
    name = composed(name.replace("\\", "/"))
    base = name.rpartition("/")[2]
    stem, _, ending = base.rpartition(".")
    bare = stem if ending.lower() in (*VIDEO, *SUBTITLES) and stem else base
    other = bare.removeprefix(ID_PREFIX) if bare.startswith(ID_PREFIX) else ID_PREFIX + bare
    found = next((known[n] for n in (bare, other) if n in known), ())
    scores = [_agreement(name, place.inside) for place in found]
    top = [place for place, score in zip(found, scores) if score == max(scores)]
    return top[0] if len(top) == 1 else top


def _agreement(name: str, place: str) -> tuple[int, bool]:
    """Folders from the last one on that are the same; and whether the file's whole name is."""
    *wanted, base = name.split("/")
    *there, file = composed(place).split("/")
    same = 0
    for a, b in zip(reversed(wanted), reversed(there)):
        if a != b:
            break
        same += 1
    return same, base == file


def read_names(path: Path) -> dict[str, str]:
    """What the set calls a video -> what its file is called. ValueError if the file says something else."""
    if path.suffix.lower() == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            found = [row for row in csv.reader(file) if row]
        if any(len(row) != 2 for row in found):
            raise ValueError(f"{path} must have two columns: what the set calls a video, and what its file is called")
        return {a.strip(): b.strip() for a, b in found}
    content = json_of(path)
    if not isinstance(content, dict) or not all(isinstance(v, str) for v in content.values()):
        raise ValueError(f"{path} must be an object: what the set calls a video, and what its file is called")
    return content


def resolve(items: Iterable[Item], library: Library) -> tuple[list[Item], dict[str, str]]:
    """The items with the places of their videos and subtitles; and by name the videos that are missing, and why.

    A missing one stays among the items (`video.missing`).
    """
    placed: list[Item] = []
    missing: dict[str, str] = {}
    for item in items:
        found = library.video(item.video)
        if isinstance(found, str):
            missing[item.video.name] = found
            found = item.video
        subtitles = library.subtitle(item.subtitles) if item.subtitles else None
        placed.append(replace(item, video=found, subtitles=subtitles))
    return placed, missing


def open_video(ref: VideoRef) -> str | IO[bytes]:
    """What `read_video`, `FrameStream` and `Container` take: a path, or a file that can be sought in.

    A folder of frames becomes a video of them in memory, at `ref.fps`, that begins with the first picture. Apply
    `ref.part` when it is read. ValueError for a missing one and for pictures that are no video; ArchiveError.
    """
    if ref.missing:
        raise ValueError(f"{ref.name} is not there")
    if ref.fps is None:
        return open_member(Path(ref.path), ref.member) if ref.member else ref.path
    if not Path(ref.path).is_file():
        return io.BytesIO(joined(Path(ref.path), (), ref.fps).read())
    with TemporaryDirectory() as folder:
        extract(Path(ref.path), ref.member, Path(folder))
        return io.BytesIO(joined(Path(folder), (), ref.fps).read())


def read_subtitles(ref: SubtitleRef) -> bytes:
    """The bytes of a subtitle file; its form is that of the ending of its name."""
    if not ref.member:
        return Path(ref.path).read_bytes()
    with open_member(Path(ref.path), ref.member) as file:
        return file.read()
