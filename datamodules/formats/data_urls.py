"""Pictures that stand in the text itself: `data:image/jpeg;base64,...`, as chat APIs take them.

They stay in memory until they are written, as the text does: a source of more than some GB is better written as files.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass

from timeviper.datamodules.shards.schema import IMAGE, VIDEO, SchemaError
from timeviper.datamodules.shards.writer import Made

HEAD = re.compile(r"data:(?:image|video)/([\w.+-]+);base64,")
ENDINGS = {"jpeg": "jpg", "quicktime": "mov", "x-matroska": "mkv", "x-msvideo": "avi"}


@dataclass(frozen=True)
class InText(Made):
    """One of them."""

    text: str
    """Base64."""
    ending: str

    def __str__(self) -> str:
        return f"data of {len(self.text):,} characters"

    def read(self) -> bytes:
        return base64.b64decode(self.text, validate=True)


def in_text(url: str) -> InText:
    """SchemaError for other data than pictures and videos in Base64."""
    head = HEAD.match(url)
    ending = ENDINGS.get(head[1], head[1]) if head else ""
    if not head or ending not in (*IMAGE, *VIDEO):
        raise SchemaError(f"{url[:40]!r}... is no picture or video in Base64; write it as a file, and name that")
    return InText(url[head.end() :], ending)
