"""WebDataset tars that exist already: read in place, to be written anew with our schema and an index.

A sample is the adjacent files of one key: media, and `json` (the fields of an entry) or `txt` (a caption). Nothing
is unpacked, so no name in a tar becomes a path; files of other sorts are carried over unread.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from timeviper.datamodules.formats.entry import Entry, Format
from timeviper.datamodules.formats.text_files import files_below, not_utf8, parse_object
from timeviper.datamodules.shards.schema import MAX_JSON, SchemaError
from timeviper.datamodules.shards.tar import Member, ShardError, group, read_member, scan_tar
from timeviper.datamodules.shards.writer import TarSlice

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
TEXTS = ("json", "txt")


def read_tars(source: Path) -> Iterator[Entry]:
    """All samples in order of tars and members; a tar that is not whole is one unusable entry."""
    root = source if source.is_dir() else source.parent
    for tar in _tars(source):
        name = str(tar.relative_to(root))
        if name.endswith(COMPRESSED):
            yield Entry(name, SchemaError("is compressed, so nothing in it can be reached; unpack it to a plain .tar"))
            continue
        try:
            for found in group(tar, scan_tar(tar), TEXTS):
                if isinstance(found, ShardError):
                    yield Entry(f"{name}, sample {found.key!r}", SchemaError(found.detail))
                else:
                    yield _entry(tar, name, *found)
        except ShardError as error:
            yield Entry(name, SchemaError(error.detail))


def _entry(tar: Path, name: str, key: str, members: dict[str, Member]) -> Entry:
    where = f"{name}, sample {key!r}"
    try:
        fields = _fields(tar, members)
        inner = [f for f in members if f.rpartition(".")[2] in ("tar", "tgz") or f".{f}".endswith(COMPRESSED)]
        if inner:
            raise SchemaError(f"has a tar in it ({key}.{inner[0]}); unpack that first")
    except SchemaError as error:
        return Entry(where, error)
    files = {f: TarSlice(tar, m.offset, m.size) for f, m in members.items() if f not in TEXTS}
    return Entry(where, {"key": key.removeprefix("./"), **fields}, files)


def _fields(tar: Path, members: dict[str, Member]) -> dict[str, Any]:
    fields = parse_object(_text(tar, members["json"])) if "json" in members else {}
    if "txt" in members:
        fields.setdefault("caption", _text(tar, members["txt"]).strip())
    return fields


def _text(tar: Path, member: Member) -> str:
    if member.size > MAX_JSON:
        raise SchemaError(f"its {member.field} has {member.size} bytes, more than {MAX_JSON}; split the sample")
    try:
        return read_member(tar, member.offset, member.size).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SchemaError(f"its {member.field} {not_utf8(error)}") from error


def _tars(source: Path) -> list[Path]:
    files = files_below(source) if source.is_dir() else [source]
    return [path for path in files if path.name.endswith((".tar", *COMPRESSED))]


TARS = Format("tars", "tars", lambda source: bool(_tars(source)), read_tars, endings=(".tar",), folders=True)
