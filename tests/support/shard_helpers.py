"""Samples for shards, tars as other programs leave them, and what goes wrong with tars."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from timeviper.datamodules.world.render import encode_image, encode_video
from timeviper.datamodules.world.scene import draw_video

QUESTION = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "a ring"}]


def clip(number: int) -> dict[str, Any]:
    """A video sample of 2 s."""
    scene = draw_video(np.random.default_rng(number), 2.0, 4.0, 1, None)
    media = [{"type": "video", "member": "mp4", "duration": 2.0, "fps": 4.0, "frames": 8}]
    return {
        "__key__": f"clip{number:03d}",
        "mp4": encode_video(scene),
        "json": {"media": media, "conversations": [{"type": "shape", "messages": QUESTION}]},
    }


def picture(number: int) -> dict[str, Any]:
    pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), np.uint8)
    return {"__key__": f"picture{number:03d}", "png": encode_image(pixels, "png"), "json": {"messages": QUESTION}}


def raw_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A tar of exactly these members, as another program could have left it."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def cut_between_members(shard: Path, offset: int, size: int) -> None:
    os.truncate(shard, offset + -(-size // 512) * 512)


def cut_inside_member(shard: Path, offset: int, size: int) -> None:
    os.truncate(shard, offset + size // 2)


def spoil_header(shard: Path, offset: int, size: int) -> None:
    with shard.open("r+b") as file:
        file.seek(offset - 512)
        file.write(b"\xff" * 512)


def flip_bit(shard: Path, offset: int, size: int) -> None:
    with shard.open("r+b") as file:
        file.seek(offset + size // 2)
        byte = file.read(1)[0]
        file.seek(offset + size // 2)
        file.write(bytes([byte ^ 1]))


def leave(code: int) -> str:
    """A job that ends its process, as a decoder that crashes does, unless the code is 0."""
    if code:
        os._exit(code)
    return "fine"
