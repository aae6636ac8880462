"""A small corpus of all kinds of media, and a recipe for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tree import ROOT

from timeviper.config import Recipe
from timeviper.config.load import load_recipe
from timeviper.datamodules.world.render import encode_image, encode_video
from timeviper.datamodules.world.scene import draw_video

TALK = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "a ring"}]


def clip(number: int, seconds: float = 4.0) -> dict[str, Any]:
    scene = draw_video(np.random.default_rng(number), seconds, 4.0, 1, None)
    medium = {"type": "video", "member": "mp4", "duration": seconds, "fps": 4.0, "frames": int(4 * seconds)}
    talks = [{"type": "shape", "messages": TALK}, {"type": "colour", "messages": TALK}]
    json_ = {"media": [medium], "conversations": talks}
    return {"__key__": f"clip{number:02d}", "mp4": encode_video(scene), "json": json_}


def corpus() -> list[dict[str, Any]]:
    """Videos of several lengths, an image, text alone, and a video beside an image, in an order of their own."""
    picture = encode_image(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8), "png")
    pair = {"media": [{"type": "image", "member": "png"}, {"type": "video", "member": "mp4"}], "messages": TALK}
    return [
        *(clip(i, 2.0 + i % 3) for i in range(4)),
        {"__key__": "picture", "png": picture, "json": {"messages": TALK, "source": "mine"}},
        {"__key__": "text", "json": {"messages": TALK}},
        {"__key__": "pair", "png": picture, "mp4": clip(9)["mp4"], "json": pair},
        clip(5),
    ]


def make_recipe(shards: Path, export: Path | str = "", *more: str) -> Recipe:
    """Tiny stage 2 on one source; from an export, if any."""
    base = [f"data.sources.{name}=null" for name in ("images", "clips", "videos", "questions", "motion")]
    base += ["data.val.videos=null", f"data.sources.mine.shards={shards}", f"data.val.mine.shards={shards}"]
    base += ["data.frames.fps=2", "data.tokens_per_pack=400", "data.packs_per_step=2", "optim.warmup=0"]
    return load_recipe(ROOT / "recipes/tiny/stage2_instruct.yaml", [*base, f"train.init_from='{export}'", *more])
