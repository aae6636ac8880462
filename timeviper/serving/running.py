"""The socket that a server listens on, and the loop that answers there."""

from __future__ import annotations

import asyncio
import socket

import uvicorn

from timeviper.errors import ConfigError, Problem
from timeviper.serving.app import make_app
from timeviper.serving.server import Server


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0: any that is free. ConfigError where that cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    link = socket.socket(family, socket.SOCK_STREAM)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        link.bind((host, port))
        link.listen(2048)
    except OSError as error:
        link.close()
        what = f"cannot be listened on ({error.strerror or error}): name another with --port, or 0 for any that is free"
        raise ConfigError("serve", [Problem("--port", f"{host}:{port}", f"{what}.")]) from error
    return link


class Running(uvicorn.Server):
    """Answers until it is stopped; then whoever waits for an answer is told so at once."""

    def __init__(self, server: Server) -> None:
        options = dict(log_level="warning", access_log=False, server_header=False, proxy_headers=False, ws="none")
        super().__init__(
            uvicorn.Config(make_app(server), timeout_keep_alive=30, timeout_graceful_shutdown=5, **options)  # pyright: ignore[reportArgumentType]
        )
        self.model_server = server

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await asyncio.to_thread(self.model_server.engine.stop)
        await super().shutdown(sockets)
