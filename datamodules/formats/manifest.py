"""Somebody's own data, as they have it, brought into the samples that `write_shards` takes.

What each format says becomes an entry (`formats/`); here an entry becomes a sample: its media are found, its
talk is put into conversations, and the whole is checked as the reader will check it. Media stay paths, or places
in a tar, so nothing large is read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from timeviper.datamodules.formats.clip import take_bounds
from timeviper.datamodules.formats.entry import Entry
from timeviper.datamodules.formats.fields import MEDIA, Usage, plain
from timeviper.datamodules.formats.gather import Gathered
from timeviper.datamodules.formats.names import alike, composed, find
from timeviper.datamodules.formats.pieces import without_pieces
from timeviper.datamodules.formats.recognise import read_entries
from timeviper.datamodules.formats.talk import marks, with_talk
from timeviper.datamodules.formats.unshown import check_shown
from timeviper.datamodules.formats.unusable import Unusable, summary
from timeviper.datamodules.frames.part import part_of
from timeviper.datamodules.shards.address import shown
from timeviper.datamodules.shards.schema import PLACEHOLDERS, VIDEO, SchemaError, media_type, parse_record
from timeviper.datamodules.shards.writer import Payload, Sample

FRAMES = (
    "frames of a video are not put together here: make a video of them, at the rate at which they were taken "
    '(ffmpeg -framerate 1 -i %06d.jpg a.mp4), or give them as "image"'
)


class ManifestError(ValueError):
    """Entries that cannot be used, each with its line or file."""

    def __init__(self, source: Path, unusable: Sequence[Unusable], way_on: str = "") -> None:
        super().__init__(f"{source}: {summary(unusable)}" + (f"\n{way_on}" if way_on else ""))
        self.problems = [f"{u.where}: {u.problem}" if u.where else u.problem for u in unusable]


Media = list[dict[str, Any]]  # type and member of each


@dataclass
class Manifest:
    """What a source holds."""

    form: str
    """The format or dialect that was read."""
    entries: int = 0
    """All, whether they can be used or not."""
    samples: list[Sample] = field(default_factory=list)
    unusable: list[Unusable] = field(default_factory=list)
    fields: list[str] = field(default_factory=list)
    """Which fields the entries have, and which of them are used: lines for people."""
    notes: list[str] = field(default_factory=list)
    """What a person may want to know of it."""


def read_manifest(
    source: str | Path,
    form: str = "auto",
    media_root: str | Path | None = None,
    *,
    ignore: Collection[str] = (),
    partial: bool = False,
) -> Manifest:
    """All samples of a source, in its order; `form` is one of `recognise.FORMATS` or `DIALECTS`, or auto.

    Names of media are relative to `media_root`, and must not leave it; without one they are relative to the source,
    and may lead anywhere. Fields in `ignore` are as if they were not there. Raises FileNotFoundError if there is no
    such place, ManifestError with every unusable entry, or, if `partial`, only where no entry can be used.
    """
    source = Path(source)
    for place in (source, *([] if media_root is None else [Path(media_root)])):
        if not place.exists():
            raise FileNotFoundError(f"there is no {place}; give a file or folder of data (docs/your-data.md)")
    beside = source if source.is_dir() else source.parent
    root = beside if media_root is None else Path(media_root)
    manifest, gathered, usage, text_only = Manifest(form), Gathered(), Usage(), 0
    parts, noted = 0, dict[str, list[str]]()
    try:
        manifest.form, entries = read_entries(source, form, ignore)
        for entry in entries:
            for note in entry.notes:
                noted.setdefault(note, []).append(entry.where)
            if entry.notes and not entry.fields:
                continue
            manifest.entries += 1
            try:
                key, record, files = _sample(entry, root, confined=media_root is not None)
            except (SchemaError, OSError) as error:
                manifest.unusable.append(Unusable(entry.where, str(error), _whole(entry)))
                continue
            gathered.add(key, record, files)
            usage.add(_names(entry, ignore), record)
            text_only += not files
            parts += any(part_of(medium) for medium in record["media"])
    except SchemaError as error:  # of the whole source
        raise ManifestError(source, [*manifest.unusable, Unusable("", str(error), None)]) from error
    manifest.samples = gathered.samples()
    if manifest.unusable and not partial:
        raise ManifestError(source, manifest.unusable)
    if not manifest.entries:
        raise ManifestError(
            source, [Unusable("", "it holds no sample; docs/your-data.md describes what is read", None)]
        )
    if text_only:
        manifest.notes.append(f"{text_only} of {usage.entries} samples are text alone, without media")
    manifest.notes += [_note(note, places) for note, places in noted.items()] + gathered.notes() + usage.notes()
    manifest.fields = usage.lines()
    if parts:
        manifest.fields.append(
            f"{parts:,} of {usage.entries:,} entries are about the part of their file that start and end tell; if the "
            "files are cut already, --ignore these fields"
        )
    return manifest


def _note(note: str, places: list[str]) -> str:
    return f"{note} ({len(places):,}: {'; '.join(places[:3])}{' ...' if len(places) > 3 else ''})"


def _whole(entry: Entry) -> Any:
    if entry.raw is not None or isinstance(entry.fields, SchemaError):
        return entry.raw
    return entry.fields


def _names(entry: Entry, ignore: Collection[str]) -> list[str]:
    """What an entry's fields are called where it comes from."""
    fields = entry.raw if isinstance(entry.raw, dict) else entry.fields
    assert isinstance(fields, dict)
    return [name for name, value in fields.items() if name not in ignore and value is not None and value != ""]


