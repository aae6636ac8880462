"""Temporal grounding: when does what a sentence says happen in a video?

Known are, in a list, in JSONL, or keyed by video:

    {"video": "a.mp4", "query": "a dog runs", "start": 2.0, "end": 5.0}      also "timestamp": [2.0, 5.0]
    {"video": "v_1", "timestamps": [[0, 2], [3, 5]], "sentences": ["...", "..."]}          as in ActivityNet Captions
    {"vid": "a_60.0_210.0", "query": "a dog runs", "relevant_windows": [[2, 4], [8, 12]]}            as in QVHighlights

Each becomes a question of type `when` and a segment; what happens several times, one of type `times` that all of them
answer, as no single one of them would be right.
"""

from __future__ import annotations

from typing import Any

from timeviper.datamodules.formats.entry import Dialect
from timeviper.datamodules.formats.media import ById
from timeviper.datamodules.formats.talk import ask_times, ask_when
from timeviper.datamodules.shards.schema import SchemaError, check_segments, media_type

VIDEO = ("video", "video_id", "vid", "video_name", "video_path", "path", "file")
QUERY = ("query", "sentence", "description")
TALK = ("messages", "conversations", "caption", "question")
TIMES = (("start", "end"), ("start_time", "end_time"), ("timestamp",), ("times",))
MANY = ("timestamps", "sentences")
WINDOWS = "relevant_windows"
IDS = ("video_id", "vid")  # which name no file


def is_grounding(fields: dict[str, Any]) -> bool:
    """Whether an entry, by its names alone, is of this format."""
    if says_more(fields):
        return False
    return (
        _has(fields, *MANY)
        or _has(fields, "query", WINDOWS)
        or (any(q in fields for q in QUERY) and any(_has(fields, *t) for t in TIMES))
    )


def says_more(fields: dict[str, Any]) -> bool:
    """Whether an entry has talk of its own, so that its times are those of the part which that is about."""
    return any(name in fields for name in TALK)


def read_grounding(fields: dict[str, Any]) -> dict[str, Any]:
    """The video with conversations and segments. What else an entry says stays beside what it is about."""
    fields = dict(fields)
    by_id = next((name for name in VIDEO if name in fields), "") in IDS
    video = _take(fields, VIDEO, "the video")
    if not isinstance(video, str):
        raise SchemaError(f"the video must be a name, got {video!r}")
    video = ById(video) if by_id and not media_type(video) and "/" not in video else video
    if WINDOWS in fields:
        return _windows(fields, video)
    if _has(fields, *MANY):
        times, queries = fields.pop("timestamps"), fields.pop("sentences")
        if not (isinstance(times, list) and isinstance(queries, list) and len(times) == len(queries)):
            raise SchemaError("timestamps and sentences must be lists of one length")
        whole, own = fields, {}
    else:
        queries = [_take(fields, QUERY, "the query")]
        names = next((t for t in TIMES if _has(fields, *t)), None)
        if names is None:
            raise SchemaError("says no times: give start and end, or timestamp: [start, end]")
        taken = [fields.pop(name) for name in names]
        times = taken if len(taken) == 1 else [taken]
        whole, own = {}, fields
    segments = [_segment(query, time) for query, time in zip(queries, times)]
    check_segments(segments)
    asked = [ask_when(s["text"], s["start"], s["end"], **own) for s in segments]
    return {**whole, "video": video, "conversations": asked, "segments": segments}


def _windows(fields: dict[str, Any], video: str) -> dict[str, Any]:
    query, windows = _take(fields, QUERY, "the query"), fields.pop(WINDOWS)
    if not isinstance(windows, list) or not windows:
        raise SchemaError(f"{WINDOWS} must be a list of [start, end], got {windows!r}", "segments")
    segments = [_segment(query, window) for window in windows]
    check_segments(segments)
    if len(segments) == 1:
        asked = ask_when(segments[0]["text"], segments[0]["start"], segments[0]["end"], **fields)
    else:
        asked = ask_times(segments[0]["text"], [(s["start"], s["end"]) for s in segments], **fields)
    return {"video": video, "conversations": [asked], "segments": segments}


def _segment(query: Any, time: Any) -> dict[str, Any]:
    if not isinstance(query, str) or not query.strip():
        raise SchemaError(f"the query must be text that is not empty, got {query!r}", "text")
    if not isinstance(time, list) or len(time) != 2:
        raise SchemaError(f"the times of {query!r} must be [start, end], got {time!r}", "segments")
    return {"start": _number(time[0]), "end": _number(time[1]), "text": query.strip()}


def _number(value: Any) -> Any:
    """Seconds; also as text, as tables that became JSON have them."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError as error:
        raise SchemaError(f"the time {value!r} is no number of seconds", "segments") from error


def _take(fields: dict[str, Any], names: tuple[str, ...], what: str) -> Any:
    for name in names:
        if name in fields:
            return fields.pop(name)
    raise SchemaError(f"does not name {what}: looked for {', '.join(names)}, found {', '.join(fields) or 'nothing'}")


def _has(fields: dict[str, Any], *names: str) -> bool:
    return all(name in fields for name in names)


GROUNDING = Dialect("grounding", is_grounding, read_grounding)


def read_dense(fields: dict[str, Any]) -> dict[str, Any]:
    """The same moments as timed captions: what happens when, instead of when something happens."""
    found = read_grounding(fields)
    return {name: value for name, value in found.items() if name != "conversations"}


DENSE = Dialect("dense", lambda fields: False, read_dense)  # taken only where a person says so
