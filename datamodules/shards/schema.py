"""What the json of a sample says, checked once and brought into one form.

    {"media": [{"type": "video", "member": "mp4", "duration": 9.5, "fps": 4.0, "frames": 38}],
     "conversations": [
       {"type": "colour", "messages": [{"role": "user", "content": "<video>\\nWhat colour is the circle?"},
                                       {"role": "assistant", "content": "red"}]}],
     "segments": [{"start": 2.0, "end": 5.5, "text": "a red circle moves left"}], "source": "world"}

`messages` at the top level is short for one conversation of type "chat". `media` may be left out where
the file's ending says it all. `start` and `end` of a video (seconds; either may be left out) say that the
sample is about that part of the file: length and frames are the part's, and times count from its start. With a
`time_offset` (seconds) the clock shows that much there: of a file that was cut out of a recording, by whose time its
texts and segments speak.
`<video>` and `<image>` mark where the media go, in the order of `media`; without any mark they go before
the first user message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any, TypeGuard

from timeviper.datamodules.frames.part import part_of

VIDEO = (
    *("mp4", "mkv", "webm", "mov", "avi", "m4v", "mpg", "mpeg", "m1v", "m2v", "vob", "ts", "m2ts", "mts"),
    *("flv", "f4v", "3gp", "3g2", "wmv", "asf", "rm", "rmvb", "ogv", "gif", "swf"),
)
IMAGE = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff")
FEATURES = "features.safetensors"
ROLES = ("system", "user", "assistant")
PLACEHOLDERS = {"video": "<video>", "image": "<image>"}
PLACEHOLDER = re.compile("|".join(PLACEHOLDERS.values()))
MAX_NUMBER = 1e15  # of seconds or frames; what is larger is no float, or no time
MAX_JSON = 64 << 20  # bytes; an hour of dense captions is below 1 MB


class SchemaError(ValueError):
    """A sample's json does not say what it must; the message names the field.

    `kind` is one word for reports: json, text, placeholders or segments.
    """

    def __init__(self, message: str, kind: str = "json") -> None:
        super().__init__(message)
        self.kind = kind


def media_type(member: str) -> str | None:
    """ "video", "image" or None, by the ending of a member's field."""
    ending = member.rpartition(".")[2].lower()
    if ending in VIDEO:
        return "video"
    return "image" if ending in IMAGE else None


def parse_record(raw: bytes, fields: Collection[str], only: int | None = None) -> dict[str, Any]:
    """The json of a sample in its full form, media and conversations present. SchemaError if it is wrong.

    only: number of the one conversation that is looked at; None: all are.
    """
    if len(raw) > MAX_JSON:
        raise SchemaError(f"the json has {len(raw)} bytes, more than {MAX_JSON}; split the sample")
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"the json cannot be read: {error}") from error
    _check_unicode(raw, record)
    if not isinstance(record, dict):
        raise SchemaError(f"the json must be an object, got {type(record).__name__}")
    record["media"] = _media(record.get("media"), fields)
    record["conversations"] = _conversations(record, record["media"], only)
    begin = min((part_of(m).offset for m in record["media"]), default=0.0)
    check_segments(record.get("segments", []), begin, sum(_stated_end(m) for m in record["media"]))
    return record


def _check_unicode(raw: bytes, record: Any) -> None:
    """Half of a surrogate pair is no character: no tokenizer takes it."""
    if b"\\ud" in raw.lower() or b"\xed" in raw:
        try:
            json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            found = ascii(error.object[max(error.start - 20, 0) : error.end])
            raise SchemaError(f"{found} ends with half a surrogate pair, which is no text", "text") from error


def _media(media: Any, fields: Collection[str]) -> list[dict[str, Any]]:
    present = sorted(f for f in fields if media_type(f))
    if media is None:
        media = [{"type": media_type(field), "member": field} for field in present]
    if not isinstance(media, list) or not all(isinstance(m, dict) for m in media):
        raise SchemaError('media must be a list of objects like {"type": "video", "member": "mp4"}')
    for i, medium in enumerate(media):
        if medium.get("type") not in tuple(PLACEHOLDERS):
            raise SchemaError(f"media[{i}].type is {medium.get('type')!r}; allowed: video, image")
        if medium.get("member") not in tuple(fields):
            raise SchemaError(
                f"media[{i}].member is {medium.get('member')!r}, but the sample's files are {sorted(fields)}"
            )
        for name in ("duration", "fps", "frames"):
            value = medium.get(name)
            if value is not None and not (_is_number(value) and value > 0):
                raise SchemaError(f"media[{i}].{name} is {value!r}; it must be a number above 0, or left out")
        spacing = medium.get("keyframe_spacing")
        if spacing is not None and not (_is_number(spacing) and spacing >= 0):
            raise SchemaError(f"media[{i}].keyframe_spacing is {spacing!r}; it must be seconds from 0 on, or left out")
        _check_part(medium, f"media[{i}]")
    unused = set(present) - {m["member"] for m in media}
    if unused:
        raise SchemaError(f"media does not mention the files {sorted(unused)}")
    return media


