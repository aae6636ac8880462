"""What passes between the engine's thread and a client's connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")


class Gone(Exception):
    """The client has closed its connection."""


async def gone(receive: Receive) -> None:
    """Returns when the client has gone; the body must have been read."""
    while True:
        if (await receive())["type"] == "http.disconnect":
            return


async def until_gone(request: Request, work: Awaitable[T]) -> T:
    """What `work` gives, unless the client goes before: Gone."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(gone(request.receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        for one in (task, watcher):
            one.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await one


class Events:
    """What the engine says, from its thread into the loop's."""

    def __init__(self) -> None:
        self._loop, self._queue = asyncio.get_running_loop(), asyncio.Queue[tuple[Any, ...]]()

    def put(self, *event: Any) -> None:
        """From any thread; quietly nothing once the loop has ended."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    async def get(self, seconds: float | None = None) -> tuple[Any, ...] | None:
        """The next; None after so many seconds without one."""
        try:
            return await asyncio.wait_for(self._queue.get(), seconds)
        except TimeoutError:
            return None


class EventStream(Response):
    """A stream of server-sent events. When the client goes, or when it ends, `close` is called."""

    media_type = "text/event-stream"

    def __init__(self, parts: AsyncIterator[bytes], close: Callable[[], None]) -> None:
        super().__init__(None, 200, {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._parts, self._close = parts, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watcher = asyncio.ensure_future(gone(receive))
        sender = asyncio.ensure_future(self._send(send))
        try:
            await asyncio.wait((watcher, sender), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._close()
            for one in (watcher, sender):
                one.cancel()
                with suppress(asyncio.CancelledError, OSError):
                    await one

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for part in self._parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
