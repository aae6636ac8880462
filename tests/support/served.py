"""A server over loopback in this process, and what talks to it."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from openai import OpenAI

from timeviper.inference.ask import LoadedModel
from timeviper.serving.remote import Fetcher
from timeviper.serving.running import Running, listen
from timeviper.serving.server import Server
from timeviper.serving.settings import ServeSettings


class Reply:
    """A whole reply."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return self.json["error"]["message"]


class Served:
    """A running server."""

    def __init__(self, server: Server, port: int) -> None:
        self.server, self.port, self.url = server, port, f"http://127.0.0.1:{port}"

    def client(self, key: str = "none", **options: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=120, **options)

    def call(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, raw: bytes | None = None
    ) -> Reply:
        link = HTTPConnection("127.0.0.1", self.port, timeout=120)
        found = dict(headers or {})
        if body is not None:
            raw = json.dumps(body).encode()
            found.setdefault("Content-Type", "application/json")
        link.request(method, path, raw, found)
        reply = link.getresponse()
        whole = Reply(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read())
        link.close()
        return whole

    def upload(self, data: bytes, name: str = "clip.mp4", path: str = "/v1/files", **fields: str) -> Reply:
        kind, body = form(data, name, **fields)
        return self.call("POST", path, headers={"Content-Type": kind}, raw=body)

    def ask(self, *parts: Any, **more: Any) -> Reply:
        body = {"model": "timeviper", "messages": [{"role": "user", "content": list(parts)}], **more}
        return self.call("POST", "/v1/chat/completions", body)


def form(data: bytes, name: str, **fields: str) -> tuple[str, bytes]:
    """Content type and body of a form with a file."""
    mark = "----boundary7MA4YWxk"
    parts = [f'--{mark}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()]
    head = (
        f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\nContent-Type: video/mp4\r\n\r\n'
    )
    body = "".join(parts).encode() + head.encode() + data + f"\r\n--{mark}--\r\n".encode()
    return f"multipart/form-data; boundary={mark}", body


@contextmanager
def serving(model: LoadedModel, store: Path, fetcher: Fetcher | None = None, **settings: Any) -> Iterator[Served]:
    """While the block runs."""
    made = ServeSettings(store=store, port=0, **settings)
    server = Server(model, made, fetcher)
    link = listen(made.host, made.port)
    running = Running(server)
    thread = threading.Thread(target=lambda: running.run(sockets=[link]), daemon=True)
    thread.start()
    while not running.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield Served(server, link.getsockname()[1])
    finally:
        running.should_exit = True
        thread.join(30)
        link.close()
        assert not thread.is_alive()


def video_part(url: str, **more: Any) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url}, **more}


def data_url(data: bytes, kind: str = "video/mp4") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
