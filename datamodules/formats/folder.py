"""A folder of media, each with what is said about it beside it.

`a.mp4` with `a.json` (the fields of an entry, without the path), `a.txt` (a caption) or timed captions
(`a.vtt`, `a.en.srt`, `a.ttml`); timed captions may stand beside either of the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from timeviper.datamodules.formats.entry import Entry, Format
from timeviper.datamodules.formats.text_files import files_below, parse_object, read_text
from timeviper.datamodules.formats.timed_text import ENDINGS, read_timed_text
from timeviper.datamodules.shards.schema import SchemaError, media_type

TEXTS = (".json", ".txt", *ENDINGS)


def read_folder(root: Path) -> Iterator[Entry]:
    """One entry a media file, below `root`, in order of the paths; last those of texts that belong to none."""
    files = files_below(root)
    media = [path for path in files if media_type(path.name)]
    beside: dict[Path, list[Path]] = {}
    for path in files:
        if path.suffix.lower() in TEXTS:
            beside.setdefault(path.parent / path.stem, []).append(path)
            if path.suffix.lower() in ENDINGS and "." in path.stem:  # a.en.vtt
                beside.setdefault(path.parent / path.stem.rpartition(".")[0], []).append(path)
    used: set[Path] = set()
    for path in media:
        texts = beside.get(path.with_suffix(""), [])
        used.update(texts)
        yield _entry(path, texts, root)
    for path in files:
        if path.suffix.lower() in TEXTS and path not in used:
            name = str(path.relative_to(root))
            yield Entry(name, SchemaError("belongs to no video or image of its name; delete it or add the file"))


def _entry(path: Path, texts: list[Path], root: Path) -> Entry:
    where = str(path.relative_to(root))
    try:
        fields = {}
        if record := _only(texts, (".json",)):
            fields |= parse_object(read_text(record))
        elif caption := _only(texts, (".txt",)):
            fields |= {"caption": read_text(caption).strip()}
        if timed := _only(texts, ENDINGS):
            if "segments" in fields:
                raise SchemaError(f"has segments in its json and in {timed.name}; keep one of them")
            fields["segments"] = read_timed_text(timed)
        if not texts:
            raise SchemaError(
                f"has none of {path.stem}.json (messages), {path.stem}.txt (a caption) and {path.stem}.vtt, .srt or "
                ".ttml (timed captions) beside it"
            )
    except (SchemaError, OSError) as error:
        return Entry(where, error if isinstance(error, SchemaError) else SchemaError(str(error)))
    return Entry(where, {**fields, str(media_type(path.name)): where})


def _only(texts: list[Path], endings: tuple[str, ...]) -> Path | None:
    found = [path for path in texts if path.suffix.lower() in endings]
    if len(found) > 1:
        raise SchemaError(f"has {', '.join(p.name for p in found)} beside it; keep one of them")
    return found[0] if found else None


def _is_folder_of_media(source: Path) -> bool:
    return source.is_dir() and any(media_type(path.name) for path in files_below(source))


FOLDER = Format("folder", "media files", _is_folder_of_media, read_folder, folders=True)
