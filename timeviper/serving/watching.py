"""`POST /v1/videos`: a video is read once, its state kept in memory and on disk."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from timeviper.inference.video_state import VideoState
from timeviper.serving.asking import Tenant, Watch, video_of
from timeviper.serving.chat import problem_of, refusing
from timeviper.serving.jobs import Job
from timeviper.serving.problems import ApiError
from timeviper.serving.references import Medium, OnDisk, Stored
from timeviper.serving.replies import DONE, comment, event
from timeviper.serving.server import Server
from timeviper.serving.streams import Events, EventStream, until_gone
from timeviper.serving.videos import Video


async def watch_video(
    server: Server, request: Request, medium: Medium, salt: str, tenant: Tenant, stream: bool
) -> Response:
    """The reply. Raises ApiError, and Gone."""
    if not isinstance(medium.place, Stored | OnDisk):
        raise ApiError(
            400, "a video to be watched is a file of /v1/files or below the server's media root", medium.where
        )
    with refusing():
        server.engine.check_room()
    loop = asyncio.get_running_loop()
    prepare = loop.run_in_executor(server.workers, lambda: server.asker.watch(medium, salt, tenant))
    watch = await until_gone(request, prepare)
    events = Events()
    job = Job(
        watch.read,
        None,
        watch.num_bytes,
        on_start=lambda state: events.put("state", state),
        on_error=lambda error: events.put("error", error),
        ready=watch.ready,
    )
    with refusing():
        server.engine.submit(job)

    async def result() -> Video:
        found = await events.get()
        assert found is not None
        if found[0] == "error":
            raise problem_of(found[1])
        return await loop.run_in_executor(server.workers, lambda: _saved(watch, found[1], medium, tenant))

    if not stream:
        try:
            return JSONResponse((await until_gone(request, result())).as_dict())
        finally:
            server.engine.abort(job)

    async def parts() -> AsyncIterator[bytes]:
        task = asyncio.ensure_future(result())
        told = -1
        while not (await asyncio.wait((task,), timeout=min(server.settings.keep_alive, 0.25)))[0]:
            done, total = watch.progress
            yield (
                event({"object": "video.progress", "done": done, "total": total})
                if done != told
                else comment("reading")
            )
            told = done
        try:
            yield event(task.result().as_dict()) + DONE
        except ApiError as error:
            yield event(error.body())

    return EventStream(parts(), lambda: server.engine.abort(job))


def _saved(watch: Watch, state: VideoState, medium: Medium, tenant: Tenant) -> Video:
    """On disk, if that takes it; the state in memory answers meanwhile."""
    try:
        return tenant.videos.get(watch.id)
    except ApiError:
        video = video_of(watch, state, medium, int(time.time()))
        return video if tenant.videos.save(video, state) else replace(video, saved=False)
