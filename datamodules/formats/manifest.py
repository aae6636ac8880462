"""Somebody's own data, as they have it, brought into the samples that `write_shards` takes.

What each format says becomes an entry (`formats/`); here an entry becomes a sample: its media are found, its
talk is put into conversations, and the whole is checked as the reader will check it. Media stay paths, or places
in a tar, so nothing large is read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from timeviper.datamodules.formats.entry import Entry
from timeviper.datamodules.formats.names import alike, composed, find
from timeviper.datamodules.formats.recognise import read_entries
from timeviper.datamodules.formats.talk import marks, with_talk
from timeviper.datamodules.shards.address import shown
from timeviper.datamodules.shards.schema import PLACEHOLDERS, VIDEO, SchemaError, media_type, parse_record
from timeviper.datamodules.shards.writer import Payload, Sample

SHOWN = 10  # problems listed in a message
FRAMES = (
    "frames of a video are not put together here: make a video of them, at the rate at which they were taken "
    '(ffmpeg -framerate 1 -i %06d.jpg a.mp4), or give them as "image"'
)


class ManifestError(ValueError):
    """Entries that cannot be used, each with its line or file."""

    def __init__(self, source: Path, problems: list[str]) -> None:
        more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        super().__init__("\n  ".join([f"{source}: {len(problems)} unusable", *problems[:SHOWN], *more]))
        self.problems = problems


@dataclass
class Manifest:
    """What a source holds."""

    form: str
    """The format or dialect that was read."""
    samples: list[Sample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a person may want to know of it."""


def read_manifest(source: str | Path, form: str = "auto", media_root: str | Path | None = None) -> Manifest:
    """All samples of a source, in its order; `form` is one of `recognise.FORMATS` or `DIALECTS`, or auto.

    Names of media are relative to `media_root`, and must not leave it; without one they are relative to the source,
    and may lead anywhere. Raises FileNotFoundError if there is no such place, ManifestError with every unusable entry.
    """
    source = Path(source)
    for place in (source, *([] if media_root is None else [Path(media_root)])):
        if not place.exists():
            raise FileNotFoundError(f"there is no {place}; give a file or folder of data (docs/your-data.md)")
    beside = source if source.is_dir() else source.parent
    root = beside if media_root is None else Path(media_root)
    manifest, problems, keys = Manifest(form), [], _Keys()
    noted: dict[str, list[str]] = {}
    try:
        manifest.form, entries = read_entries(source, form)
        for entry in entries:
            for note in entry.notes:
                noted.setdefault(note, []).append(entry.where)
            if entry.notes and not entry.fields:
                continue
            try:
                sample = _sample(entry, root, confined=media_root is not None)
            except (SchemaError, OSError) as error:
                problems.append(f"{entry.where}: {error}")
                continue
            manifest.samples.append({**sample, "__key__": keys.unique(sample["__key__"])})
    except SchemaError as error:  # of the whole source
        raise ManifestError(source, [*problems, str(error)]) from error
    if problems:
        raise ManifestError(source, problems)
    if not manifest.samples:
        raise ManifestError(source, ["it holds no sample; docs/your-data.md describes what is read"])
    if text_only := sum(len(sample) == 2 for sample in manifest.samples):
        manifest.notes.append(f"{text_only} of {len(manifest.samples)} samples are text alone, without media")
    manifest.notes += [_note(note, places) for note, places in noted.items()] + keys.notes()
    return manifest


def _note(note: str, places: list[str]) -> str:
    return f"{note} ({len(places):,}: {'; '.join(places[:3])}{' ...' if len(places) > 3 else ''})"


def _sample(entry: Entry, root: Path, confined: bool) -> dict[str, Any]:
    """One entry in the form of a shard."""
    if isinstance(entry.fields, SchemaError):
        raise entry.fields
    fields = dict(entry.fields)
    name = fields.pop("key", fields.get("id"))
    if entry.files is not None:
        files, media = _members(fields, entry.files)
        as_written = ""
    else:
        files, media, as_written = _paths(fields, root, confined)
    if not media:
        _check_no_media(fields)
    record = {**with_talk(fields, [m["type"] for m in media]), "media": media}
    parse_record(json.dumps(record).encode(), files)  # escaped: so it can name what has no encoding
    raw = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
    if name is None:
        name = as_written or re.sub(r"\W+", "-", entry.where)
    return {"__key__": re.sub(r"[^\w-]+", "_", composed(str(name))) or "_", "json": raw, **files}


def _check_no_media(fields: dict[str, Any]) -> None:
    """Text alone is a sample, too; but not where media were meant."""
    named = [
        k for k, v in fields.items() if any(isinstance(n, str) and "." in n and media_type(n) for n in _as_list(v))
    ]
    if named or not {"messages", "conversations", "question"} & fields.keys():
        meant = f', not "{named[0]}"' if named else "; text alone needs messages, or question and answer"
        raise SchemaError(f'has no media: write "video": "path" or "image": "path"{meant}')


Media = list[dict[str, Any]]  # type and member of each


def _paths(fields: dict[str, Any], root: Path, confined: bool) -> tuple[Mapping[str, Payload], Media, str]:
    """The files that an entry names, which are taken out of `fields`; and the first name as it is written there."""
    if "media" in fields:
        raise SchemaError('media is written by this program; name the files in "video" or "image"')
    written = [(kind, name) for kind in PLACEHOLDERS for name in _as_list(fields.pop(kind, []))]
    written = _in_order(written, marks(fields.get("conversations", fields.get("messages"))))
    paths = [(kind, _found(kind, name, root, confined)) for kind, name in written]
    single = len(paths) == 1
    members = [path.suffix[1:].lower() if single else f"{i}{path.suffix.lower()}" for i, (_, path) in enumerate(paths)]
    media = [{"type": kind, "member": member} for (kind, _), member in zip(paths, members)]
    first = str(Path(written[0][1]).with_suffix("")).lstrip("./") if written else ""
    return dict(zip(members, (path for _, path in paths))), media, first


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


class _Keys:
    """Two files of one name in two folders, or two entries with one id, get keys of their own."""

    def __init__(self) -> None:
        self.used: dict[str, int] = {}
        self.renamed: list[str] = []

    def unique(self, key: str) -> str:
        number, found = self.used.get(key, 1), key
        while found in self.used:
            number += 1
            found = f"{key}-{number}"
        self.used[key] = number
        if found != key:
            self.used[found] = 1
            self.renamed.append(found)
        return found

    def notes(self) -> list[str]:
        if not self.renamed:
            return []
        few = ", ".join(self.renamed[:3])
        return [f"{len(self.renamed)} keys are used more than once; the later ones got a number ({few} ...)"]
