"""A disk that gives nothing, or a decoder that never ends: who asked is told so, and holds nobody else up."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from served import serving, video_part
from video_helpers import write_clip

from timeviper.inference.ask import LoadedModel
from timeviper.serving.decoders import DecodeLimits, Decoders, MediaError, Reply

HANGS = "it cannot be read: its disk gives nothing, or it takes more time than is allowed"
SLOW = 2.5  # frames a second, of requests whose child comes to a stop


def test_a_child_that_gets_no_bytes_is_ended(tmp_path: Path) -> None:
    """A pipe that somebody holds open and writes nothing to."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    end, decoders = os.open(pipe, os.O_RDWR), Decoders(DecodeLimits(idle=0.5))
    with pytest.raises(MediaError, match=HANGS):
        decoders.facts("digest", lambda: os.open(pipe, os.O_RDONLY))
    os.close(end)
    decoders.close()


def test_one_that_computes_is_not_idle_but_ends_too() -> None:
    """The digest of a device without end."""
    decoders, began = Decoders(DecodeLimits(idle=0.5, wall=3.0)), time.monotonic()
    with pytest.raises(MediaError, match=HANGS):
        decoders.facts("digest", lambda: os.open("/dev/zero", os.O_RDONLY))
    assert time.monotonic() - began > 3.0
    decoders.close()


@pytest.fixture
def long(media: Path) -> str:
    """A minute, whose frames do not fit into a pipe."""
    return write_clip(media / "long.mp4", 600).name


@pytest.fixture
def stopped(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Reply]]:
    """Children of `SLOW` requests are stopped at their first frames, as one is whose disk hangs: no bytes, no time of
    the processor."""
    plain_ask, plain_message = Decoders.ask, Reply.message
    slow, found = list[Reply](), list[Reply]()

    def ask(self: Decoders, do: str, opened: int, **more: Any) -> Reply:
        reply = plain_ask(self, do, opened, **more)
        if do == "pieces" and more["frames"]["fps"] == SLOW:
            slow.append(reply)
        return reply

    def message(self: Reply) -> tuple[bytes, bytearray]:
        kind, body = plain_message(self)
        if self in slow and kind == b"P" and self not in found:
            os.kill(self._pid, signal.SIGSTOP)
            found.append(self)
        return kind, body

    monkeypatch.setattr(Decoders, "ask", ask)
    monkeypatch.setattr(Reply, "message", message)
    monkeypatch.setattr(model.recipe.eval, "tokens_per_piece", 64)
    yield found
    for reply in found:
        if Path(f"/proc/{reply._pid}").exists():
            os.kill(reply._pid, signal.SIGKILL)


def test_a_file_that_hangs_half_way_gives_its_place_to_the_next(
    model: LoadedModel, media: Path, long: str, tmp_path: Path, stopped: list[Reply]
) -> None:
    """One prompt is read at a time."""
    limits = DecodeLimits(idle=1.5)
    with serving(model, tmp_path, media_root=media, prompts=1, max_frames=200, decoding=limits) as served:
        found: list[tuple[int, str]] = []

        def ask() -> None:
            reply = served.ask(video_part(long, fps=SLOW), "What?")
            found.append((reply.status, reply.error))

        thread = threading.Thread(target=ask)
        thread.start()
        while not stopped:
            time.sleep(0.01)
        assert served.ask(video_part("clip.mp4"), "What?").status == 200
        thread.join(60)
        assert found == [(422, f"the video: {HANGS}")]
        assert (served.server.engine.held, served.server.engine.reading) == (0, 0)


def test_one_that_cannot_even_be_killed_is_left_behind(
    model: LoadedModel, media: Path, long: str, tmp_path: Path, stopped: list[Reply], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a process that waits for a disk of the network: its client goes, and the engine does not wait for it."""
    monkeypatch.setattr(Reply, "kill", lambda self: setattr(self, "_closed", True))
    with serving(model, tmp_path, media_root=media, prompts=1, max_frames=200) as served:
        engine = served.server.engine
        link = HTTPConnection("127.0.0.1", served.port)
        body = {"messages": [{"role": "user", "content": [video_part(long, fps=SLOW), "What?"]}]}
        link.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        while not stopped:
            time.sleep(0.01)
        link.close()
        began = time.monotonic()
        assert served.ask(video_part("clip.mp4"), "What?").status == 200
        assert time.monotonic() - began < DecodeLimits().idle, "it is not waited for until it counts as hanging"
        assert (engine.held, engine.reading, engine.counts.aborted) == (0, 0, 1)
        assert Path(f"/proc/{stopped[0]._pid}").exists()
