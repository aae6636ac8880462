"""Sources that mix text, images and videos, for whole runs on several ranks: real media, made when they are opened."""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jobs import RECIPE

from timeviper.datamodules.world.render import encode_image, encode_video
from timeviper.datamodules.world.scene import Scene

FPS = 4.0
MEMBERS = {"text": "", "image": "png", "video": "mp4"}


class Talks:
    """A source of one kind of media; sample `i` differs from the others in picture, question and answer."""

    def __init__(
        self,
        kind: str = "text",
        count: int = 40,
        seconds: float = 2.0,
        letters: int = 0,
        broken: tuple[int, ...] = (),
        spread: int = 1,
        slow: float = 0.0,
    ) -> None:
        """kind: text, image or video. letters: length of the questions, which differ by less than `spread`.
        broken: samples whose file is cut off. slow: seconds that rank 0 needs to list the samples."""
        if os.environ.get("RANK") == "0":
            time.sleep(slow)
        self.kind, self.count, self.seconds, self.letters = kind, count, seconds, letters
        self.broken, self.spread = broken, spread

    def __len__(self) -> int:
        return self.count

    def record(self, i: int) -> dict[str, Any]:
        draw = np.random.default_rng([i, self.letters])
        letters = draw.choice(list("abcdefgh "), self.letters + i % self.spread)
        said = [
            {"role": "user", "content": f"What?{''.join(letters)}"},
            {"role": "assistant", "content": "ring " * (i % 3 + 1)},
        ]
        if not (member := MEMBERS[self.kind]):
            return {"media": [], "messages": said}
        medium: dict[str, Any] = {"type": self.kind, "member": member}
        if self.kind == "video":
            medium |= {"duration": self.seconds, "fps": FPS, "frames": round(self.seconds * FPS)}
        return {"media": [medium], "messages": said}

    def open(self, i: int, member: str) -> bytes:
        raw = _image(i) if member == "png" else _video(i % 5, self.seconds)
        return raw[: len(raw) // 3] if i in self.broken else raw


def _image(i: int) -> bytes:
    return encode_image(np.random.default_rng(i).integers(0, 255, (16, 16, 3), np.uint8), "png")


@cache
def _video(number: int, seconds: float) -> bytes:
    """H.264 of a moving background with noise: no two vision tokens rank alike."""
    return encode_video(Scene(seconds, FPS, (), number, 32))


def write_mixture(folder: Path, sources: dict[str, dict[str, Any]], **more: Any) -> Path:
    """A recipe with both kinds of TransV stages; `sources` are options of `Talks` with the weight of each.

    more: sections whose settings are added, such as `data={...}`.
    """
    recipe = yaml.safe_load(yaml.safe_dump(RECIPE))
    recipe["name"] = "mixture"
    recipe["model"]["decoder"]["layout"] = "M-*M*-M"
    recipe["model"]["transv"] = {
        "stages": {
            "early": {"layer": 2, "keep": 0.5, "select": "uniform"},
            "late": {"layer": 4, "keep": 0.25, "select": "attention"},
        }
    }
    recipe["data"]["sources"] = {
        name: {"dataset": "scale_data:Talks", "weight": o.pop("weight", 1.0), "options": o}
        for name, o in sources.items()
    }
    recipe["data"]["frames"] = {"fps": 2, "max_frames": 8}
    recipe["data"]["mixture"] = "samples"
    for section, settings in more.items():
        recipe[section] |= settings
    path = folder / "mixture.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path
