"""The files of an entry: found on the disk by what it calls them, or those that lie beside it in a tar."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from timeviper.datamodules.formats.data_urls import in_text
from timeviper.datamodules.formats.fields import MEDIA, plain
from timeviper.datamodules.formats.frames import JoinedFrames, joined, take_rate
from timeviper.datamodules.formats.names import alike, composed, find
from timeviper.datamodules.formats.talk import marks
from timeviper.datamodules.formats.text_files import files_below
from timeviper.datamodules.shards.address import shown
from timeviper.datamodules.shards.schema import PLACEHOLDERS, VIDEO, SchemaError, media_type
from timeviper.datamodules.shards.writer import Made, Payload

FRAMES = 'pictures that are frames of a video are named as a folder or as a list in "video", others in "image"'

Media = list[dict[str, Any]]  # type and member of each


class ById(str):
    """A video that an annotation calls by its id alone; its file lies anywhere below the root of media.

    No JSON or table makes one, so a path that somebody wrote is never looked for elsewhere.
    """


def located(
    fields: dict[str, Any], root: Path, confined: bool, rate: float | None = None
) -> tuple[Mapping[str, Payload], Media, str]:
    """The files that an entry names, which are taken out of `fields`; and the first name as it is written there.

    Pictures that are frames of a video are joined, at the rate that the entry says, else at `rate` a second.
    """
    if "media" in fields:
        raise SchemaError('media is written by this program; name the files in "video" or "image"')
    written = [(kind, name) for kind in PLACEHOLDERS for name in _named(fields, kind)]
    written = _in_order(written, marks(fields.get("conversations", fields.get("messages"))))
    if any(kind == "video" and _are_frames(name, root) for kind, name in written):
        rate = take_rate(fields, rate)
        written = [(k, _joined(n, root, confined, rate) if _are_frames(n, root) else n) for k, n in written]
    paths = [(kind, _found(kind, name, root, confined)) for kind, name in written]
    single = len(paths) == 1
    endings = [file.ending if isinstance(file, Made) else file.suffix[1:].lower() for _, file in paths]
    members = endings if single else [f"{i}.{ending}" for i, ending in enumerate(endings)]
    media = [{"type": kind, "member": member} for (kind, _), member in zip(paths, members)]
    name = written[0][1] if written and not str(written[0][1]).startswith("data:") else ""
    name = str(name.folder.relative_to(root)) if isinstance(name, JoinedFrames) and name.folder != root else name
    first = str(Path(name).with_suffix("")).lstrip("./") if isinstance(name, str) and name else ""
    return dict(zip(members, (path for _, path in paths))), media, first


def _are_frames(name: Any, root: Path) -> bool:
    """Whether what a video is called names pictures: a folder, or a list of them."""
    if isinstance(name, tuple):
        return True
    plainly = isinstance(name, str) and not isinstance(name, ById) and not name.startswith("data:")
    return plainly and not media_type(name) and find(root / name).is_dir()


def _joined(name: Any, root: Path, confined: bool, rate: float | None) -> JoinedFrames:
    names = [str(one).removeprefix("file://") for one in (name if isinstance(name, tuple) else [name])]
    for one in names:
        _check_place(one, root, confined)
    if not isinstance(name, tuple):
        return joined(find(root / names[0]), (), rate)
    folder = root / names[0]
    return joined(folder.parent, [os.path.relpath(root / one, folder.parent) for one in names], rate)


def _check_place(name: str, root: Path, confined: bool) -> None:
    """SchemaError for a name that leads out of the folder that names must not leave, or to the network."""
    if "://" in name:
        raise SchemaError(f"{shown(name)} is an address; media are read from a disk: download it, and name the file")
    if confined and (os.path.isabs(name) or os.path.normpath(name.replace("\\", "/")).startswith("..")):
        raise SchemaError(f"{name} leaves --media-root {root}; leave that option out to take files from anywhere")


def _named(fields: dict[str, Any], kind: str) -> list[Any]:
    """Names of files of a kind, which are taken out of `fields`."""
    names = [name for name in fields if name == kind or plain(name) in MEDIA[kind]]
    found = [_listed(fields.pop(name), kind) for name in names]
    found = [listed for listed in found if listed]
    if any(listed != found[0] for listed in found[1:]):
        raise SchemaError(f"names its {kind} in {' and '.join(names)}; keep one of them")
    return found[0] if found else []


def _listed(value: Any, kind: str) -> list[Any]:
    """The names of files; a list of pictures that is called a video is one video."""
    names = as_list(value)
    pictures = [isinstance(name, str) and media_type(name) == "image" for name in names]
    return [tuple(names)] if kind == "video" and len(names) > 1 and all(pictures) else names


def _in_order(written: list[tuple[str, Any]], marked: list[str]) -> list[tuple[str, Any]]:
    """Videos and images in the order of their marks, where there is one of its name for each."""
    if sorted(marked) != sorted(kind for kind, _ in written):
        return written
    of_kind = {kind: iter([pair for pair in written if pair[0] == kind]) for kind in PLACEHOLDERS}
    return [next(of_kind[kind]) for kind in marked]


def _found(kind: str, name: Any, root: Path, confined: bool) -> Path | Made:
    """The file that an entry means; a video's name may come without its ending, as benchmarks list them."""
    if isinstance(name, str) and name.startswith("data:"):
        name = in_text(name)
    if isinstance(name, Made):
        if media_type(f".{name.ending}") != kind:
            raise SchemaError(f"{name} is no {kind} by its name or its first bytes ({name.ending or 'not known'})")
        return name
    if not isinstance(name, str) or not name.strip():
        raise SchemaError(f"{kind} must be the path of a file, got {name!r}")
    if name.startswith("file://"):
        name = unquote(name.removeprefix("file://"))
    _check_place(name, root, confined)
    path = _by_id(root, name) if isinstance(name, ById) else find(root / name)  # an absolute path stays as it is
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


def members(fields: dict[str, Any], files: Mapping[str, Payload]) -> tuple[Mapping[str, Payload], Media]:
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


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _by_id(root: Path, name: str) -> Path:
    """The one video of this id below `root`, also as `v_ID`, as ActivityNet's files are called."""
    if (there := root / f"{name}.mp4").is_file():  # where the annotation says: no need to list all others
        return there
    known, name = _by_stem(root, root.stat().st_mtime_ns), name.rpartition("/")[2]
    found = known.get(composed(name)) or known.get(f"v_{composed(name)}") or ()
    if len(found) > 1:
        raise SchemaError(f"{name} could be any of {', '.join(sorted(found)[:3])} in {root}; keep one of them")
    if not found:
        raise SchemaError(f"there is no video {name} below {root}; say with --media-root where they are")
    return root / found[0]


@lru_cache(maxsize=2)
def _by_stem(root: Path, changed: int) -> dict[str, tuple[str, ...]]:
    """All videos below a folder, by their names without folder and ending."""
    found: dict[str, tuple[str, ...]] = {}
    for path in files_below(root):
        if media_type(path.name) == "video":
            found[composed(path.stem)] = (*found.get(composed(path.stem), ()), str(path.relative_to(root)))
    return found
