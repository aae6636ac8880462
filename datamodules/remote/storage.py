"""Files behind a URL: whole or a range of bytes, through fsspec, with time-outs and one message a failure.

Any store that fsspec knows will do (https, s3, gs, abfs, ...); it takes keys, endpoints and proxies from the usual
environment variables and files of each store. http(s) is asked here and not by fsspec, which would take the whole file
from a server that ignores ranges. Requests run in fsspec's own thread, as many at a time as are begun; what fails is
repeated there (`patience.py`).
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Timer
from typing import Any, TypeVar

import fsspec
from fsspec.asyn import AsyncFileSystem, get_loop

from timeviper.datamodules.remote.patience import (
    PATIENCE,
    BusyError,
    Refused,
    StorageError,
    StoreUnusable,
    patiently,
)
from timeviper.datamodules.shards.address import is_http, near, shown, split_query

__all__ = [
    "StorageError",
    "StoreUnusable",
    "begin_range",
    "hindrance",
    "is_remote",
    "list_tars",
    "notice",
    "read_file",
    "read_range",
]

T = TypeVar("T")

CONNECT_TIMEOUT = 10.0  # s
READ_TIMEOUT = 30.0  # s without a byte
TOTAL_TIMEOUT = 300.0  # s an attempt: a server that trickles is no server
NOTICE = 3.0  # s of silence at the start of a run before a line says what it waits for
PROBE = "index.json"  # a file that is asked for to learn whether a store answers at all; it need not be there
CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


def is_remote(where: object) -> bool:
    """Whether this names a place behind a URL and not on a disk."""
    return "://" in str(where)


def hindrance(url: str) -> str:
    """Why no file of this kind of URL can be read, whatever the network says; empty if it can."""
    scheme = url.partition("://")[0]
    try:
        fsspec.get_filesystem_class("http" if is_http(url) else scheme)
    except ValueError:
        return f"{scheme}:// is no store that fsspec knows; use https://, s3://, gs:// or the like"
    except ImportError as error:
        extra = "pip install 'timeviper[s3]'" if scheme in ("s3", "s3a") else f"fsspec: {error}"
        return f"the package for {scheme}:// is not installed ({extra})"
    return ""


def read_file(url: str, patience: float = PATIENCE) -> bytes:
    """The whole file. Raises FileNotFoundError if there is none, else as `read_range`."""
    return _result(_begin(_read(url, None, patience)))


def read_range(url: str, start: int, stop: int, patience: float = PATIENCE) -> bytes:
    """Bytes `[start, stop)` of the file.

    Raises StorageError when it cannot be read, at once or after `patience` seconds: StoreUnusable where that is the
    store's fault and not the file's.
    """
    return _result(begin_range(url, start, stop, patience))


def begin_range(url: str, start: int, stop: int, patience: float = PATIENCE) -> Future[bytes]:
    """`read_range`, whose answer is waited for later; cancelling it ends the request."""
    return _begin(_read(url, (start, stop), patience))


def list_tars(pattern: str, patience: float = PATIENCE) -> dict[str, int] | None:
    """URL and size of every tar that a glob matches, sorted; None where the store cannot or may not be listed."""
    if is_http(pattern):
        return None
    fs, scheme = _filesystem(pattern), pattern.partition("://")[0]

    def request() -> dict[str, int]:
        fs.invalidate_cache()
        found = fs.glob(fs._strip_protocol(pattern), detail=True)
        return {
            f"{scheme}://{path}": info["size"]
            for path, info in sorted(found.items())
            if path.endswith(".tar") and "/._" not in path
        }

    async def ask() -> dict[str, int]:
        return await asyncio.to_thread(request)

    try:
        return _result(_begin(patiently(pattern, "list", ask, lambda: _is_up(pattern), patience)))
    except (StorageError, FileNotFoundError) as error:
        if isinstance(error.__cause__, PermissionError):
            return None
        raise


@contextmanager
def notice(text: str) -> Iterator[None]:
    """Say on one line what is being waited for, if it takes longer than a few seconds."""
    timer = Timer(NOTICE, print, [f"{text} ..."], {"file": sys.stderr, "flush": True})
    timer.daemon = True
    if os.environ.get("RANK", "0") == "0":
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _begin(request: Coroutine[Any, Any, T]) -> Future[T]:
    return asyncio.run_coroutine_threadsafe(request, get_loop())


def _result(answer: Future[T]) -> T:
    try:
        return answer.result()
    finally:
        answer.cancel()  # nobody waits any more, for instance after Ctrl-C


async def _read(url: str, span: tuple[int, int] | None, patience: float) -> bytes:
    what = f"{span[0]}-{span[1]}" if span else "whole"
    try:
        return await patiently(url, what, lambda: _request(url, span), lambda: _is_up(url), patience)
    except FileNotFoundError as error:
        if span is None:
            raise
        raise StorageError(str(error)) from error


async def _is_up(url: str) -> bool:
    """Whether the store gives any answer to a request for another file, if only that there is none."""
    try:
        await _request(near(url, PROBE), (0, 1))
    except (FileNotFoundError, PermissionError, Refused):
        return True
    except Exception:
        return False
    return True


def _filesystem(url: str) -> Any:
    """fsspec's object for a URL; one for each store and process."""
    if problem := hindrance(url):
        raise StorageError(f"{shown(url)} cannot be read: {problem}")
    scheme = url.partition("://")[0]
    if is_http(url):
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=TOTAL_TIMEOUT, sock_connect=CONNECT_TIMEOUT, sock_read=READ_TIMEOUT)
        # An address that a server sends on to is followed as it is written: a signature may be of its very letters.
        options = {"timeout": timeout, "trust_env": True, "requote_redirect_url": False}
        return fsspec.filesystem("http", client_kwargs=options)
    if scheme not in ("s3", "s3a"):
        return fsspec.filesystem(scheme)
    limits = {"connect_timeout": CONNECT_TIMEOUT, "read_timeout": READ_TIMEOUT, "retries": {"total_max_attempts": 1}}
    fs = fsspec.filesystem(scheme, config_kwargs=limits)
    fs.retries = 1  # those of `patience.py` are enough
    return fs


