"""Filling a capsule: by several ranks, killed at any moment, continued by any number of ranks.

Each rank appends whole lines to files of its own in `parts/`, on the disk before the next video; the first rank appends
to `answers.jsonl` what is there before a start and at the end. A question that has a reply is never asked again; one
that ended in an error is.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

from timeviper.benchmarking.capsule import (
    ANSWERS,
    FORMAT,
    FRAMES,
    HEADER,
    ITEMS,
    PARTS,
    SCORER,
    VERSION,
    Capsule,
    CapsuleError,
    Reply,
    Shown,
    is_capsule,
    item_line,
    read_capsule,
    read_header,
)
from timeviper.benchmarking.item import Item
from timeviper.files import remove_folder, write_whole
from timeviper.package import VERSION as TIMEVIPER

# What a capsule's answers depend on: all of it must be the same where a run goes on.
SAME = ("set", "model", "frames", "subtitles", "template", "decoding", "seed")
_DROP = ("path",)  # where something lies, which may change


def begin(folder: Path, depends: Mapping[str, Any], items: Sequence[Item], shown: Sequence[str]) -> Capsule:
    """The capsule to go on with, made if it is not there; for the first rank alone, which holds its lock.

    depends: the entries of `SAME` and `hardware`. Raises CapsuleError, with the entry that differs, for a capsule of
    anything else, and for one whose answers were edited.
    """
    content = "".join(item_line(item, options) + "\n" for item, options in zip(items, shown)).encode()
    if is_capsule(folder):
        header = read_header(folder)
        differs = [*differences(header, depends), *_items(header, content)]
        if differs:
            listed = "; ".join(differs)
            raise CapsuleError(f"{folder} is a capsule of something else: {listed}. Name another folder with --out")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / ITEMS, content)
        header = {
            "format": FORMAT,
            "version": VERSION,
            "id": uuid4().hex,
            "scorer": SCORER,
            "timeviper": TIMEVIPER,
            **depends,
            "items": {"count": len(items), "sha256": sha256(content).hexdigest()},
            "begun": time.strftime("%F %T %z"),
            "finished": None,
        }
        write_header(folder, header)
    capsule = read_capsule(folder)
    if capsule.edited:
        raise CapsuleError(f"{folder} is not as it was written ({capsule.edited[0]}): it cannot be continued")
    _join(capsule)
    return capsule


def end(folder: Path) -> Capsule:
    """Join what all ranks wrote; finished if every question has been asked. For the first rank alone."""
    capsule = read_capsule(folder)
    _join(capsule)
    if not capsule.missing():
        raw = (folder / ANSWERS).read_bytes()
        done = {"at": time.strftime("%F %T %z"), "lines": capsule.lines, "answers": sha256(raw).hexdigest()}
        write_header(folder, capsule.header | {"finished": done})
        capsule.header["finished"] = done
    return capsule


class Part:
    """What one rank appends to."""

    def __init__(self, folder: Path, salt: str, rank: int) -> None:
        self.folder, self.salt = folder / PARTS / str(rank), salt

    def add(self, replies: Iterable[Reply], shown: Iterable[Shown] = ()) -> None:
        """Frames first: a reply is never there without the frames that it is about."""
        self.folder.mkdir(parents=True, exist_ok=True)
        append(self.folder / FRAMES, [frame_line(one) for one in shown])
        append(self.folder / ANSWERS, [reply.line(self.salt) for reply in replies])


def frame_line(shown: Shown) -> str:
    return json.dumps(asdict(shown))


def append(file: Path, lines: Sequence[str]) -> None:
    """Write whole lines, which are on the disk afterwards; a torn one before them is ended."""
    if not lines:
        return
    with file.open("ab+") as out:
        if size := out.seek(0, os.SEEK_END):
            out.seek(size - 1)
            if out.read(1) != b"\n":
                out.write(b"\n")
        out.write("".join(line + "\n" for line in lines).encode())
        out.flush()
        os.fsync(out.fileno())


def write_header(folder: Path, header: Mapping[str, Any]) -> None:
    write_whole(folder / HEADER, json.dumps(header, indent=2, ensure_ascii=False) + "\n")


def differences(a: Mapping[str, Any], b: Mapping[str, Any], names: Sequence[str] = SAME) -> list[str]:
    """Which entries of two headers differ, and how: "frames.protocol is fps:1:256, not fps:2:64"."""
    found: list[str] = []
    for name in names:
        _differ(name, a.get(name), b.get(name), found)
    return found


def _differ(place: str, a: Any, b: Any, found: list[str]) -> None:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for name in {**a, **b}:
            if name not in _DROP:
                _differ(f"{place}.{name}", a.get(name), b.get(name), found)
    elif json.dumps(a, sort_keys=True) != json.dumps(b, sort_keys=True):
        found.append(f"{place} is {_cut(a)} there, not {_cut(b)}")


def _cut(value: Any) -> str:
    text = value if isinstance(value, str) and value else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _items(header: Mapping[str, Any], content: bytes) -> list[str]:
    same = header["items"]["sha256"] == sha256(content).hexdigest()
    return [] if same else [f"its {header['items']['count']} items are others"]


def _join(capsule: Capsule) -> None:
    """Append to the whole what ranks have left, each question once, in the order of the items."""
    folder = capsule.folder
    known = _places(folder)
    order = {item.key: i for i, item in enumerate(capsule.items)}
    new = [r for place, r in capsule.replies.items() if known.get(place) != r.line(capsule.header["id"])]
    new.sort(key=lambda reply: (reply.variant, order[reply.key]))
    there = {line for line in (folder / FRAMES).read_text().splitlines()} if (folder / FRAMES).is_file() else set()
    append(folder / FRAMES, [line for one in capsule.frames.values() if (line := frame_line(one)) not in there])
    (folder / ANSWERS).touch()
    append(folder / ANSWERS, [reply.line(capsule.header["id"]) for reply in new])
    if (folder / PARTS).is_dir():
        remove_folder(folder / PARTS)


def _places(folder: Path) -> dict[tuple[str, str], str]:
    """The last line of each question in the whole."""
    found: dict[tuple[str, str], str] = {}
    if (folder / ANSWERS).is_file():
        for line in (folder / ANSWERS).read_bytes().decode(errors="replace").split("\n"):
            try:
                row = json.loads(line)
                found[row["variant"], row["key"]] = line
            except (ValueError, KeyError, TypeError):
                continue
    return found
