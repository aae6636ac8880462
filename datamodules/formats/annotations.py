"""Annotation files of published data sets: one JSON object for all videos, which are named by their ids.

    {"database": {"ID": {"subset": "training", "annotations": [{"segment": [0, 2], "sentence": "..."}]}}}
    {"videos": [{"video_id": "video0", "split": "train", ...}], "sentences": [{"video_id": "video0", "caption": "..."}]}

The first is that of YouCook2, of ActivityNet's activities (`label` for `sentence`) and of COIN (`annotation`), the
second that of MSR-VTT. An object of `timestamps` and `sentences` keyed by video is ActivityNet Captions'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from timeviper.datamodules.formats.entry import Entry
from timeviper.datamodules.formats.grounding import is_grounding
from timeviper.datamodules.formats.media import ById
from timeviper.datamodules.shards.schema import SchemaError

EVENTS = ("annotations", "annotation")
TEXTS = ("sentence", "label", "caption")
OF_SOURCE = ("start time", "end time", "start", "end")  # in what was downloaded, or of the whole task


def entries_of(found: dict[str, Any]) -> Iterator[Entry] | None:
    """The entries of such an object; None if it is none of them."""
    return next((read(found) for matches, read in LAYOUTS if matches(found)), None)


def _is_database(found: dict[str, Any]) -> bool:
    return isinstance(found.get("database"), dict)


def _database(found: dict[str, Any]) -> Iterator[Entry]:
    for video, said in found["database"].items():
        where = f"video {video!r}"
        try:
            if not isinstance(said, dict):
                raise SchemaError(f"must be an object, got {type(said).__name__}")
            yield Entry(where, {"video": ById(video), **_events(said)}, raw=_apart(said))
        except SchemaError as error:
            yield Entry(where, error, raw=said)


def _events(said: dict[str, Any]) -> dict[str, Any]:
    """What happens when, as segments; the rest stays, bounds of the whole under a name that bounds nothing."""
    name = next((name for name in EVENTS if isinstance(said.get(name), list)), None)
    if name is None:
        raise SchemaError(f"has no {' or '.join(EVENTS)}, as videos for testing have none; leave them out (--only)")
    segments = []
    for number, event in enumerate(said[name]):
        text = next((event[t] for t in TEXTS if isinstance(event, dict) and t in event), None)
        times = event.get("segment") if isinstance(event, dict) else None
        if not isinstance(text, str) or not isinstance(times, list) or len(times) != 2:
            raise SchemaError(f"{name}[{number}] must have segment: [start, end] and {' or '.join(TEXTS)}", "segments")
        segments.append({"start": times[0], "end": times[1], "text": text.strip()})
    return {**_apart({n: v for n, v in said.items() if n != name}), "segments": segments}


def _apart(fields: dict[str, Any]) -> dict[str, Any]:
    return {f"source {name}" if name in OF_SOURCE else name: value for name, value in fields.items()}


def _is_msrvtt(found: dict[str, Any]) -> bool:
    return all(isinstance(found.get(name), list) for name in ("videos", "sentences"))


def _msrvtt(found: dict[str, Any]) -> Iterator[Entry]:
    """One entry a video with all its captions; the times beside it are those of the film that it was cut from."""
    captions: dict[Any, list[Any]] = {}
    for sentence in found["sentences"]:
        if isinstance(sentence, dict):
            captions.setdefault(sentence.get("video_id"), []).append(sentence.get("caption"))
    for number, video in enumerate(found["videos"]):
        where = f"videos[{number}]"
        if not isinstance(video, dict) or not isinstance(video.get("video_id"), str):
            yield Entry(where, SchemaError("must have a video_id"), raw=video)
            continue
        name = video["video_id"]
        said = captions.pop(name, None)
        fields = {**_apart({k: v for k, v in video.items() if k != "video_id"}), "key": name, "video": ById(name)}
        if said is None:
            yield Entry(where, SchemaError(f"{name} has no sentence"), raw=video)
        else:
            yield Entry(where, {**fields, "caption": said}, raw={**_apart(video), "captions": said})
    for name, said in captions.items():
        yield Entry(f"sentences of {name!r}", SchemaError("are of a video that is not among the videos"), raw=said)


def _is_keyed(found: dict[str, Any]) -> bool:
    return bool(found) and all(isinstance(v, dict) and is_grounding({"video": "", **v}) for v in found.values())


def _keyed(found: dict[str, Any]) -> Iterator[Entry]:
    return (Entry(f"entry {video!r}", {"video": video, **fields}) for video, fields in found.items())


Layout = tuple[Callable[[dict[str, Any]], bool], Callable[[dict[str, Any]], Iterator[Entry]]]
LAYOUTS: tuple[Layout, ...] = ((_is_database, _database), (_is_msrvtt, _msrvtt), (_is_keyed, _keyed))
