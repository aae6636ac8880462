"""Two thousand requests that nobody means: each gets a reply that says what was wrong, and none breaks the server."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

from asgi import as_json, request
from export_helpers import random_run
from served import data_url, form

from timeviper.inference.ask import load
from timeviper.serving.app import make_app
from timeviper.serving.server import Server
from timeviper.serving.settings import ServeSettings

COUNT = 2000
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 1.5, 1e308, -(10**30), 10**400, "", "x", "\0", "\ud800", "é" * 5000, "NaN", "../../x",
    "file-" + "0" * 32, "video-" + "f" * 32, "data:,", "data:video/mp4;base64,", "data:video/mp4;base64,AAAA",
    "data:video/jpeg;base64,A,B", "http://127.0.0.1/", "file:///etc/passwd", "<1.5 seconds>", "<video>", [], [[]],
    [None], {}, {"type": None}, {"type": "text"}, {"type": "video_url"}, {"url": {}}, {"": ""}, {"fps": "fast"},
    [1] * 3000, {"type": "image_url", "image_url": "data:image/png;base64,AAAA"}, {"role": "user", "content": "x"},
    [{"role": "tool", "content": "x"}],
]  # fmt: skip


def sound() -> dict[str, Any]:
    """A request with every field that there is."""
    part = {"type": "video_url", "video_url": {"url": data_url(b"x" * 50), "fps": 1}, "max_frames": 3, "uuid": None}
    return {
        "model": "timeviper",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [part, {"type": "text", "text": "What?"}], "name": "me"},
            {"role": "assistant", "content": "This."},
            {"role": "user", "content": "And?"},
        ],
        "max_tokens": 2, "max_completion_tokens": 2, "temperature": 0.5, "top_p": 0.9, "seed": 1, "stop": ["x"], "n": 1,
        "stream": False, "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 2, "priority": 0,
        "cache_salt": "s", "mm_processor_kwargs": {"fps": 1}, "media_io_kwargs": {"video": {"num_frames": 2}},
        "frequency_penalty": 0, "user": "me", "tools": None, "response_format": None,
    }  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """Where anything stands in nested values."""
    inner = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [(value, key) for key, _ in inner] + [place for _, part in inner for place in places(part)]


def mutated(rng: random.Random) -> Any:
    body = sound()
    for _ in range(rng.choice((1, 1, 2, 4))):
        found = places(body)
        if not found:
            break
        inside, key = rng.choice(found)
        what = rng.random()
        if what < 0.65:
            inside[key] = deepcopy(rng.choice(ODD))
        elif what < 0.8:
            del inside[key]
        elif isinstance(inside, dict):
            inside[rng.choice(("fps", "nframes", "x", "type", "url", "duration"))] = deepcopy(rng.choice(ODD))
        else:
            inside.append(deepcopy(rng.choice(ODD)))
    return body


def one(rng: random.Random) -> dict[str, Any]:
    """A request as `asgi.request` takes it."""
    what = rng.random()
    if what < 0.7:
        headers, body = as_json(mutated(rng))
        return {"method": "POST", "path": "/v1/chat/completions", "headers": headers, "body": body}
    if what < 0.8:
        headers, body = as_json(sound() | {"messages": [{"role": "user", "content": "Hi"}]})
        cut = bytearray(body)
        for _ in range(rng.randint(1, 6)):
            cut[rng.randrange(len(cut))] = rng.randrange(256)
        return {"method": "POST", "path": "/v1/chat/completions", "headers": headers, "body": bytes(cut)}
    if what < 0.88:
        kind, body = form(rng.randbytes(rng.randint(0, 300)), rng.choice(("a.mp4", "../../x", "\r\n", "é" * 300)))
        cut = bytearray(body)
        for _ in range(rng.randint(0, 4)):
            cut[rng.randrange(len(cut))] = rng.randrange(256)
        headers = [(b"content-type", kind.encode())]
        return {
            "method": "POST",
            "path": rng.choice(("/v1/files", "/v1/videos")),
            "headers": headers,
            "body": bytes(cut),
        }
    if what < 0.94:
        value = {rng.choice(("file_id", "path", "url", "fps", "x", "stream")): rng.choice(ODD) for _ in range(2)}
        headers, body = as_json(value)
        return {"method": "POST", "path": "/v1/videos", "headers": headers, "body": body}
    names = (
        "chat/completions",
        "models",
        "models/x",
        "files",
        "files/..",
        "files/%00",
        "videos/video-1",
        "x" * 3000,
        "",
    )
    path = "/v1/" + rng.choice(names) + rng.choice(("", "/", "/content", "/\ud7ff"))
    headers = [(rng.choice((b"range", b"host", b"origin", b"content-length")), rng.randbytes(6))]
    return {"method": rng.choice(("GET", "DELETE", "PUT", "POST", "OPTIONS", "HEAD")), "path": path, "headers": headers}


def test_two_thousand_malformed_requests(tmp_path: Path) -> None:
    model = load(random_run(tmp_path / "run"), device="cpu", overrides=["eval.max_new_tokens=2"])
    server = Server(model, ServeSettings(store=tmp_path / "store", max_body=1 << 20))
    app, rng, found = make_app(server), random.Random(0), Counter[int]()

    async def ask(made: dict[str, Any]) -> None:
        status, headers, body = await request(app, **made)
        found[status] += 1
        assert status < 500, (status, made, body[:300])
        if status >= 400 and made["method"] != "HEAD":
            error = json.loads(body)["error"]
            assert set(error) == {"message", "type", "param", "code"}, made
            assert 5 < len(error["message"]) < 600, error
            assert str(tmp_path) not in error["message"]
        assert headers["x-content-type-options"] == "nosniff"

    async def all_of_them() -> None:
        server.start()
        for _ in range(COUNT // 20):
            await asyncio.gather(*(asyncio.wait_for(ask(one(rng)), 60) for _ in range(20)))
        status, _, body = await request(app, "GET", "/health")
        assert (status, json.loads(body)["rows"]) == (200, 0)

    try:
        asyncio.run(all_of_them())
    finally:
        server.close()
    assert sum(found.values()) == COUNT
    assert found[400] > COUNT / 3
    assert found[200] > 20, "some of it is sound, and is answered"
    assert server.engine.held == 0
