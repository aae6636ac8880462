"""What needles are made of: clips to hide them in and captioned pictures, parted into training and held-out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np

from timeviper.datamodules.checks.lookalikes import lookalikes
from timeviper.datamodules.checks.perceptual import FRAMES, SAME_CELL, SAME_RMS, SIZE, Signature, signature
from timeviper.datamodules.formats.text_files import files_below
from timeviper.datamodules.frames.container import VideoError
from timeviper.datamodules.frames.video import probe_video, read_video
from timeviper.datamodules.needles import pictures
from timeviper.datamodules.needles.pictures import Picture, read_captions
from timeviper.datamodules.shards.schema import media_type

FASTEST = 1001  # denominator of a rate at most: 29.97 frames a second are 30000/1001


@dataclass(frozen=True)
class Clip:
    """A video to hide needles in."""

    file: Path
    seconds: float
    rate: Fraction
    """Frames a second."""
    width: int
    height: int


class _File(Protocol):
    @property
    def file(self) -> Path: ...


Kind = TypeVar("Kind", bound=_File)


@dataclass(frozen=True)
class Looks(Generic[Kind]):
    """Files with what tells whether two are the same: their bytes, and how they look."""

    items: list[Kind]
    digests: dict[Path, str]
    """sha256, in hexadecimal digits."""
    signatures: dict[Path, Signature]

    def groups(self) -> list[list[Kind]]:
        """The items, those together that are the same; in an order that depends on their bytes alone."""
        found: dict[str, list[Kind]] = {}
        for item in sorted(self.items, key=lambda item: self.digests[item.file]):
            found.setdefault(self.digests[item.file], []).append(item)
        digests = [*found]
        first, _ = _alike([self.signatures[found[digest][0].file] for digest in digests])
        for digest, row in zip(digests, first):
            if row >= 0:
                found[digests[row]] += found.pop(digest)
        return [found[digest] for digest in sorted(found)]

    def overlap(self, other: Looks[Kind]) -> str:
        """The first pair of files, one on each side, that are the same, as a sentence; empty if there is none."""
        mine = {digest: file for file, digest in self.digests.items()}
        for file, digest in other.digests.items():
            if digest in mine:
                return f"{mine[digest]} and {file} have the same bytes"
        files, known = [*self.signatures, *other.signatures], len(self.signatures)
        first, away = _alike([*self.signatures.values(), *other.signatures.values()], known)
        for row in range(known, len(files)):
            if 0 <= first[row] < known:
                return f"{files[first[row]]} and {files[row]} look the same (they differ by {away[row]:.1f} of 255)"
        return ""

    def only(self, items: Sequence[Kind]) -> Looks[Kind]:
        files = {item.file for item in items}
        return Looks(
            list(items),
            {file: digest for file, digest in self.digests.items() if file in files},
            {file: seen for file, seen in self.signatures.items() if file in files},
        )


def _alike(signatures: Sequence[Signature], known: int = 0) -> tuple[list[int], list[float]]:
    """For each the first that it looks like, -1: none, and by how much of 255 they differ; as `lookalikes`."""
    first, away = lookalikes(np.stack(signatures), SAME_RMS, SAME_CELL, known)
    return first.tolist(), away.tolist()


@dataclass(frozen=True)
class Material:
    """One side: what training shows, or what it never shows."""

    clips: Looks[Clip]
    pictures: Looks[Picture]

    def as_dict(self) -> dict[str, list[str]]:
        """What makes it another: digests and names of the files, and captions; not where they lie."""
        clips, pictures = self.clips.digests, self.pictures.digests
        return {
            "clips": sorted(f"{digest[:16]} {file.name}" for file, digest in clips.items()),
            "pictures": sorted(f"{pictures[p.file][:16]} {p.file.name}: {p.caption}" for p in self.pictures.items),
        }


def read_material(videos: Path, images: Path) -> Material:
    """Every video in a folder (or one file), and every row of a table of captions, opened and looked at.

    ValueError that lists all that cannot be read.
    """
    if not videos.exists():
        raise ValueError(f"there is no folder {videos} of videos")
    files = [f for f in (files_below(videos) if videos.is_dir() else [videos]) if media_type(f.name) == "video"]
    if not files:
        raise ValueError(f"{videos} holds no video to hide needles in; videos end in .mp4, .mkv, .webm, .avi, ...")
    captioned = read_captions(images)
    # One probe opens the file: what cannot be decoded, too, is found now and not after an hour of encoding.
    clips = _each(files, _clip, f"{videos}: of {len(files):,} videos")
    found = {picture.file: picture for picture in captioned}
    seen = _each(list(found), pictures.seen, f"{images}: of {len(found):,} pictures")
    return Material(
        Looks([clip for clip, _ in clips.values()], _digests(clips), {f: s for f, (_, s) in clips.items()}),
        Looks(captioned, _digests(seen), dict(seen)),
    )


Made = TypeVar("Made")


def _each(files: Iterable[Path], make: Callable[[Path], Made], of: str) -> dict[Path, Made]:
    made, bad = {}, []
    for file in files:
        try:
            made[file] = make(file)
        except VideoError as error:
            bad.append(str(error))
    if bad:
        shown = "".join(f"\n  {line}" for line in bad[:10]) + (f"\n  ... and {len(bad) - 10:,} more" * (len(bad) > 10))
        raise ValueError(f"{of} {len(bad):,} cannot be read; mend them or take them out:{shown}")
    return made


def _clip(file: Path) -> tuple[Clip, Signature]:
    info = probe_video(file)
    if info.kind == "image" or info.frames < 2:
        raise VideoError(str(file), "is a picture, not a video to hide needles in")
    seen = signature(read_video(file, SIZE, FRAMES).pixels)
    rate = Fraction(info.fps).limit_denominator(FASTEST)
    return Clip(file, info.duration, rate, info.width, info.height), seen


def _digests(files: Mapping[Path, object]) -> dict[Path, str]:
    found = {}
    for file in files:
        with file.open("rb") as opened:
            digest = sha256()
            while chunk := opened.read(1 << 20):
                digest.update(chunk)
            found[file] = digest.hexdigest()
    return found


def parted(material: Material, share: float) -> tuple[Material, Material]:
    """Material for training, and `share` of clips and of pictures that training never shows.

    The same bytes, and what looks the same, are on the same side. ValueError where a side would be empty.
    """
    train_clips, held_clips = _parted(material.clips, share, "videos", "--held-out-videos")
    train_pictures, held_pictures = _parted(material.pictures, share, "pictures", "--held-out-images")
    return Material(train_clips, train_pictures), Material(held_clips, held_pictures)


def _parted(looks: Looks[Kind], share: float, what: str, option: str) -> tuple[Looks[Kind], Looks[Kind]]:
    groups = looks.groups()
    if len(groups) < 2:
        same = " (those that are there are the same)" if len(looks.items) > 1 else ""
        raise ValueError(
            f"to hold some out of training, two different {what} are needed at least{same}; bring more, or name what "
            f"is held out with {option}"
        )
    count = min(max(round(share * len(groups)), 1), len(groups) - 1)
    held, train = ([item for group in part for item in group] for part in (groups[:count], groups[count:]))
    return looks.only(train), looks.only(held)


def check_apart(train: Material, held_out: Material) -> None:
    """ValueError that names the first two files which are the same on both sides."""
    for what, pair in (
        ("video", train.clips.overlap(held_out.clips)),
        ("picture", train.pictures.overlap(held_out.pictures)),
    ):
        if pair:
            raise ValueError(
                f"held-out needles must be other {what}s than those of training, but {pair}: take one of them out"
            )
