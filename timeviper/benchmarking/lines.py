"""Questions as lines of JSON on stdin, replies as lines on stdout: how programs of other environments ask a run.

    {"video": "a.mp4", "text": "What happens?", "max_new_tokens": 16}
    also: start, end (seconds), system, prefix, frames (a protocol, for this question)
    {"reply": "a ring", "tokens": {...}, "finish": "stop", "error": ""}

One line in, one line out, in order. Questions about one video that follow each other share its prefill.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from timeviper.benchmarking.asking import Asker, Failures, Way
from timeviper.benchmarking.item import Item, VideoRef
from timeviper.benchmarking.protocol import Protocol, protocol_of
from timeviper.benchmarking.testset import Form
from timeviper.config import FramesConfig
from timeviper.errors import ConfigError
from timeviper.inference.ask import LoadedModel

READY = {"ready": True}
"""The first line, once the model is loaded."""


def answer_lines(model: LoadedModel, protocol: Protocol, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """A reply to each line that is not empty; one that cannot be read has an `error`, and the next one is answered."""
    held: tuple[Any, Any] | None = None
    for line in lines:
        if not line.strip():
            continue
        try:
            item, way = _asked(json.loads(line), protocol, model.recipe.data.frames)
            asker, place = Asker(model, way), (item.video, way.form.system, way.protocol.name)
            if held is None or held[0] != place:
                held = None  # the state of the video before goes first: two never lie side by side
                held = place, asker.watch(item)
            found = asker.reply(item, "", *held[1])
        except (*Failures, ConfigError, KeyError, TypeError) as error:
            yield {"reply": "", "tokens": {}, "finish": "", "error": " ".join(str(error).split())}
        else:
            yield {"reply": found.reply, "tokens": found.tokens, "finish": found.finish, "error": found.error}


def _asked(row: Any, protocol: Protocol, trained: FramesConfig) -> tuple[Item, Way]:
    if not isinstance(row, dict) or not isinstance(row.get("video"), str) or not isinstance(row.get("text"), str):
        raise ValueError('a line must be an object with "video" (a path) and "text"')
    ref = VideoRef(row["video"], row["video"], start=row.get("start"), end=row.get("end"))
    form = Form("{question}", system=str(row.get("system", "")), prefix=str(row.get("prefix", "")))
    if "frames" in row:
        protocol = protocol_of(str(row["frames"]), trained)
    way = Way(form, protocol, max_new_tokens=int(row.get("max_new_tokens", 64)))
    return Item(row["video"], ref, "open", row["text"]), way
