"""Small real media, and the command that turns them into shards."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from timeviper.datamodules.formats.manifest import Manifest, read_manifest
from timeviper.datamodules.shards.writer import Sample, TarSlice
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


def samples(source: Path, form: str = "auto", media_root: Path | None = None) -> dict[str, dict[str, Any]]:
    """The json of each sample, by its key."""
    return {s["__key__"]: record(s) for s in read_manifest(source, form, media_root).samples}


def record(sample: Sample) -> dict[str, Any]:
    return json.loads(sample["json"])


def talk(found: dict[str, Any]) -> list[tuple[str | None, list[str]]]:
    """Type and texts of every conversation."""
    return [(c.get("type"), [m["content"] for m in c["messages"]]) for c in found["conversations"]]


__all__ = ["Manifest", "TarSlice", "image", "put", "put_json", "put_lines", "record", "samples", "talk", "video"]
