"""Another server, of media and of redirects to anywhere."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar


class Elsewhere(BaseHTTPRequestHandler):
    """A server of media, and of redirects to anywhere."""

    seen: ClassVar[list[str]] = []
    target: ClassVar[str] = ""

    def do_GET(self) -> None:
        self.seen.append(self.path)
        if self.path.startswith("/to"):
            self.send_response(302)
            self.send_header("Location", self.target)
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"x" * 1000)

    def log_message(self, *_: Any) -> None:
        pass
