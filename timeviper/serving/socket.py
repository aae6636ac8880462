"""The socket that a server listens on."""

from __future__ import annotations

import socket

from timeviper.errors import ConfigError, Problem


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
