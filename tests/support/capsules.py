"""Capsules made by hand: items, replies, and the header that a run would write."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timeviper.benchmarking import capsule_write
from timeviper.benchmarking.capsule import Reply, Shown, read_header
from timeviper.benchmarking.item import Item, VideoRef

DEPENDS: dict[str, Any] = {
    "set": {"name": "own", "title": "Own", "annotations": "00", "policies": {}},
    "model": {"weights": "11"},
    "frames": {"protocol": "fps:1:256"},
    "subtitles": {"rule": "none"},
    "template": {"form": "official"},
    "decoding": {"max_new_tokens": 16},
    "seed": 0,
    "hardware": {"device": "cpu"},
}


def choice(key: str, right: int | None = 0, video: str = "v", options: int = 4, **more: Any) -> Item:
    texts = tuple(f"thing {n}" for n in range(options))
    answers = () if right is None else ("ABCDEFGH"[right],)
    return Item(key, VideoRef(video), more.pop("task", "mcq"), "What?", texts, right, answers, **more)


def moment(key: str, window: tuple[float, float], video: str = "v") -> Item:
    return Item(key, VideoRef(video), "grounding", "When?", windows=(window,))


def reply(key: str, text: str | None, **more: Any) -> Reply:
    told: dict[str, Any] = {"variant": "", "prompt": f"p{key}", "tokens": {"prompt": 9}, "finish": "stop"} | more
    error = "" if text is not None else "missing"
    return Reply(key, reply=text or "", seconds=0.1, error=told.pop("error", error), **told)


def write(
    folder: Path,
    items: Sequence[Item],
    texts: Mapping[str, str | None],
    blind: Mapping[str, str] | None = None,
    **told: Any,
) -> Path:
    """A finished capsule. told: entries of the header that are merged into `DEPENDS`."""
    depends = {n: v | told[n] if n in told and isinstance(v, dict) else told.get(n, v) for n, v in DEPENDS.items()}
    capsule_write.begin(folder, depends, items, ["" for _ in items])
    part = capsule_write.Part(folder, read_header(folder)["id"], 0)
    shown = [Shown(name, (0.5, 1.5), 2.0) for name in sorted({item.video.name for item in items})]
    part.add([reply(key, text) for key, text in texts.items()], shown)
    part.add([reply(key, text, variant="blind") for key, text in (blind or {}).items()])
    capsule_write.end(folder)
    return folder


def die_answering(rank: int, *, who: int, count: int) -> None:
    """Rank `who` is killed after so many videos, while it writes a line."""
    plain, left = capsule_write.Part.add, [count]

    def add(part: capsule_write.Part, replies: Any, shown: Any = ()) -> None:
        if rank == who and left[0] == 0:
            part.folder.mkdir(parents=True, exist_ok=True)
            with (part.folder / "answers.jsonl").open("a") as file:
                file.write('{"key": "')
            os.kill(os.getpid(), signal.SIGKILL)
        plain(part, replies, shown)
        left[0] -= 1

    capsule_write.Part.add = add  # type: ignore[method-assign]
