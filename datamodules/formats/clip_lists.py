"""Lists of clips as WebVid and Kinetics publish them: a row has an id, a text, and times of the film it was cut from.

    videoid,contentUrl,duration,page_dir,name                  WebVid: `name` is the caption of PAGE_DIR/VIDEOID.mp4
    label,youtube_id,time_start,time_end,split                 Kinetics: `label` is what is done in ID_START_END.mp4

The files are cut already, so the times cut nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from timeviper.datamodules.formats.entry import Dialect, Entry, Format
from timeviper.datamodules.formats.fields import plain
from timeviper.datamodules.formats.media import ById
from timeviper.datamodules.formats.talk import ask
from timeviper.datamodules.formats.text_files import files_below
from timeviper.datamodules.shards.schema import SchemaError, media_type

WEBVID = ("videoid", "pagedir", "name")
KINETICS = ("youtubeid", "timestart", "timeend")
CUT = re.compile(r".+_\d{6}_\d{6}")  # how Kinetics names its clips: id, start, end
SPLITS = ("train", "val", "validate", "validation", "test", "training", "testing")


def _is_webvid(fields: dict[str, Any]) -> bool:
    return {plain(name) for name in fields} >= set(WEBVID)


def _webvid(fields: dict[str, Any]) -> dict[str, Any]:
    names, rest = _taken(fields, WEBVID)
    folder, video = str(names["pagedir"] or "").strip("/"), str(names["videoid"])
    if not str(names["name"] or "").strip():
        raise SchemaError("its name, which is the caption, is empty")
    return {**rest, "key": video, "video": ById(f"{folder}/{video}" if folder else video), "caption": names["name"]}


def _is_kinetics(fields: dict[str, Any]) -> bool:
    return {plain(name) for name in fields} >= set(KINETICS)


def _kinetics(fields: dict[str, Any]) -> dict[str, Any]:
    names, rest = _taken(fields, (*KINETICS, "label"))
    label = str(names["label"] or "").strip()
    if not label:
        raise SchemaError("has no label, as clips for testing have none; leave them out (--only split=train)")
    try:
        start, end = (round(float(names[name])) for name in KINETICS[1:])
    except (TypeError, ValueError) as error:
        raise SchemaError(f"time_start and time_end must be seconds, got {error}", "segments") from error
    times = {"source time_start": start, "source time_end": end}
    return {**rest, **times, "video": ById(f"{names['youtubeid']}_{start:06d}_{end:06d}"), **_action(label)}


def _action(label: str) -> dict[str, Any]:
    return {"label": label, "conversations": [ask("action", label)]}


def _taken(fields: dict[str, Any], wanted: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values of wanted fields by their plain names, and all other fields."""
    found = {plain(name): value for name, value in fields.items() if plain(name) in wanted}
    return {name: found.get(name) for name in wanted}, {n: v for n, v in fields.items() if plain(n) not in wanted}


def read_classes(root: Path) -> Iterator[Entry]:
    """Clips in folders whose names say what is done in them, below folders of splits or not."""
    for path in files_below(root):
        where = path.relative_to(root)
        if media_type(path.name) != "video":
            continue
        if where.parent.name == "" or where.parent.name in SPLITS:
            yield Entry(str(where), SchemaError("lies in no folder that says what it shows"))
            continue
        named = [part for part in where.parts if part in SPLITS]
        split = {"split": named[0]} if named else {}
        label = where.parent.name.replace("_", " ").strip()
        yield Entry(str(where), {"video": str(where), **_action(label), **split}, raw={"label": label, **split})


def _are_classes(source: Path) -> bool:
    """Whether there are clips of Kinetics' names, each in a folder, and no texts."""
    if not source.is_dir():
        return False
    files = files_below(source)
    videos = [path for path in files if media_type(path.name) == "video"]
    texts = any(path.suffix.lower() in (".json", ".txt", ".vtt", ".srt") for path in files)
    return bool(videos) and not texts and all(CUT.fullmatch(p.stem) and p.parent != source for p in videos)


CLIP_LISTS = [Dialect("webvid", _is_webvid, _webvid), Dialect("kinetics", _is_kinetics, _kinetics)]
CLASSES = Format("classes", "folders of clips by what they show", _are_classes, read_classes, folders=True)
