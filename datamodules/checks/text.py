"""The texts of a sample under examination: their size, and whether the times in them lie within the media."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from timeviper.datamodules.when import WHEN, parse_interval

SLACK = 0.5  # seconds by which a time may be beyond the end: people round


def examine_text(record: dict[str, Any], end: float, max_bytes: int) -> Iterator[tuple[str, str]]:
    """Findings (kind, detail) on a parsed json. `end`: when the media end, in seconds on their clock; 0: unknown."""
    for i, conversation in enumerate(record["conversations"]):
        where, messages = f"conversations[{i}]", conversation["messages"]
        text = "\n".join(message["content"] for message in messages)
        if (size := len(text.encode())) > max_bytes:
            yield "text", f"{where} has {size:,} bytes of text, more than {max_bytes:,}: split it, or allow more"
        if "\ufffd" in text:
            yield "characters", f"{where} has the replacement character \ufffd where a text was decoded wrongly"
        interval = parse_interval(messages[-1]["content"]) if conversation["type"] == WHEN else None
        if end and interval and interval[1] > end + SLACK:
            yield "segments", f"{where} answers with {interval[0]} to {interval[1]} s, but the media end at {end:.2f} s"
    for i, segment in enumerate(record.get("segments", [])):
        if not segment["text"].strip():
            yield "segments", f"segments[{i}], from {segment['start']} to {segment['end']} s, has no text"
        if end and segment["end"] > end + SLACK:
            yield "segments", f"segments[{i}] ends at {segment['end']} s, but the media end at {end:.2f} s"
