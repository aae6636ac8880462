"""Small real media, and the command that turns them into shards."""

from __future__ import annotations

import io
import json
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from timeviper.datamodules.formats.manifest import read_manifest
from timeviper.datamodules.shards.writer import Sample
from timeviper.datamodules.world.render import encode_image, encode_video
from timeviper.datamodules.world.scene import draw_video


@cache
def video(number: int = 0) -> bytes:
    """H.264 of 2 s, 64 pixels wide."""
    return encode_video(draw_video(np.random.default_rng(number), 2.0, 4.0, 1, None))


@cache
def image() -> bytes:
    return encode_image(np.full((16, 16, 3), 200, np.uint8))


def put(folder: Path, *names: str) -> Path:
    """Real media of these names."""
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image() if path.suffix.lower() == ".jpg" else video(i % 3))
    return folder


def put_json(path: Path, entries: Any) -> Path:
    path.write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    return path


def put_lines(path: Path, *entries: Any) -> Path:
    path.write_text("\n".join(json.dumps(e, ensure_ascii=False) for e in entries), encoding="utf-8")
    return path


def put_tar(path: Path, *members: tuple[str, bytes]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        folder = tarfile.TarInfo("data")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


Row = tuple[float, float, str]
"""Start and end of a caption in seconds, and its lines."""


def clock(seconds: float, mark: str = ".") -> str:
    ms = round(seconds * 1000)
    return f"{ms // 3600000:02}:{ms // 60000 % 60:02}:{ms // 1000 % 60:02}{mark}{ms % 1000:03}"


def vtt(cues: list[Row]) -> str:
    return "WEBVTT\nKind: captions\nLanguage: en\n\n" + "".join(
        f"{clock(a)} --> {clock(b)}\n{t}\n\n" for a, b, t in cues
    )


def srt(cues: list[Row]) -> str:
    return "\n".join(f"{i}\n{clock(a, ',')} --> {clock(b, ',')}\n{t}\n" for i, (a, b, t) in enumerate(cues, 1))


def ttml(cues: list[Row]) -> str:
    lines = "".join(
        f'<p begin="{clock(a)}" end="{clock(b)}">{"<br/>".join(t.split(chr(10)))}</p>\n' for a, b, t in cues
    )
    return f'<tt xmlns="http://www.w3.org/ns/ttml"><body><div>\n{lines}</div></body></tt>'


# What YouTube makes of a talk: the new line below, the old one above it, and 10 ms in which the new one moves up.
ROLL: list[Row] = [
    (0.16, 2.31, "first you fold the paper"),
    (2.31, 2.32, "first you fold the paper"),
    (2.32, 5.19, "first you fold the paper\nthen you cut the corner"),
    (5.19, 5.2, "then you cut the corner"),
    (5.2, 8.0, "then you cut the corner\nand open it"),
]


def samples(source: Path, form: str = "auto", media_root: Path | None = None) -> dict[str, dict[str, Any]]:
    """The json of each sample, by its key."""
    return {s["__key__"]: record(s) for s in read_manifest(source, form, media_root).samples}


def record(sample: Sample) -> dict[str, Any]:
    return json.loads(sample["json"])


def talk(found: dict[str, Any]) -> list[tuple[str | None, list[str]]]:
    """Type and texts of every conversation."""
    return [(c.get("type"), [m["content"] for m in c["messages"]]) for c in found["conversations"]]
