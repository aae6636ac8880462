"""The file of a `multipart/form-data` body, written where it belongs as it comes: never whole in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from timeviper.serving.problems import ApiError
from timeviper.serving.store import FileStore, Incoming, StoredFile

SILENCE = 60.0  # seconds without a byte after which an upload is given up
FIELD, HEADER = 1 << 16, 1 << 13  # bytes of another field's value, of a part's headers


class _Form:
    """Callbacks of the parser: the part named `file` goes to `incoming`, the others to `fields`."""

    def __init__(self, incoming: Incoming) -> None:
        self.incoming = incoming
        self.fields: dict[str, str] = {}
        self.name = self.type = ""
        self.whole = self.has_file = False
        self._header, self._value, self._size = b"", b"", 0
        self._headers: dict[bytes, bytes] = {}
        self._field, self._text, self._in_file = "", b"", False

    def callbacks(self) -> dict[str, Callable[..., None]]:
        names = (
            "part_begin",
            "part_data",
            "part_end",
            "header_field",
            "header_value",
            "header_end",
            "headers_finished",
        )
        return {f"on_{name}": getattr(self, name) for name in names} | {"on_end": self.end}

    def part_begin(self) -> None:
        self._headers, self._text, self._size = {}, b"", 0

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        self._grow(end - start)

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._grow(end - start)

    def _grow(self, more: int) -> None:
        self._size += more
        if self._size > HEADER:
            raise ApiError(400, "the form's headers are too long")

    def header_end(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._field = options.get(b"name", b"").decode("utf-8", "replace")
        self._in_file = self._field == "file"
        if self._in_file:
            if self.has_file:
                raise ApiError(400, "one file a request", "file")
            self.has_file = True
            self.name = options.get(b"filename", b"").decode("utf-8", "replace")
            self.type = self._headers.get(b"content-type", b"").decode("latin-1")

    def part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self.incoming.write(data[start:end])
        else:
            self._text += data[start:end]
            if len(self._text) > FIELD or len(self.fields) > 32:
                raise ApiError(400, f"the form's field {self._field[:40]!r} is too long", self._field[:40])

    def part_end(self) -> None:
        if not self._in_file:
            self.fields[self._field] = self._text.decode("utf-8", "replace")

    def end(self) -> None:
        self.whole = True


async def receive_file(request: Request, store: FileStore, most: int) -> tuple[StoredFile, dict[str, str]]:
    """The stored file and the other fields of a form. Nothing is kept of an upload that is cut off.

    Raises ApiError: 400 for what is no whole form with a file, 413 for a larger one than may come, 415, 507.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 0 < len(boundary) <= 200:
        raise ApiError(415, "send the file as multipart/form-data, in a field named file", "file")
    if int(_digits(request.headers.get("content-length"))) > most + (1 << 20):
        raise ApiError(413, f"a file may have {most:,} bytes at most")
    incoming = await run_in_threadpool(store.incoming, most)
    try:
        form = _Form(incoming)
        parser = MultipartParser(boundary, form.callbacks())  # pyright: ignore[reportArgumentType]
        chunks = request.stream()
        while True:
            try:
                chunk = await asyncio.wait_for(anext(chunks), SILENCE)
            except StopAsyncIteration:
                break
            await run_in_threadpool(parser.write, chunk)
        if not form.whole or not form.has_file:
            raise ApiError(400, "the form is cut off, or has no field named file", "file")
        if not incoming.size:
            raise ApiError(400, "the file is empty", "file")
        return await run_in_threadpool(incoming.keep, form.name, form.type), form.fields
    except FormParserError:
        raise ApiError(400, "the body is no multipart/form-data", "file") from None
    except (ClientDisconnect, TimeoutError):
        raise ApiError(400, "the upload was cut off", "file") from None
    finally:
        incoming.close()


def _digits(text: str | None) -> str:
    return text if text and text.isdigit() and len(text) < 20 else "0"
