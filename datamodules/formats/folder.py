"""A folder of media, each with what is said about it beside it.

`a.mp4` with `a.json` (the fields of an entry, without the path), `a.txt` (a caption) or timed captions (`a.vtt`,
`a.en.srt`, `a.ttml`); the names may also keep the ending (`a.mp4.json`). What download tools leave besides is known:
thumbnails, `a.info.json`, several languages, streams that were not merged.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from timeviper.datamodules.formats.beside import INFO, NOT_READ, TIMED, Text, fields_of, is_text, says
from timeviper.datamodules.formats.entry import Entry, Format
from timeviper.datamodules.formats.frames import pictures_in
from timeviper.datamodules.formats.names import composed
from timeviper.datamodules.formats.text_files import files_below, parse_object, read_bytes, read_text
from timeviper.datamodules.shards.schema import SchemaError, media_type

TEXTS = ("json", "txt", *TIMED, *NOT_READ)
UNMERGED = re.compile(r"(.+)\.f\d+(?:-\w+)?")  # a.f137.mp4, beside a.mp4
PICTURE_OF = re.compile(r"(.+?)(?:\.\d+|[-_.](?:thumb|thumbnail|poster|fanart|landscape|banner|cover|logo))?")
LEFTOVER = re.compile(
    r".*\.live_chat\.json|\d+_stats\.json|(?:readme|licen[cs]e|changelog|archive|urls?|links)[^.]*\.(?:txt|json)", re.I
)
FRAMES = 3  # pictures without a text in one folder that are more likely the frames of a video

THUMBNAIL = "pictures of a video's name are taken for its thumbnails and left out"
STREAM = "streams that a download tool has merged into the video beside them, left out"
FAILED = "json without media that say that their download failed, left out"
LEFT = "files of a download tool or about the folder, left out"


def read_folder(root: Path) -> Iterator[Entry]:
    """One entry a media file, below `root`, in order of the paths; last those of texts that belong to none."""
    files = files_below(root)
    media = [path for path in files if media_type(path.name)]
    beside, alone = _beside(media, [path for path in files if path not in set(media)])
    videos = {(p.parent, composed(n)) for p in media if media_type(p.name) == "video" for n in (p.stem, p.name)}
    loose: dict[Path, list[Path]] = defaultdict(list)
    for path in media:
        if media_type(path.name) == "image" and not says(beside[path]) and not _is_thumbnail(path, videos, beside):
            loose[path.parent].append(path)
    frames = {folder for folder, pictures in loose.items() if len(pictures) >= FRAMES}
    of_frames, alone = _beside(sorted(frames), alone)
    for path in media:
        where = str(path.relative_to(root))
        if _is_thumbnail(path, videos, beside):
            yield Entry(where, {}, notes=(THUMBNAIL,))
        elif (match := UNMERGED.fullmatch(composed(path.stem))) and (path.parent, match[1]) in videos:
            yield Entry(where, {}, notes=(STREAM,))
        elif path.parent not in frames or path not in loose[path.parent]:
            yield _entry(path, beside[path], where)
        elif path == loose[path.parent][0]:
            yield _frames(path.parent, of_frames.get(path.parent, []), loose[path.parent], root)
    for path in alone:
        where = str(path.relative_to(root))
        if path.name.lower().endswith(f".{INFO}") or LEFTOVER.fullmatch(path.name):
            yield Entry(where, {}, notes=(LEFT,))
        elif _has_failed(path):
            yield Entry(where, {}, notes=(FAILED,))
        else:
            yield Entry(where, SchemaError("belongs to no video or image of its name; delete it or add the file"))


def _beside(media: list[Path], others: list[Path]) -> tuple[dict[Path, list[Text]], list[Path]]:
    """The texts of each medium, by the longest name that fits; and those that belong to none."""
    named: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for path in media:
        for name in {composed(path.stem), composed(path.name), _merged(path)}:
            named[path.parent, name].append(path)
    beside: dict[Path, list[Text]] = defaultdict(list)
    alone = []
    for path in others:
        if path.suffix[1:].lower() not in TEXTS:
            continue
        parts = composed(path.name).split(".")
        splits = ((".".join(parts[:i]), ".".join(parts[i:])) for i in range(len(parts) - 1, 0, -1))
        fits = ((name, end) for name, end in splits if (path.parent, name) in named and is_text(end))
        name, ending = next(fits, ("", ""))
        for medium in named.get((path.parent, name), ()):
            beside[medium].append(Text(path.name, ending, partial(read_bytes, path)))
        if not name:
            alone.append(path)
    return beside, alone


def _merged(path: Path) -> str:
    """The name without the number of a stream."""
    match = UNMERGED.fullmatch(composed(path.stem))
    return match[1] if match else composed(path.stem)


def _is_thumbnail(path: Path, videos: set[tuple[Path, str]], beside: dict[Path, list[Text]]) -> bool:
    """A picture of a video's name; or of a playlist, of which only the download tool says something."""
    if media_type(path.name) != "image" or any(text.name.startswith(f"{path.name}.") for text in beside[path]):
        return False
    name = composed(path.stem)
    match = PICTURE_OF.fullmatch(name)
    of_video = (path.parent, name) in videos or bool(match and (path.parent, match[1]) in videos)
    return of_video or [text.ending for text in beside[path]] == [INFO]


def _has_failed(path: Path) -> bool:
    """Whether a download tool says there that it did not get what the file is about."""
    try:
        return (
            path.suffix.lower() == ".json" and str(parse_object(read_text(path)).get("status", "success")) != "success"
        )
    except (SchemaError, OSError):
        return False


def _frames(folder: Path, texts: list[Text], pictures: list[Path], root: Path) -> Entry:
    """A folder of frames is a video of its name, if something is said about it."""
    where = str(folder.relative_to(root))
    if says(texts):
        entry = _entry(folder, texts, where)
        others = len(pictures_in(folder)) - len(pictures)
        if others and isinstance(entry.fields, dict):
            return Entry(
                where, SchemaError(f"has {others} pictures with texts of their own among its frames; move them")
            )
        return entry
    return Entry(
        where,
        SchemaError(
            f"holds {len(pictures)} pictures without a text each ({pictures[0].name} ...). Give each a .txt or .json; "
            f"or, if they are frames of a video, give {folder.name}.txt or {folder.name}.json beside the folder"
        ),
    )


def _entry(path: Path, texts: list[Text], where: str) -> Entry:
    try:
        if not says(texts):
            there = f"; {', '.join(t.name for t in texts)} alone cannot be used" if texts else ""
            raise SchemaError(
                f"has none of {path.stem}.json (messages), {path.stem}.txt (a caption) and {path.stem}.vtt, .srt or "
                f".ttml (timed captions) beside it{there}; if its folder says what it shows: --format classes"
            )
        fields, notes = fields_of(texts)
    except (SchemaError, OSError) as error:
        return Entry(where, error if isinstance(error, SchemaError) else SchemaError(str(error)))
    return Entry(where, {**fields, media_type(path.name) or "video": where}, notes=notes)


def _is_folder_of_media(source: Path) -> bool:
    return source.is_dir() and any(media_type(path.name) for path in files_below(source))


FOLDER = Format("folder", "media files", _is_folder_of_media, read_folder, folders=True)