async def _request(url: str, span: tuple[int, int] | None) -> bytes:
    """One attempt."""
    fs = _filesystem(url)
    if is_http(url):
        return await _http_get(fs, url, span)
    place, (start, stop) = fs._strip_protocol(url), span or (None, None)
    if isinstance(fs, AsyncFileSystem):
        data = await asyncio.wait_for(fs._cat_file(place, start=start, end=stop), TOTAL_TIMEOUT)
    else:
        data = await asyncio.to_thread(fs.cat_file, place, start=start, end=stop)
    if span and len(data) != span[1] - span[0]:
        there = await fs._size(place) if isinstance(fs, AsyncFileSystem) else await asyncio.to_thread(fs.size, place)
        if there is not None and there < span[1]:
            raise Refused(f"it ends after {there} bytes, before byte {span[1]}; its index is of another file")
        raise OSError(f"{len(data)} bytes came of the {span[1] - span[0]} from {span[0]} on")
    return data


async def _http_get(fs: Any, url: str, span: tuple[int, int] | None) -> bytes:
    """The body of an answer, once its head says that it is what was asked for."""
    from yarl import URL

    session = await fs.set_session()
    headers = {"Accept-Encoding": "identity"}
    if span:
        headers["Range"] = f"bytes={span[0]}-{span[1] - 1}"
    try:
        path, query = split_query(url)
        async with session.get(URL(f"{URL(path)}{query}", encoded=True), headers=headers) as answer:
            said = f"{answer.status} {answer.reason}"
            if answer.status in (404, 410):
                raise FileNotFoundError(said)
            if answer.status in (401, 403):
                raise PermissionError(said)
            if answer.status == 416:
                raise Refused(f"it ends before byte {span[0] if span else 0}; its index is of another file")
            if answer.status in (429, 503):
                raise BusyError(said, answer.headers.get("Retry-After"))
            if answer.status in (408, 425) or answer.status >= 500:
                raise OSError(said)
            if answer.status >= 400:
                raise Refused(f"the server says {said}")
            if span and (problem := _other_range(answer.status, answer.headers.get("Content-Range", ""), *span)):
                answer.close()  # not the gigabytes that would follow
                raise problem
            data = await answer.read()
    except TimeoutError as error:
        raise OSError(f"time-out: {error or 'no answer'}") from error
    if span and len(data) != span[1] - span[0]:
        raise OSError(f"{len(data)} bytes came of the {span[1] - span[0]} from {span[0]} on")
    return data


def _other_range(status: int, said: str, start: int, stop: int) -> Exception | None:
    """What is wrong with an answer whose head speaks of other bytes than `[start, stop)`; None if nothing is."""
    if status != 206:
        return Refused("the server sends whole files only (no range requests); use one that knows ranges")
    if (found := CONTENT_RANGE.fullmatch(said)) is None:
        return Refused(f"the server sends a part without saying which (Content-Range: {said or 'none'})")
    first, last, total = int(found[1]), int(found[2]), found[3]
    if (first, last) == (start, stop - 1):
        return None
    if first == start and total != "*" and int(total) < stop:
        return Refused(f"it ends after {total} bytes, before byte {stop}; its index is of another file")
    return OSError(f"the server sends bytes {first} to {last} in place of {start} to {stop - 1}")
