"""`POST /v1/chat/completions`: from a body to an answer, whole or as it is written."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from timeviper.inference.question import TooLongError
from timeviper.inference.state_key import StateError
from timeviper.serving.asking import Prepared, Tenant
from timeviper.serving.decoders import MediaError
from timeviper.serving.fields import parse_json
from timeviper.serving.jobs import EndedError, Job, QueueFullError, TooLargeError
from timeviper.serving.problems import ApiError
from timeviper.serving.replies import Completion, comment, event
from timeviper.serving.request import ChatRequest, check_model
from timeviper.serving.server import Server
from timeviper.serving.streams import Events, EventStream, until_gone

log = logging.getLogger("timeviper")


async def complete(server: Server, request: Request, body: bytes, tenant: Tenant, began: float) -> Response:
    """The reply. Raises ApiError, and Gone."""
    with refusing():
        server.engine.check_room()

    def prepare() -> tuple[ChatRequest, Prepared]:
        usual = server.model.recipe.eval.max_new_tokens
        asked = ChatRequest.read(parse_json(body), server.settings, usual)
        check_model(asked.model, server.names)
        style = asked.style
        made = server.asker.prepare(
            asked.messages, asked.media, style.max_new_tokens, style.choices, asked.salt, tenant
        )
        return asked, made

    loop = asyncio.get_running_loop()
    asked, prepared = await until_gone(request, loop.run_in_executor(server.workers, prepare))
    events = Events()
    tokens = server.model.model.tokens_per_frame

    def on_start(start: Any) -> None:
        prepared.facts.note(start, tokens)

    job = Job(
        prepared.read,
        asked.style,
        prepared.num_bytes,
        on_text=lambda number, shown: events.put("text", number, shown),
        on_start=on_start,
        on_error=lambda error: events.put("error", error),
        ready=prepared.ready,
        priority=asked.priority,
    )
    with refusing():
        server.engine.submit(job)
    answer = Completion(asked, prepared.facts, server.names[0])
    writing = Writing(server, job, answer, events, prepared, began)
    if asked.stream:
        server.http.open_streams += 1
        return EventStream(writing.stream(), writing.close)
    try:
        await until_gone(request, writing.whole())
    finally:
        server.engine.abort(job)
    return JSONResponse(answer.as_dict())


@contextmanager
def refusing() -> Iterator[None]:
    """What the engine refuses, as a reply."""
    try:
        yield
    except QueueFullError as error:
        raise ApiError(429, f"{error}: try again later", retry_after=error.seconds) from None
    except TooLargeError as error:
        raise ApiError(413, str(error), "messages") from None


def problem_of(error: Exception) -> ApiError:
    """What a client is told of a failure."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, MediaError):
        return ApiError(422, f"the video: {error}", "messages")
    if isinstance(error, StateError):
        return ApiError(422, f"the video's state: {error.reason}", "messages")
    if isinstance(error, TooLongError):
        return ApiError(400, str(error), "messages")
    if isinstance(error, EndedError):
        return ApiError(503, str(error), retry_after=5)
    log.error("a request failed in the engine", exc_info=error)
    return ApiError(500, "the server failed at this request; its log says why")


class Writing:
    """An answer on its way from the engine to its client."""

    def __init__(
        self, server: Server, job: Job, answer: Completion, events: Events, prepared: Prepared, began: float
    ) -> None:
        self.server, self.job, self.answer, self.events = server, job, answer, events
        self.prepared, self.began = prepared, began

    def close(self) -> None:
        """The client has gone, or has all."""
        self.server.engine.abort(self.job)
        self.server.http.open_streams -= 1

    async def whole(self) -> None:
        while not self.answer.done:
            found = await self.events.get()
            assert found is not None
            if found[0] == "error":
                raise problem_of(found[1])
            self._note(*found[1:])

    async def stream(self) -> AsyncIterator[bytes]:
        yield self.answer.opening()
        while not self.answer.done:
            found = await self.events.get(self.server.settings.keep_alive)
            if found is None:
                yield comment(self._state())
            elif found[0] == "error":
                yield event(problem_of(found[1]).body())
                return
            else:
                self._note(*found[1:])
                if found[2].text or found[2].end:
                    yield self.answer.chunk(found[1], found[2])
        yield self.answer.closing()

    def _note(self, number: int, shown: Any) -> None:
        answer = self.answer
        if not answer.seconds_to_first:
            answer.seconds_to_first = time.monotonic() - self.began
            self.server.http.first(answer.seconds_to_first)
        answer.tokens = self.job.tokens
        answer.add(number, shown)

    def _state(self) -> str:
        done, total = self.prepared.progress
        if self.answer.seconds_to_first:
            return "writing"
        return f"prefill {100 * done // max(total, 1)}%" if done else "waiting"
