"""What people and programs write as a conversation, as the messages and media that a prompt is made of.

Taken are messages whose content is text, or a list of parts as transformers and the OpenAI API have them:

    {"type": "text", "text": ".."}
    {"type": "video" | "image", "video" | "image" | "url" | "path": PLACE}
    {"type": "video_url" | "image_url", ".._url": {"url": PLACE}}

A place is a path, a `file://` or `http(s)://` address, a `data:` address, or frames in memory.
"""

from __future__ import annotations

import base64
import binascii
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlparse
from urllib.request import url2pathname

from timeviper.datamodules.shards.schema import PLACEHOLDER, PLACEHOLDERS
from timeviper.tokenizer import Message

log = logging.getLogger("timeviper")

TEXTS = ("text", "input_text", "output_text")


@dataclass
class Medium:
    """Something to look at, not opened yet."""

    kind: str
    """video or image"""
    source: Any
    """A path or address as text, the bytes of a file, or frames in memory."""


@dataclass
class Conversation:
    messages: list[Message]
    """A placeholder in a user's message stands for each medium."""
    media: list[Medium]


def read_conversation(messages: Sequence[Mapping[str, Any]]) -> Conversation:
    """Raises ValueError with what is allowed for a part of another kind."""
    read: list[Message] = []
    media: list[Medium] = []
    for message in messages:
        content = message.get("content") or ""
        if isinstance(content, str):
            text = content
        else:
            text, found = _joined(content)
            if found and message["role"] != "user":
                raise ValueError(f"a message of role {message['role']} has a {found[0].kind}; only a user's may")
            media += found
        read.append({"role": str(message["role"]), "content": text})
    return Conversation(read, media)


def _joined(parts: Sequence[Mapping[str, Any]]) -> tuple[str, list[Medium]]:
    """The text of a message with placeholders, and its media. A line ends between a medium and the text behind it, as
    in training; what a person wrote that looks like a placeholder stays text."""
    text, media, after_medium = "", list[Medium](), False
    for part in parts:
        kind = part.get("type")
        if kind in TEXTS:
            said = PLACEHOLDER.sub(lambda mark: mark[0].replace("<", "< "), str(part["text"]))
            text += f"\n{said}" if after_medium and said and not said.startswith("\n") else said
            after_medium = after_medium and not said
        elif (plain := str(kind).removesuffix("_url").removeprefix("input_")) in PLACEHOLDERS:
            if text.strip() and not media:
                log.warning("a %s stands behind text; such models learn from questions that stand behind", plain)
            media.append(Medium(plain, source_of(_place(part, plain))))
            text, after_medium = text + PLACEHOLDERS[plain], True
        else:
            raise ValueError(f"a part of type {kind!r} is not taken: there are text, video and image")
    return text, media


def _place(part: Mapping[str, Any], kind: str) -> Any:
    for name in (kind, f"{kind}_url", "url", "path"):
        if (place := part.get(name)) is not None:
            return place.get("url") if isinstance(place, Mapping) else place
    raise ValueError(f"a part of type {kind} does not say where it is: it has {kind}, url or path")


def source_of(place: Any) -> Any:
    """What can be opened: a path or an http(s) address, bytes, or frames as they are."""
    if not isinstance(place, str):
        return place
    scheme = urlparse(place).scheme
    if scheme == "file":
        return url2pathname(unquote(urlparse(place).path))
    if scheme == "data":
        head, _, body = place.partition(",")
        if not head.endswith(";base64"):
            raise ValueError("a data: address must be base64, as in data:video/mp4;base64,...")
        try:
            return io.BytesIO(base64.b64decode(body, validate=True))
        except binascii.Error as error:
            raise ValueError(f"a data: address is no base64 ({error})") from error
    return place
