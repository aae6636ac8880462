"""A camera's address: an RTSP server that plays an MPEG-TS file over the connection it is asked on."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer

SDP = "\r\n".join(
    ("v=0", "o=- 0 0 IN IP4 127.0.0.1", "s=camera", "t=0 0", "m=video 0 RTP/AVP 33", "a=control:track1", "")
)
PACKET = 7 * 188  # bytes of MPEG-TS in one of RTP


class _Camera(StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        while line := self.rfile.readline():
            method, heads = line.split()[0].decode(), {}
            while head := self.rfile.readline().strip():
                name, _, value = head.decode().partition(":")
                heads[name.lower()] = value.strip()
            self.server.asked.append(method)
            self._answer(method, heads)
            if method in ("PLAY", "TEARDOWN"):
                break
        if method == "PLAY":
            self._play()

    def _answer(self, method: str, heads: dict[str, str]) -> None:
        body = SDP if method == "DESCRIBE" else ""
        more = {"Public": "DESCRIBE, SETUP, PLAY, TEARDOWN", "Session": "1"}
        if method == "SETUP":
            more["Transport"] = heads["transport"].partition(";mode")[0]
        if body:
            more |= {"Content-Type": "application/sdp", "Content-Length": str(len(body))}
        lines = [f"{name}: {value}" for name, value in {"CSeq": heads["cseq"], **more}.items()]
        self.wfile.write("\r\n".join(["RTSP/1.0 200 OK", *lines, "", body]).encode())

    def _play(self) -> None:
        data = self.server.data
        for number, start in enumerate(range(0, len(data), PACKET)):
            body = data[start : start + PACKET]
            head = struct.pack(">BBHII", 0x80, 33, number & 0xFFFF, 3000 * number & 0xFFFFFFFF, 1)
            self.wfile.write(struct.pack(">cBH", b"$", 0, len(head) + len(body)) + head + body)
        while not self.server.left.wait(0.05) and self.server.silent:
            time.sleep(0.05)


class _Server(ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, data: bytes, silent: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Camera)
        self.data, self.silent, self.asked = data, silent, list[str]()
        self.left = threading.Event()


@contextmanager
def camera(clip: Path, silent: bool = False) -> Iterator[tuple[str, list[str]]]:
    """Its address, and what it was asked; silent: at the end of the clip it says nothing more, and does not hang up."""
    server = _Server(clip.read_bytes(), silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"rtsp://127.0.0.1:{server.server_address[1]}/live", server.asked
    finally:
        server.left.set()
        server.shutdown()
        server.server_close()
