"""Watched videos: states in memory, the ones asked about lately first, and those on disk that a client has made.

    STORE/<tenant>/videos/<id>/state.safetensors   as `VideoState.save` writes it
                              /meta.json           where its video comes from and which frames were taken

An id is made of all that the state depends on: content, frames, model, schedule, the text before the video, and who may
share it (the key and `cache_salt`). So a question finds the state of its video, whoever asked before.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from timeviper.datamodules.chat import Encoded
from timeviper.files import TEMPORARY, remove_folder, write_whole
from timeviper.inference.ask import LoadedModel
from timeviper.inference.state_file import StateFile
from timeviper.inference.state_key import StateError, StateKey, digest_of, head_of
from timeviper.inference.video_state import VideoState
from timeviper.serving.problems import ApiError
from timeviper.serving.references import Medium, OnDisk, Stored, Wanted

log = logging.getLogger("timeviper")

VIDEO_ID = re.compile(r"video-[0-9a-f]{32}")
STATE, META = "state.safetensors", "meta.json"
MISSING = "there is no such video: make it with POST /v1/videos"


@dataclass(frozen=True)
class Video:
    """A watched video as its client knows it."""

    id: str
    created: int
    source: str
    """file:ID, or path:PATH below the media root."""
    wanted: dict[str, Any]
    content: str
    """SHA-256 of its bytes."""
    kind: str
    duration: float
    frame_times: list[float]
    tokens: int
    """Of a prompt that the state stands for."""
    state_bytes: int
    saved: bool = True
    """Whether the state is on disk; else it is gone when the server or the memory for states ends."""

    def as_dict(self) -> dict[str, Any]:
        times = [round(t, 3) for t in self.frame_times]
        return {
            "id": self.id,
            "object": "video",
            "created_at": self.created,
            "source": self.source,
            "kind": self.kind,
            "duration": round(self.duration, 3),
            "frames": len(times),
            "first_seconds": times[0] if times else None,
            "last_seconds": times[-1] if times else None,
            "frame_times": times,
            "tokens": self.tokens,
            "state_bytes": self.state_bytes,
            "saved": self.saved,
        }

    def medium(self, where: str = "") -> Medium:
        """What it was made of."""
        kind, _, name = self.source.partition(":")
        return Medium(Stored(name) if kind == "file" else OnDisk(name), False, Wanted(**self.wanted), where)


def video_id(key: StateKey, content: str, wanted: object, encoded: Encoded, tenant: str, salt: str) -> str:
    """key: of the model; encoded: a prompt whose beginning, up to the last frame, is the state's."""
    parts = [key.digest, content, repr(wanted), digest_of(encoded, head_of(encoded)), tenant, salt]
    return f"video-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]}"


class States:
    """States in memory, of all tenants, at most `most_bytes` of them; `claim` lets one request watch a video while
    others that want the same wait."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.bytes = most_bytes, 0
        self.hits = self.misses = 0
        self._states: OrderedDict[str, VideoState] = OrderedDict()
        self._claimed: set[str] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._states)

    def get(self, id: str) -> VideoState | None:
        with self._lock:
            if (state := self._states.get(id)) is not None:
                self._states.move_to_end(id)
            return state

    def put(self, id: str, state: VideoState) -> None:
        with self._lock:
            self._claimed.discard(id)
            if state.bytes > self.most_bytes:
                return
            if (old := self._states.pop(id, None)) is not None:
                self.bytes -= old.bytes
            self._states[id] = state
            self.bytes += state.bytes
            while self.bytes > self.most_bytes:
                self.bytes -= self._states.popitem(last=False)[1].bytes

    def drop(self, id: str) -> None:
        with self._lock:
            if (state := self._states.pop(id, None)) is not None:
                self.bytes -= state.bytes

    def claim(self, id: str) -> bool:
        """Whether the caller is to watch it; else somebody is about to."""
        with self._lock:
            if id in self._claimed:
                return False
            self._claimed.add(id)
            return True

    def unclaim(self, id: str) -> None:
        with self._lock:
            self._claimed.discard(id)

    def is_claimed(self, id: str) -> bool:
        return id in self._claimed


class VideoStore:
    """The watched videos of one tenant on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for place in folder.iterdir():
            if place.name.endswith(TEMPORARY) or not (place / META).is_file():  # a kill has ended it
                shutil.rmtree(place, ignore_errors=True)
            for rest in place.glob(f"*{TEMPORARY}"):
                rest.unlink(missing_ok=True)

    def save(self, video: Video, state: VideoState) -> bool:
        """Whether the disk has taken it. The state first: what has a `meta.json` is whole."""
        place = self.folder / video.id
        try:
            place.mkdir(exist_ok=True)
            state.save(place / STATE)
            write_whole(place / META, json.dumps(asdict(video)))
        except OSError as error:
            log.warning("the state of a video is not saved: %s", error)
            if not (place / META).is_file():
                shutil.rmtree(place, ignore_errors=True)
            return False
        return True

    def get(self, id: str) -> Video:
        """404 for one that is not there."""
        if VIDEO_ID.fullmatch(id):
            with suppress(OSError, ValueError, TypeError):
                return Video(**json.loads((self.folder / id / META).read_text()))
        raise ApiError(404, MISSING, "id")

    def state(self, id: str, model: LoadedModel) -> VideoState | None:
        """What is on disk, for this model; None if that is not (or not any more) such a state."""
        path = self.folder / id / STATE
        if not VIDEO_ID.fullmatch(id) or not path.is_file():
            return None
        try:
            return VideoState.read(StateFile(path), model)
        except (StateError, OSError) as error:
            log.warning("the state of a video cannot be used, it is watched again: %s", error)
            return None

    def delete(self, id: str) -> None:
        self.get(id)
        with suppress(OSError):
            remove_folder(self.folder / id)

    def __iter__(self) -> Iterator[Video]:
        found = []
        for place in self.folder.iterdir():
            with suppress(ApiError):
                found.append(self.get(place.name))
        return iter(sorted(found, key=lambda video: (video.created, video.id)))
