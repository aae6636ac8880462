"""The server's paths, in Starlette: what OpenAI's clients ask for, and one page for people."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.resources import files as resources
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from timeviper.serving.asking import Tenant
from timeviper.serving.chat import complete
from timeviper.serving.content import OpenFile
from timeviper.serving.decoders import MediaError
from timeviper.serving.fields import Fields, parse_json
from timeviper.serving.guard import Guard
from timeviper.serving.metrics import metrics_text
from timeviper.serving.problems import ApiError
from timeviper.serving.references import Medium, Parts, Stored, Wanted, wanted_of
from timeviper.serving.server import Server
from timeviper.serving.streams import Gone
from timeviper.serving.upload import receive_file
from timeviper.serving.watching import watch_video

log = logging.getLogger("timeviper")

SILENCE = 60.0  # seconds without a byte of a body after which it is given up
PAGE = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]


def make_app(server: Server) -> Starlette:
    """The application; its engine runs while its lifespan does."""
    doors = Doors(server)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        server.start()
        yield
        server.close()

    def route(path: str, handler: Handler, *methods: str) -> Route:
        return Route(path, doors.answering(handler), methods=list(methods) or ["GET"])

    routes = [
        route("/v1/chat/completions", doors.chat, "POST"),
        route("/v1/models", doors.models),
        route("/v1/models/{name:path}", doors.model),
        route("/v1/files", doors.upload, "POST"),
        route("/v1/files", doors.files),
        route("/v1/files/{id}", doors.file),
        route("/v1/files/{id}", doors.delete_file, "DELETE"),
        route("/v1/files/{id}/content", doors.content),
        route("/v1/videos", doors.watch, "POST"),
        route("/v1/videos", doors.videos),
        route("/v1/videos/{id}", doors.video),
        route("/v1/videos/{id}", doors.delete_video, "DELETE"),
        route("/v1/videos/{id}/content", doors.video_content),
        route("/health", doors.health),
        route("/metrics", doors.metrics),
        *(route(path, doors.page) for path in PAGE),
    ]
    handlers = {HTTPException: doors.not_found, Exception: doors.broken}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)  # pyright: ignore[reportArgumentType]
    app.add_middleware(Guard, settings=server.settings)
    return app


class Doors:
    """What answers each path."""

    def __init__(self, server: Server) -> None:
        self.server, self.settings = server, server.settings

    def answering(self, handler: Handler) -> Handler:
        """A handler whose errors are replies, and whose replies are counted."""

        async def answer(request: Request) -> Response:
            try:
                reply = await handler(request)
            except ApiError as error:
                reply = JSONResponse(error.body(), error.status, error.headers())
            except (Gone, ClientDisconnect):
                reply = Response(status_code=499)  # nobody reads it
            except Exception:
                log.exception("a request failed")
                error = ApiError(500, "the server failed at this request; its log says why")
                reply = JSONResponse(error.body(), 500)
            self.server.http.replies[reply.status_code] += 1
            return reply

        return answer

    async def not_found(self, request: Request, error: HTTPException) -> Response:
        message = f"there is no {request.method} on this path" if error.status_code == 405 else "there is no such path"
        self.server.http.replies[error.status_code] += 1
        return JSONResponse(ApiError(error.status_code, message).body(), error.status_code, error.headers)

    async def broken(self, request: Request, error: Exception) -> Response:
        return JSONResponse(ApiError(500, "the server failed at this request; its log says why").body(), 500)

    # ---- questions ------------------------------------------------------------------------------------------

    async def chat(self, request: Request) -> Response:
        began = time.monotonic()
        self.check_ready()
        body = await self.body(request)
        return await complete(self.server, request, body, self.tenant(request), began)

    async def watch(self, request: Request) -> Response:
        """A file, an upload of now, or a path below the media root is watched, once for all questions to come."""
        self.check_ready()
        tenant, stream, salt = self.tenant(request), False, ""
        if request.headers.get("content-type", "").startswith("multipart/"):
            file, fields = await receive_file(request, tenant.files, self.settings.max_upload)
            given = Fields({k: _number(v) for k, v in fields.items() if k not in ("purpose", "stream", "cache_salt")})
            medium = Medium(Stored(file.id), False, wanted_of(given, self.settings), "file")
            stream, salt = fields.get("stream") == "true", fields.get("cache_salt", "")[:256]
            given.end()
        else:
            found = Fields(await self.work(request, lambda body: parse_json(body)))
            stream, salt = found.flag("stream"), found.text("cache_salt", "", 256)
            medium = self.medium_of(found)
            found.end()
        return await watch_video(self.server, request, medium, salt, tenant, stream)

    def medium_of(self, found: Fields) -> Medium:
        """What a request wants watched: `file_id`, `path` or `url`."""
        keys = [key for key in ("file_id", "path", "url") if found.has(key)]
        if len(keys) != 1:
            raise ApiError(
                400, "give one of file_id (of /v1/files), path (below the server's media root) or url", "file_id"
            )
        parts = Parts(self.settings, Wanted(), Fields({}))
        parts.add({"type": "video_url", "video_url": {"url": found.text(keys[0], longest=4096)}}, keys[0])
        (medium,) = parts.done()
        assert isinstance(medium, Medium)
        return Medium(medium.place, False, wanted_of(found, self.settings), keys[0])

    # ---- what there is --------------------------------------------------------------------------------------

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self.model_card()]})

    async def model(self, request: Request) -> Response:
        if request.path_params["name"] not in self.server.names:
            raise ApiError(404, f"this server has {self.server.names[0]}", "model")
        return JSONResponse(self.model_card())

    def model_card(self) -> dict[str, Any]:
        recipe = self.server.model.recipe
        return {
            "id": self.server.names[0],
            "object": "model",
            "created": self.server.started,
            "owned_by": "timeviper",
            "max_model_len": recipe.model.decoder.max_tokens,
            "max_frames": self.settings.max_frames,
            "max_new_tokens": self.settings.max_new_tokens,
            "transv": {name: stage.keep for name, stage in recipe.model.transv.stages.items()},
        }

    async def health(self, request: Request) -> Response:
        self.check_ready()
        engine = self.server.engine
        return JSONResponse({"status": "ok", "rows": engine.rows, "waiting": engine.waiting})

    async def metrics(self, request: Request) -> Response:
        text = metrics_text(self.server.engine, self.server.states, self.server.http)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def page(self, request: Request) -> Response:
        name, kind = PAGE[request.url.path]
        return Response((resources("timeviper.serving") / "page" / name).read_bytes(), media_type=kind)

    # ---- files and videos -----------------------------------------------------------------------------------

    async def upload(self, request: Request) -> Response:
        tenant = self.tenant(request)
        file, _ = await receive_file(request, tenant.files, self.settings.max_upload)
        return JSONResponse(file.as_dict())

    async def files(self, request: Request) -> Response:
        found = await self.run(lambda: [file.as_dict() for file in self.tenant(request).files])
        return JSONResponse({"object": "list", "data": found, "has_more": False})

    async def file(self, request: Request) -> Response:
        return JSONResponse(self.tenant(request).files.get(request.path_params["id"]).as_dict())

    async def delete_file(self, request: Request) -> Response:
        id = request.path_params["id"]
        await self.run(lambda: self.tenant(request).files.delete(id))
        return JSONResponse({"id": id, "object": "file", "deleted": True})

    async def content(self, request: Request) -> Response:
        tenant, id = self.tenant(request), request.path_params["id"]
        return OpenFile(tenant.files.open(id), tenant.files.get(id).name)

    async def videos(self, request: Request) -> Response:
        found = await self.run(lambda: [video.as_dict() for video in self.tenant(request).videos])
        return JSONResponse({"object": "list", "data": found, "has_more": False})

    async def video(self, request: Request) -> Response:
        return JSONResponse(self.tenant(request).videos.get(request.path_params["id"]).as_dict())

    async def video_content(self, request: Request) -> Response:
        """The bytes that a video was watched from; 404 where they are others now."""
        tenant = self.tenant(request)
        video = tenant.videos.get(request.path_params["id"])
        medium = video.medium()
        try:
            found = await self.run(lambda: self.server.asker.media.bytes_of(medium, tenant.files))
        except MediaError as error:
            raise ApiError(422, str(error), "id") from None
        if found.content != video.content:
            raise ApiError(404, "the file of this video is another one now: watch it again", "id")
        name = tenant.files.get(medium.place.id).name if isinstance(medium.place, Stored) else video.source
        return OpenFile(found.opener(), name)

    async def delete_video(self, request: Request) -> Response:
        id = request.path_params["id"]
        await self.run(lambda: self.tenant(request).videos.delete(id))
        self.server.states.drop(id)
        return JSONResponse({"id": id, "object": "video", "deleted": True})

    # ---- what they share ------------------------------------------------------------------------------------

    def check_ready(self) -> None:
        if not self.server.engine.alive:
            raise ApiError(503, "the model is not ready", retry_after=5)

    def tenant(self, request: Request) -> Tenant:
        return self.server.tenant(request.scope["state"]["tenant"])

    async def run(self, work: Callable[[], T]) -> T:
        """In a thread, for what waits for a disk."""
        return await asyncio.get_running_loop().run_in_executor(self.server.workers, work)

    async def work(self, request: Request, parse: Callable[[bytes], T]) -> T:
        body = await self.body(request)
        return await self.run(lambda: parse(body))

    async def body(self, request: Request) -> bytes:
        """A JSON body. 413 for a longer one than may come, before it is read whole; 415 for another kind."""
        most = self.settings.max_body
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "send JSON, with the header Content-Type: application/json")
        length = request.headers.get("content-length", "0")
        if not length.isdigit() or len(length) > 18 or int(length) > most:
            raise ApiError(413, f"a body may have {most:,} bytes at most: upload large files with POST /v1/files")
        found = bytearray()
        chunks = request.stream()
        while True:
            try:
                found += await asyncio.wait_for(anext(chunks), SILENCE)
            except StopAsyncIteration:
                return bytes(found)
            except TimeoutError:
                raise ApiError(400, "the body was cut off") from None
            if len(found) > most:
                raise ApiError(413, f"a body may have {most:,} bytes at most: upload large files with POST /v1/files")


def _number(text: str) -> object:
    """A form's field, which is text, as JSON would have it."""
    try:
        return float(text)
    except ValueError:
        return text
