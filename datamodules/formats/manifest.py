"""Somebody's own data, as they have it, brought into the samples that `write_shards` takes.

What each format says becomes an entry (`formats/`); here an entry becomes a sample: its media are found, its
talk is put into conversations, and the whole is checked as the reader will check it. Media stay paths, or places
in a tar, so nothing large is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timeviper.datamodules.formats.clip import take_bounds
from timeviper.datamodules.formats.entry import Entry
from timeviper.datamodules.formats.fields import Usage
from timeviper.datamodules.formats.gather import Gathered
from timeviper.datamodules.formats.media import Media, as_list, located, members
from timeviper.datamodules.formats.names import composed
from timeviper.datamodules.formats.only import Only
from timeviper.datamodules.formats.pieces import without_pieces
from timeviper.datamodules.formats.recognise import read_entries
from timeviper.datamodules.formats.talk import with_talk
from timeviper.datamodules.formats.unshown import check_shown
from timeviper.datamodules.formats.unusable import Unusable, summary
from timeviper.datamodules.frames.part import part_of
from timeviper.datamodules.shards.schema import SchemaError, media_type, parse_record
from timeviper.datamodules.shards.writer import Payload, Sample


class ManifestError(ValueError):
    """Entries that cannot be used, each with its line or file."""

    def __init__(self, source: Path, unusable: Sequence[Unusable], way_on: str = "") -> None:
        super().__init__(f"{source}: {summary(unusable)}" + (f"\n{way_on}" if way_on else ""))
        self.problems = [f"{u.where}: {u.problem}" if u.where else u.problem for u in unusable]


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
    only: Collection[str] = (),
    partial: bool = False,
    frame_rate: float | None = None,
) -> Manifest:
    """All samples of a source, in its order; `form` is one of `recognise.FORMATS` or `DIALECTS`, or auto.

    Names of media are relative to `media_root`, and must not leave it; without one they are relative to the source,
    and may lead anywhere. Fields in `ignore` are as if they were not there; entries that do not fulfil `only`
    (`split=train`) are left out. `frame_rate` is that of frames in folders whose entry says none. Raises
    FileNotFoundError if there is no such place, ManifestError with every unusable entry, or, if `partial`, only where
    no entry can be used.
    """
    source = Path(source)
    for place in (source, *([] if media_root is None else [Path(media_root)])):
        if not place.exists():
            raise FileNotFoundError(f"there is no {place}; give a file or folder of data (docs/your-data.md)")
    beside = source if source.is_dir() else source.parent
    root = beside if media_root is None else Path(media_root)
    manifest, gathered, usage, text_only = Manifest(form), Gathered(), Usage(), 0
    parts, noted, chosen = 0, dict[str, list[str]](), Only(only)
    try:
        manifest.form, entries = read_entries(source, form, ignore)
        for entry in entries:
            if not chosen.takes(entry):
                continue
            for note in entry.notes:
                noted.setdefault(note, []).append(entry.where)
            if entry.notes and not entry.fields:
                continue
            manifest.entries += 1
            try:
                key, record, files = _sample(entry, root, media_root is not None, frame_rate)
            except (SchemaError, OSError) as error:
                manifest.unusable.append(Unusable(entry.where, str(error), _whole(entry)))
                continue
            gathered.add(key, record, files)
            usage.add(_names(entry, ignore), record)
            text_only += not files
            parts += any(part_of(medium).cuts for medium in record["media"])
    except SchemaError as error:  # of the whole source
        raise ManifestError(source, [*manifest.unusable, Unusable("", str(error), None)]) from error
    manifest.samples = gathered.samples()
    if manifest.unusable and not partial:
        raise ManifestError(source, manifest.unusable)
    if not manifest.entries and chosen.left_out:
        raise ManifestError(source, [Unusable("", chosen.nothing(), None)])
    if not manifest.entries:
        raise ManifestError(
            source, [Unusable("", "it holds no sample; docs/your-data.md describes what is read", None)]
        )
    if text_only:
        manifest.notes.append(f"{text_only} of {usage.entries} samples are text alone, without media")
    manifest.notes += [_note(note, places) for note, places in noted.items()] + chosen.notes()
    manifest.notes += gathered.notes() + usage.notes()
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


def _sample(
    entry: Entry, root: Path, confined: bool, rate: float | None
) -> tuple[str, dict[str, Any], Mapping[str, Payload]]:
    """One entry in the form of a shard: key, json and files."""
    if isinstance(entry.fields, SchemaError):
        raise entry.fields
    fields = without_pieces(dict(entry.fields))
    name = fields.pop("key", fields.get("id"))
    if entry.files is not None:
        files, media = members(fields, entry.files)
        as_written = ""
    else:
        files, media, as_written = located(fields, root, confined, rate)
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
    """An entry with start and end is about that part of its video, whose clock shows `time_offset` there."""
    bounds, names = take_bounds(fields)
    videos = [medium for medium in media if medium["type"] == "video"]
    if "time_offset" in fields:
        if len(videos) != 1:
            raise SchemaError(f"has a time_offset, which is of one video, but names {len(videos)}", "segments")
        videos[0]["time_offset"] = fields.pop("time_offset")
    if len(bounds) not in (0, len(videos)):
        raise SchemaError(f"has {names} for {len(bounds)} videos, but names {len(videos)}", "segments")
    for medium, (start, end) in zip(videos, bounds):
        if "start" in medium or "end" in medium:
            raise SchemaError(f"has {names} beside those of its media; keep one of them", "segments")
        medium |= {"start": start} | ({} if end is None else {"end": end})


def _check_no_media(fields: dict[str, Any]) -> None:
    """Text alone is a sample, too; but not where media were meant."""
    named = [k for k, v in fields.items() if any(isinstance(n, str) and "." in n and media_type(n) for n in as_list(v))]
    if named or not {"messages", "conversations", "question"} & fields.keys():
        meant = f', not "{named[0]}"' if named else "; text alone needs messages, or question and answer"
        raise SchemaError(f'has no media: write "video": "path" or "image": "path"{meant}')