def _sample(entry: Entry, root: Path, confined: bool) -> tuple[str, dict[str, Any], Mapping[str, Payload]]:
    """One entry in the form of a shard: key, json and files."""
    if isinstance(entry.fields, SchemaError):
        raise entry.fields
    fields = without_pieces(dict(entry.fields))
    name = fields.pop("key", fields.get("id"))
    if entry.files is not None:
        files, media = _members(fields, entry.files)
        as_written = ""
    else:
        files, media, as_written = _paths(fields, root, confined)
    if not media:
        _check_no_media(fields)
    if entry.files is None:  # in a tar they are of the video that its file was cut from
        _set_bounds(fields, media)
    record = {**with_talk(fields, [m["type"] for m in media]), "media": media}
    check_shown(record)
    parse_record(json.dumps(record).encode(), files)  # escaped: so it can name what has no encoding
    if name is None:
        name = as_written or re.sub(r"\W+", "-", entry.where)
    return re.sub(r"[^\w-]+", "_", composed(str(name))) or "_", record, files


def _set_bounds(fields: dict[str, Any], media: Media) -> None:
    """An entry with start and end is about that part of its video."""
    bounds, names = take_bounds(fields)
    videos = [medium for medium in media if medium["type"] == "video"]
    if len(bounds) not in (0, len(videos)):
        raise SchemaError(f"has {names} for {len(bounds)} videos, but names {len(videos)}", "segments")
    for medium, (start, end) in zip(videos, bounds):
        if "start" in medium or "end" in medium:
            raise SchemaError(f"has {names} beside those of its media; keep one of them", "segments")
        medium |= {"start": start} | ({} if end is None else {"end": end})


def _check_no_media(fields: dict[str, Any]) -> None:
    """Text alone is a sample, too; but not where media were meant."""
    named = [
        k for k, v in fields.items() if any(isinstance(n, str) and "." in n and media_type(n) for n in _as_list(v))
    ]
    if named or not {"messages", "conversations", "question"} & fields.keys():
        meant = f', not "{named[0]}"' if named else "; text alone needs messages, or question and answer"
        raise SchemaError(f'has no media: write "video": "path" or "image": "path"{meant}')


def _paths(fields: dict[str, Any], root: Path, confined: bool) -> tuple[Mapping[str, Payload], Media, str]:
    """The files that an entry names, which are taken out of `fields`; and the first name as it is written there."""
    if "media" in fields:
        raise SchemaError('media is written by this program; name the files in "video" or "image"')
    written = [(kind, name) for kind in PLACEHOLDERS for name in _named(fields, kind)]
    written = _in_order(written, marks(fields.get("conversations", fields.get("messages"))))
    paths = [(kind, _found(kind, name, root, confined)) for kind, name in written]
    single = len(paths) == 1
    members = [path.suffix[1:].lower() if single else f"{i}{path.suffix.lower()}" for i, (_, path) in enumerate(paths)]
    media = [{"type": kind, "member": member} for (kind, _), member in zip(paths, members)]
    first = str(Path(written[0][1]).with_suffix("")).lstrip("./") if written else ""
    return dict(zip(members, (path for _, path in paths))), media, first


