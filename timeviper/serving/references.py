"""The media that a chat request refers to, in the three dialects that clients speak.

A `video_url` part (vLLM, SGLang, LMDeploy), frames as `image_url` parts (lmms-eval), and the id of an upload. All of
them become one of a few references, which nobody has opened yet.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from timeviper.serving.fields import Fields
from timeviper.serving.problems import ApiError, shown
from timeviper.serving.settings import ServeSettings

ID = re.compile(r"(file|video)-[0-9a-f]{32}")
TIME = re.compile(r"\s*<\s*(\d{1,6}(?:\.\d{1,6})?)\s*(?:s|seconds)\s*>\s*")
LONGEST = 10.0**6  # seconds


@dataclass(frozen=True)
class Wanted:
    """Which frames of a medium are taken; None: as the server's recipe says."""

    fps: float | None = None
    num_frames: int | None = None
    max_frames: int | None = None
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class Stored:
    """An upload or a watched video, by its id."""

    id: str


@dataclass(frozen=True)
class OnDisk:
    """A file below the server's media root, as the request named it."""

    path: str


@dataclass(frozen=True)
class Elsewhere:
    """A file of another server."""

    url: str


@dataclass(frozen=True)
class Inline:
    """A file that the request brings along."""

    data: bytes = field(repr=False)


@dataclass(frozen=True)
class Pictures:
    """Frames of one video that the request brings along as pictures."""

    data: tuple[bytes, ...] = field(repr=False)
    times: tuple[float, ...]
    duration: float | None = None


Place = Stored | OnDisk | Elsewhere | Inline | Pictures


@dataclass(frozen=True)
class Medium:
    """One medium of a request."""

    place: Place
    still: bool = False
    """A picture was announced."""
    wanted: Wanted = field(default_factory=Wanted)
    where: str = ""
    """Its part of the request, for messages."""


OPTIONS = ("fps", "num_frames", "nframes", "max_frames", "video_start", "video_end")


def wanted_of(found: Fields, limits: ServeSettings, before: Wanted | None = None) -> Wanted:
    """Frame settings out of an object, over those of `before`; 400 for those beyond the server's bounds."""
    before, most = before or Wanted(), limits.max_frames
    count = "nframes" if found.has("nframes") else "num_frames"
    for key in OPTIONS:
        found.raw(key)
    start = found.number("video_start", 0, LONGEST) if found.has("video_start") else before.start
    end = found.number("video_end", 0, LONGEST) if found.has("video_end") else before.end
    if end is not None and end <= (start or 0):
        raise found.refuse("video_end", f"must be later than video_start ({start or 0:g} s)")
    fps = before.fps
    if found.has("fps"):
        fps = found.number("fps", 0, limits.max_fps)
        if fps == 0:
            raise found.refuse("fps", f"must be above 0 and at most {limits.max_fps:g}")
    return Wanted(
        fps,
        found.integer(count, 1, most) if found.has(count) else before.num_frames,
        found.integer("max_frames", 1, most) if found.has("max_frames") else before.max_frames,
        start,
        end,
    )


