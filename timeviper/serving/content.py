"""The bytes of a medium for a player, in ranges."""

from __future__ import annotations

import mimetypes
import os

from starlette.responses import FileResponse
from starlette.types import Receive, Scope, Send

# What a browser may take a file for; anything else is bytes.
PLAYED = ("video/mp4", "video/webm", "video/quicktime", "video/x-matroska", "video/ogg", "image/png", "image/jpeg",
          "image/gif", "image/webp")  # fmt: skip


class OpenFile(FileResponse):
    """An open file, closed when it has been sent: nothing that a browser would run."""

    def __init__(self, opened: int, name: str) -> None:
        """name: says what it is."""
        kind = mimetypes.guess_type(name)[0]
        kind = kind if kind in PLAYED else "application/octet-stream"
        headers = {"Content-Security-Policy": "sandbox; default-src 'none'", "Cache-Control": "private"}
        super().__init__(f"/dev/fd/{opened}", media_type=kind, headers=headers)
        self._opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            os.close(self._opened)