def _named(fields: dict[str, Any], kind: str) -> list[Any]:
    """Names of files of a kind, which are taken out of `fields`."""
    names = [name for name in fields if name == kind or plain(name) in MEDIA[kind]]
    found = [_as_list(fields.pop(name)) for name in names]
    found = [listed for listed in found if listed]
    if any(listed != found[0] for listed in found[1:]):
        raise SchemaError(f"names its {kind} in {' and '.join(names)}; keep one of them")
    return found[0] if found else []


def _in_order(written: list[tuple[str, Any]], marked: list[str]) -> list[tuple[str, Any]]:
    """Videos and images in the order of their marks, where there is one of its name for each."""
    if sorted(marked) != sorted(kind for kind, _ in written):
        return written
    of_kind = {kind: iter([pair for pair in written if pair[0] == kind]) for kind in PLACEHOLDERS}
    return [next(of_kind[kind]) for kind in marked]


def _found(kind: str, name: Any, root: Path, confined: bool) -> Path:
    """The file that an entry means; a video's name may come without its ending, as benchmarks list them."""
    if not isinstance(name, str) or not name.strip():
        raise SchemaError(f"{kind} must be the path of a file, got {name!r}")
    if name.startswith("file://"):
        name = unquote(name.removeprefix("file://"))
    if "://" in name:
        raise SchemaError(f"{shown(name)} is an address; media are read from a disk: download it, and name the file")
    if confined and (os.path.isabs(name) or os.path.normpath(name.replace("\\", "/")).startswith("..")):
        raise SchemaError(f"{name} leaves --media-root {root}; leave that option out to take files from anywhere")
    path = find(root / name)  # an absolute path stays as it is
    if path.is_dir():
        raise SchemaError(f"{path} is a folder; {FRAMES}")
    if kind == "video" and not media_type(path.name) and not path.is_file():
        endings = [f".{ending}" for ending in VIDEO]
        there = [p for e in (*endings, *map(str.upper, endings)) if (p := find(Path(f"{path}{e}"))).is_file()]
        if len(there) > 1:
            raise SchemaError(f"{name} could be any of {', '.join(p.name for p in there)}; write the ending")
        path = there[0] if there else path
        if not there:
            raise SchemaError(f"there is no file {path} with the ending of a video")
    if media_type(path.name) != kind:
        frames = f"; {FRAMES}" if media_type(path.name) == "image" else ""
        raise SchemaError(f"{path.name} has not the ending of a {kind}{frames}")
    if not path.is_file():
        raise SchemaError(f"there is no file {path}{f', but there is {other}' if (other := alike(path)) else ''}")
    path.open("rb").close()  # OSError if it may not be read
    return path


def _members(fields: dict[str, Any], files: Mapping[str, Payload]) -> tuple[Mapping[str, Payload], Media]:
    """The files of a sample in a tar: as its json says, else all media in order of their names."""
    stated = fields.pop("media", None)
    if isinstance(stated, list) and all(isinstance(m, dict) and m.get("member") in [*files] for m in stated):
        return files, stated
    if stated is not None:
        raise SchemaError(f"its media do not name its files, which are {', '.join(sorted(files))}")
    for kind in PLACEHOLDERS:  # a path on the machine where the tar was made
        if kind in fields:
            fields[f"{kind}_name"] = fields.pop(kind)
    names = sorted((f for f in files if media_type(f)), key=_natural)
    written = [(str(media_type(name)), name) for name in names]
    ordered = _in_order(written, marks(fields.get("conversations", fields.get("messages"))))
    return files, [{"type": kind, "member": name} for kind, name in ordered]


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts 2.jpg before 10.jpg."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