class Parts:
    """The parts of one message: its texts, and where media stand among them."""

    def __init__(self, limits: ServeSettings, wanted: Wanted, frames: Fields) -> None:
        """wanted: frame settings of the whole request. frames: what it says of frames that come as JPEGs."""
        self.limits, self.wanted, self._frames = limits, wanted, frames
        self.found: list[str | Medium] = []

    def add(self, value: object, where: str) -> None:
        part = Fields({"type": "text", "text": value} if isinstance(value, str) else value, where)
        kind = part.raw("type") or next((k for k in ("video_url", "image_url", "video", "image") if part.has(k)), None)
        if kind == "text":
            self.found.append(part.text("text"))
            return part.end(ignored=("cache_control",))
        if kind in ("video_url", "image_url", "video", "image", "input_video"):
            self._medium(part, kind, where)
        elif kind in ("file", "input_file"):
            inner = part.inner("file") if part.has("file") else part
            place = self._place(inner, "file_id" if inner.has("file_id") else "file_data", False)
            self.found.append(Medium(place, False, wanted_of(part, self.limits, self.wanted), where))
            inner.raw("filename")
            inner.end()
        else:
            known = "text, video_url, image_url, video, image or file"
            raise ApiError(400, f"{where}.type must be {known}, got {shown(kind)}", f"{where}.type")

    def _medium(self, part: Fields, kind: str, where: str) -> None:
        still = kind.startswith("image")
        key = next((k for k in (kind, "video_url", "image_url", "video", "image", "url") if part.has(k)), kind)
        wanted = wanted_of(part, self.limits, self.wanted)
        part.raw("uuid")
        if not part.has(key) and part.has("uuid"):
            place: Place = self._place(part, "uuid", still)
        elif isinstance(part.raw(key), dict):
            inner = part.inner(key)
            address = "url" if inner.has("url") or not inner.has("id") else "id"
            place = self._place(inner, address, still)
            wanted = wanted_of(inner, self.limits, wanted)
            inner.raw("detail")
            inner.end()
        elif isinstance(part.raw(key), list):
            place = self._frames_of([str(v) for v in part.items(key, self.limits.max_pictures)], f"{where}.{key}")
        else:
            place = self._place(part, key, still)
        part.end(ignored=("cache_control",))
        self.found.append(Medium(place, still, wanted, where))

    def _place(self, found: Fields, key: str, still: bool) -> Place:
        url = found.text(key, longest=self.limits.max_body)
        where = found.name(key)
        if ID.fullmatch(url):
            return Stored(url)
        head, colon, rest = url.partition(":")
        scheme = head.lower() if colon and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", head) else ""
        if scheme == "data":
            return self._inline(rest, still, where)
        if scheme in ("http", "https"):
            return Elsewhere(url)
        if scheme == "file":
            return OnDisk(url[len("file:") :])
        if scheme or not url or "\0" in url or len(url) > 4096:
            known = (
                "an id of /v1/files or /v1/videos, data:, file:// or a path below the server's media root, http(s)://"
            )
            raise ApiError(400, f"{where} must be {known}; got {shown(url)}", where)
        return OnDisk(url)

    def _inline(self, rest: str, still: bool, where: str) -> Place:
        kind, comma, body = rest.partition(",")
        if not comma or not kind.lower().rstrip().endswith(";base64"):
            raise ApiError(400, f"{where} must be data:TYPE;base64,DATA", where)
        if "," in body or (not still and kind.lower().startswith("video/jpeg")):
            return self._frames_of(body.split(","), where)
        return Inline(_decoded(body, where))

    def _frames_of(self, pictures: Sequence[str], where: str) -> Pictures:
        """JPEG frames, whose times the request tells apart, or a frame a second."""
        most = min(self.limits.max_pictures, self.limits.max_frames)
        if not 1 <= len(pictures) <= most:
            raise ApiError(400, f"{where} holds {len(pictures):,} frames; 1 to {most:,} are taken", where)
        data = tuple(_decoded(p.rpartition("base64,")[2], where) for p in pictures)
        fps = self._frames.number("fps", 1e-3, 1e3, 1.0)
        indices = self._frames.items("frames_indices", self.limits.max_pictures) or list(range(len(data)))
        plain = all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 10**9 for i in indices)
        if not plain or len(indices) != len(data) or sorted(indices) != indices:
            raise self._frames.refuse("frames_indices", f"must be {len(data)} frame numbers in order")
        seconds = self._frames.number("duration", 0, LONGEST) if self._frames.has("duration") else None
        times = tuple(i / fps for i in indices)
        if seconds is not None and seconds < times[-1]:
            raise self._frames.refuse("duration", f"must not end before the last frame ({times[-1]:g} s)")
        return Pictures(data, times, seconds)

    def done(self) -> list[str | Medium]:
        """Texts and media in order: pictures after a `<12.5 seconds>` each are one video, and so are more of them side
        by side than a request may have media; a question before the media stands behind them, as in training; what lies
        beside each other is parted by a line's end."""
        parts = _timed(self.found, self.limits)
        if sum(isinstance(part, Medium) for part in parts) > self.limits.max_media:
            parts = _side_by_side(parts, self.limits)
        media = [part for part in parts if isinstance(part, Medium)]
        texts = [part for part in parts if isinstance(part, str)]
        if media and parts == [*texts, *media]:
            parts = [*media, *texts]
        return parts


def _timed(parts: Sequence[str | Medium], limits: ServeSettings) -> list[str | Medium]:
    """Pictures that come one by one with their times, as one video."""
    times, pictures, rest = list[float](), list[Medium](), list[str | Medium]()
    waiting: float | None = None
    for part in parts:
        if isinstance(part, str) and (match := TIME.fullmatch(part)):
            if waiting is not None:
                return list(parts)
            waiting = float(match[1])
        elif isinstance(part, Medium) and part.still and isinstance(part.place, Inline):
            if waiting is None or (times and waiting < times[-1]):
                return list(parts)
            if not pictures:
                rest.append(part)  # holds the place of the video
            times.append(waiting)
            pictures.append(part)
            waiting = None
        elif waiting is not None:
            return list(parts)
        else:
            rest.append(part)
    if not pictures:
        return list(parts)
    video = _video_of(pictures, times, limits)
    return [video if part is pictures[0] else part for part in rest]


def _side_by_side(parts: Sequence[str | Medium], limits: ServeSettings) -> list[str | Medium]:
    """Pictures without times, as clients send the frames of a video: a frame a second, or at the rate that is told."""
    done: list[str | Medium] = []
    for frames, run in groupby(parts, lambda p: isinstance(p, Medium) and p.still and isinstance(p.place, Inline)):
        members = list(run)
        if frames and len(members) > limits.max_media:
            pictures = [part for part in members if isinstance(part, Medium)]
            fps = pictures[0].wanted.fps or 1.0
            done.append(_video_of(pictures, [i / fps for i in range(len(pictures))], limits))
        else:
            done += members
    return done


def _video_of(pictures: Sequence[Medium], times: Sequence[float], limits: ServeSettings) -> Medium:
    """Pictures as the frames of one video."""
    if len(pictures) > limits.max_frames:
        message = f"the request holds {len(pictures):,} frames; at most {limits.max_frames:,} are taken"
        raise ApiError(400, message, pictures[0].where)
    data = tuple(p.place.data for p in pictures if isinstance(p.place, Inline))
    return replace(pictures[0], place=Pictures(data, tuple(times)), still=False)


def _decoded(text: str, where: str) -> bytes:
    try:
        data = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, f"{where} is not base64", where) from None
    if not data:
        raise ApiError(400, f"{where} is empty", where)
    return data


def counted(media: Sequence[Medium], limits: ServeSettings) -> None:
    """400 for more media than a request may have."""
    if len(media) > limits.max_media:
        what = f"the request holds {len(media):,} videos and pictures; at most {limits.max_media:,} are taken"
        raise ApiError(
            400, f"{what} (frames of one video: data:video/jpeg;base64,X1,X2,... or <1.5 seconds> before each)"
        )


def options_of(body: Fields) -> list[Any]:
    """Where requests write frame settings for all of their media."""
    inside = body.inner("media_io_kwargs")
    found = [body.inner("mm_processor_kwargs"), inside.inner("video"), body.inner("video_config")]
    inside.raw("image")
    inside.end()
    return found
