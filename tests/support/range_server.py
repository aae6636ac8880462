"""A web server that knows ranges, counts what it sends, and can be as unreliable as real ones."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class RangeServer(ThreadingHTTPServer):
    """Serves a folder at `url`. Its settings may be changed between two requests."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.ranges = True
        self.fail_every = 0
        """One request in so many gets a 503, is cut in the middle of its body, or has its connection closed."""
        self.status = 0
        """What every request is answered with."""
        self.query = ""
        """What every address must have behind its "?", letter by letter; else 403."""
        self.sends_on = ""
        """The query of the address that a request without one is sent on to, at another name of this machine."""
        self.headers: dict[str, str] = {}
        """What every answer says beside its length; "Content-Range" in place of the right one."""
        self.back_at = 0.0
        """Until when (`time.monotonic`) it is away."""
        self.gone: Path | None = None
        """While there is such a file, it is away."""
        self.fail_next = 0
        """So many requests fail."""
        self.busy = False
        """Whether requests that fail are answered with 503 alone."""
        self.broken = ""
        """A path that is answered with 500."""
        self.delay = 0.0
        """Seconds before each answer."""
        self.sent: dict[str, int] = {}
        """Bytes of bodies, by path."""
        self.requests: list[tuple[str, str]] = []
        """Path and range of each request."""
        self.failures = 0
        self.lock = threading.Lock()

    def away_for(self, seconds: float) -> None:
        """From now on it refuses to answer: with 503, a closed connection, half a body in turns."""
        self.back_at = time.monotonic() + seconds

    def tar_bytes(self) -> int:
        return sum(size for path, size in self.sent.items() if path.endswith(".tar"))

    def forget(self) -> None:
        self.sent, self.requests, self.failures = {}, [], 0

    def handle_error(self, request, client_address) -> None:
        """A client that went away is not worth a line."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RangeServer

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range", "")
        with server.lock:
            server.requests.append((self.path, wanted))
            gone = server.gone is not None and server.gone.exists()
            fails = gone or time.monotonic() < server.back_at or server.fail_next > 0
            server.fail_next -= server.fail_next > 0
            fails = fails or (server.fail_every and len(server.requests) % server.fail_every == 0)
            server.failures += bool(fails)
            kind = (0 if server.busy else server.failures % 3) if fails else None
        time.sleep(server.delay)
        name, _, query = self.path.partition("?")
        path = server.folder / name.lstrip("/")
        if server.sends_on and not query:
            place = f"http://localhost:{server.server_address[1]}{name}?{server.sends_on}"
            self.answer(302, b"", {"Location": place})
            return
        if query != server.query:
            self.answer(403, b"")
            return
        if server.status or kind == 0:
            self.answer(server.status or 503, b"")
            return
        if name == server.broken:
            self.answer(500, b"")
            return
        if kind == 1:
            self.close_connection = True
            return
        if not path.is_file():
            self.answer(404, b"")
            return
        size, status, headers = path.stat().st_size, 200, {}
        start, stop = 0, size
        if server.ranges and (match := re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)):
            start, stop = int(match[1]), min(int(match[2]) + 1, size)
            if start >= size:
                self.answer(416, b"")
                return
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
            status = 206
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(stop - start)
        self.answer(status, data, headers, cut=kind == 2)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in ((headers or {}) | self.server.headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        part = body[: len(body) // 2] if cut else body
        with self.server.lock:  # before the client has it: a test may look at once
            self.server.sent[self.path] = self.server.sent.get(self.path, 0) + len(part)
        self.wfile.write(part)
        self.close_connection = cut

    def log_message(self, format, *args) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[RangeServer]:
    server = RangeServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
