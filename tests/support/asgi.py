"""Requests to an application without a network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any


async def request(
    app: Any, method: str, path: str, headers: Sequence[tuple[bytes, bytes]] = (), body: bytes = b"", query: bytes = b""
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the reply."""
    if not any(name.lower() == b"host" for name, _ in headers):
        headers = [*headers, (b"host", b"127.0.0.1:8000")]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
        "raw_path": path.encode("utf-8", "replace"), "query_string": query, "headers": list(headers), "scheme": "http",
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000), "root_path": "",
    }  # fmt: skip
    sent: list[dict[str, Any]] = []
    first = [True]

    async def receive() -> dict[str, Any]:
        if first[0]:
            first[0] = False
            return {"type": "http.request", "body": body, "more_body": False}
        await asyncio.sleep(3600)
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    start = next(m for m in sent if m["type"] == "http.response.start")
    found = b"".join(m.get("body", b"") for m in sent if m["type"] == "http.response.body")
    return start["status"], {k.decode().lower(): v.decode() for k, v in start["headers"]}, found


def as_json(body: Any) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and bytes of a JSON body."""
    return [(b"content-type", b"application/json")], json.dumps(body).encode()