def _check_part(medium: dict[str, Any], where: str) -> None:
    for name in ("start", "end", "time_offset"):
        value = medium.get(name)
        if value is not None and not (_is_number(value) and value >= 0):
            raise SchemaError(f"{where}.{name} is {value!r}; it must be seconds from 0 on, or left out", "segments")
    part = part_of(medium)
    if medium["type"] != "video" and any(medium.get(name) is not None for name in ("start", "end", "time_offset")):
        raise SchemaError(f"{where} has start, end or time_offset, but it is an image, which has no times", "segments")
    if part.end is not None and part.start >= part.end:
        raise SchemaError(f"{where} runs from {part.start:g} to {part.end:g} s; needs start < end", "segments")


def _stated_end(medium: dict[str, Any]) -> float:
    """Seconds that the json says, on the clock at its end; 0 if it does not."""
    part = part_of(medium)
    length = medium.get("duration") or (0.0 if part.end is None else part.end - part.start)
    return length and length + part.offset


def _conversations(record: dict[str, Any], media: list[dict[str, Any]], only: int | None) -> list[dict[str, Any]]:
    if ("messages" in record) == ("conversations" in record):
        raise SchemaError("needs either conversations or messages")
    conversations = record.get("conversations", [{"type": "chat", "messages": record.pop("messages", None)}])
    if not isinstance(conversations, list) or not conversations:
        raise SchemaError("conversations must be a list with at least one entry")
    for i, conversation in enumerate(conversations):
        if only not in (None, i):
            continue
        where = f"conversations[{i}]"
        if not isinstance(conversation, dict):
            raise SchemaError(f"{where} must be an object with messages")
        if not isinstance(conversation.setdefault("type", "chat"), str):
            raise SchemaError(f"{where}.type must be a word, got {conversation['type']!r}")
        _messages(conversation.get("messages"), f"{where}.messages")
        _placeholders(conversation["messages"], media, where)
    return conversations


def _messages(messages: Any, where: str) -> None:
    if not isinstance(messages, list) or not messages:
        raise SchemaError(f"{where} must be a list with at least one message")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise SchemaError(f"{where}[{i}] must have a role, one of {', '.join(ROLES)}")
        content = message.get("content")
        if not isinstance(content, str) or not content.strip():
            raise SchemaError(f"{where}[{i}].content must be text that is not empty, got {content!r}", "text")
    spoken = [m["role"] for m in messages if m["role"] != "system"]
    if spoken != ["user", "assistant"] * (len(spoken) // 2) or not spoken:
        raise SchemaError(f"{where} must alternate user, assistant, and end so, got {', '.join(spoken) or 'none'}")


def _placeholders(messages: list[dict[str, str]], media: list[dict[str, Any]], where: str) -> None:
    """Either no mark at all, or one a medium and of its type, in order."""
    text = " ".join(m["content"] for m in messages if m["role"] == "user")
    marks = sorted((at, kind) for kind, mark in PLACEHOLDERS.items() for at in _find_all(text, mark))
    kinds, expected = [kind for _, kind in marks], [m["type"] for m in media]
    if kinds and kinds != expected:
        raise SchemaError(
            f"{where} has placeholders for {kinds}, but media {expected}; write one each, in order, or none "
            "(and a mark that is meant as text as &lt;video&gt; or &lt;image&gt;)",
            "placeholders",
        )


def _find_all(text: str, mark: str) -> list[int]:
    found, at = [], text.find(mark)
    while at >= 0:
        found.append(at)
        at = text.find(mark, at + 1)
    return found


def check_segments(segments: Any, begin: float = 0.0, stop: float = 0.0) -> None:
    """SchemaError unless they are a list of {start, end, text} from `begin` to `stop` (0: not known), in seconds."""
    if not isinstance(segments, list):
        raise SchemaError("segments must be a list of {start, end, text}", "segments")
    for i, segment in enumerate(segments):
        if not isinstance(segment, dict) or not isinstance(segment.get("text"), str):
            raise SchemaError(f"segments[{i}] must have start, end and text", "segments")
        start, end = segment.get("start"), segment.get("end")
        if not (_is_number(start) and _is_number(end) and 0 <= start < end):
            raise SchemaError(
                f"segments[{i}] runs from {start!r} to {end!r}; needs 0 <= start < end, in seconds", "segments"
            )
        if start < begin - 0.5:
            raise SchemaError(
                f"segments[{i}] begins at {start} s, but the media at their time_offset, {begin} s", "segments"
            )
        if stop and end > stop + 0.5:
            raise SchemaError(f"segments[{i}] ends at {end} s, but the media at {stop} s", "segments")


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_NUMBER
