"""WebDataset tars that exist already: read in place, to be written anew with our schema and an index.

A sample is the files of one key in one tar: media, and `json` (the fields of an entry), `txt` (a caption) or timed
captions (`vtt`, `en.srt`, ...). Nothing is unpacked, so no name in a tar becomes a path; files of other sorts are
carried over unread. What the machine that packed it has put in for itself is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from timeviper.datamodules.formats.beside import Text, fields_of, is_text, says
from timeviper.datamodules.formats.entry import Entry, Format
from timeviper.datamodules.formats.names import composed
from timeviper.datamodules.formats.text_files import decode_text, files_below
from timeviper.datamodules.shards.schema import MAX_JSON, SchemaError, media_type
from timeviper.datamodules.shards.tar import LITTER, File, ShardError, iter_files, read_member
from timeviper.datamodules.shards.writer import TarSlice

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")

OF_SYSTEMS = "files that macOS or Windows keep for themselves (._name, .DS_Store, Thumbs.db), left out"
NO_KEY = "files that are hidden or have no ending, left out"
PICTURES = "samples of many numbered pictures, which are read as pictures: frames of a video need a video (its rate)"
FAILED = "samples without media whose json says that their download failed, left out"

MANY = 8  # pictures in a sample, named by numbers alone, that may have been meant as frames
Members = list[tuple[str, File]]  # fields in lower case, each with its file


def read_tars(source: Path) -> Iterator[Entry]:
    """All samples in order of tars and first members; a tar that is not whole is one unusable entry."""
    return read_samples(source, _entry)


def read_samples(source: Path, entry: Callable[[Path, str, str, Members], Entry]) -> Iterator[Entry]:
    """The same, with what makes an entry of a tar, what a message calls the sample, its key and its members."""
    root = source if source.is_dir() else source.parent
    for tar in _tars(source):
        name = str(tar.relative_to(root))
        if name.lower().endswith(COMPRESSED):
            yield Entry(name, SchemaError("is compressed, so nothing in it can be reached; unpack it to a plain .tar"))
            continue
        try:
            yield from _samples(tar, name, entry)
        except ShardError as error:
            yield Entry(name, SchemaError(error.detail))


def _samples(tar: Path, name: str, entry: Callable[[Path, str, str, Members], Entry]) -> Iterator[Entry]:
    files = []
    for file in iter_files(tar):
        if LITTER.fullmatch(file.name):
            yield Entry(f"{name}, {file.name}", {}, notes=(OF_SYSTEMS,))
        elif not all(_split(file.name)[1:]):
            yield Entry(f"{name}, {file.name}", {}, notes=(NO_KEY,))
        else:
            files.append(file)
    for key, members in _grouped(files).items():
        yield entry(tar, f"{name}, sample {key!r}", key, members)


def _split(name: str) -> tuple[str, str, str]:
    """A name in a tar as its folder, and what stands before and after the first dot."""
    folder, slash, base = name.rpartition("/")
    key, _, field = base.partition(".")
    return folder + slash, key, field


def _grouped(files: list[File]) -> dict[str, Members]:
    """The files of each key, wherever they lie in the tar.

    A key ends at the first dot of the name, or later where a text and a medium agree on it: `22.05.json` and
    `22.05.mp4` have the key 22.05, but `a.meta.json`, `a.0.jpg` and `a.json` are of one sample.
    """
    runs: dict[str, list[File]] = {}
    for file in files:
        runs.setdefault(composed("".join(_split(file.name)[:2])), []).append(file)
    found: dict[str, Members] = {}
    for first, run in runs.items():
        names = [composed(file.name) for file in run]
        stems = {name.rpartition(".")[0] for name in names if name.rpartition(".")[2].lower() in ("json", "txt")}
        stems = {s for s in stems if s != first and any(media_type(n) and f"{n}.".startswith(f"{s}.") for n in names)}
        for name, file in zip(names, run):
            key = max((s for s in stems if f"{name}.".startswith(f"{s}.")), key=len, default=first)
            field = name[len(key) + 1 :] or name.rpartition(".")[2]  # of a.mp4 beside a.mp4.json
            found.setdefault(key, []).append((field.lower(), file))
    return found


def _entry(tar: Path, where: str, key: str, members: Members) -> Entry:
    fields = dict(members)
    texts = [Text(f"its {f}", f, partial(_read, tar, f, file)) for f, file in fields.items() if is_text(f)]
    try:
        if len(fields) < len(members):
            raise SchemaError("a file is there twice; the key is used twice, or ends before a dot that belongs to it")
        if not says(texts):
            raise SchemaError(
                f"has {', '.join(sorted(fields))} but no json, txt or timed captions (a key ends at the first dot)"
            )
        if inner := [f for f in fields if f.rpartition(".")[2] in ("tar", "tgz") or f".{f}".endswith(COMPRESSED)]:
            raise SchemaError(f"has a tar in it ({key}.{inner[0]}); unpack that first")
        said, notes = fields_of(texts)
    except SchemaError as error:
        return Entry(where, error)
    if not any(map(media_type, fields)) and str(said.get("status", "success")) != "success":
        return Entry(where, {}, notes=(FAILED,))
    media = [field for field in fields if media_type(field)]
    if len(media) >= MANY and all(media_type(f) == "image" and f.partition(".")[0].isdigit() for f in media):
        notes = (*notes, PICTURES)
    used = {text.ending for text in texts}
    files = {f: TarSlice(tar, file.offset, file.size) for f, file in members if f not in used}
    return Entry(where, {"key": key.removeprefix("./"), **said}, files, notes=notes)


def _read(tar: Path, field: str, file: File) -> bytes:
    if file.size > MAX_JSON:
        raise SchemaError(f"its {field} has {file.size} bytes, more than {MAX_JSON}; split the sample")
    return read_member(tar, file.offset, file.size)


def read_text_member(tar: Path, field: str, file: File) -> str:
    """A member as text. SchemaError if it is too long, or no text."""
    return decode_text(_read(tar, field, file), f"its {field}")


def _tars(source: Path) -> list[Path]:
    files = files_below(source) if source.is_dir() else [source]
    return [path for path in files if path.name.lower().endswith((".tar", *COMPRESSED))]


TARS = Format("tars", "tars", lambda source: bool(_tars(source)), read_tars, endings=(".tar",), folders=True)
