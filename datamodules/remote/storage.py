"""Files behind a URL: whole or a range of bytes, through fsspec, with time-outs, retries and one message a failure.

Any store that fsspec knows will do (https, s3, gs, abfs, ...); it takes keys, endpoints and proxies from the usual
environment variables and files of each store. http(s) is asked here and not by fsspec, which would take the whole file
from a server that ignores ranges. A request that fails for a reason that may pass is repeated with exponential
back-off; the jitter depends on the request alone, so that many readers do not come back together and yet every run
waits alike.
"""

from __future__ import annotations

import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer
from typing import Any, TypeVar

import fsspec
from fsspec.asyn import AsyncFileSystem, sync

from timeviper.datamodules.shards.address import is_http, shown, split_query

T = TypeVar("T")

ATTEMPTS = 6
FIRST_WAIT = 0.25  # s, doubled each time: at most 7.75 s of waiting in all
CONNECT_TIMEOUT = 10.0  # s
READ_TIMEOUT = 30.0  # s without a byte
TOTAL_TIMEOUT = 300.0  # s an attempt: a server that trickles is no server
NOTICE = 3.0  # s of silence at the start of a run before a line says what it waits for


class StorageError(OSError):
    """Something that could not be read from a store: where, why, and what to do."""


class Refused(Exception):
    """What a server said that will not pass by itself."""


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


def read_file(url: str) -> bytes:
    """The whole file. Raises FileNotFoundError if there is none, else as `read_range`."""
    return _retried(url, "whole", lambda: _request(url, None))


def read_range(url: str, start: int, stop: int) -> bytes:
    """Bytes `[start, stop)` of the file.

    Raises StorageError when it cannot be read, at once or after `ATTEMPTS` attempts.
    """
    try:
        return _retried(url, f"{start}-{stop}", lambda: _request(url, (start, stop)))
    except FileNotFoundError as error:
        raise StorageError(str(error)) from error


def list_tars(pattern: str) -> dict[str, int] | None:
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

    try:
        return _retried(pattern, "list", request)
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


def _retried(url: str, what: str, request: Callable[[], T]) -> T:
    """The answer, or an error for people."""
    place = shown(url)
    for attempt in range(ATTEMPTS):
        try:
            return request()
        except StorageError:
            raise
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{place} does not exist (404)") from error
        except PermissionError as error:
            wants = "the store wants other credentials"
            if split_query(url)[1]:
                wants = "the signature in its query is over, or was made for another file"
            raise StorageError(f"{place} may not be read (403): {wants} ({error})") from error
        except (Refused, ValueError, TypeError, NotImplementedError, ImportError) as error:
            raise StorageError(f"{place} cannot be read: {error}") from error
        except Exception as error:  # a store's client raises what it likes: time-outs, resets, 503, ...
            if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
                raise StorageError(f"{place} cannot be read: {error}; set the credentials of the store") from error
            if attempt == ATTEMPTS - 1:
                reason = str(error) or type(error).__name__
                tried = f"could not be read in {ATTEMPTS} attempts (last: {reason})"
                raise StorageError(f"{place} {tried}; is the server up and reachable?") from error
            time.sleep(wait(url, what, attempt))
    raise AssertionError


def wait(url: str, what: str, attempt: int) -> float:
    """Seconds before the next attempt: between half and all of `FIRST_WAIT * 2 ** attempt`."""
    share = zlib.crc32(f"{url} {what} {attempt}".encode()) / 2**32
    return FIRST_WAIT * 2**attempt * (0.5 + 0.5 * share)


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
    fs.retries = 1  # those of this file are enough
    return fs


def _request(url: str, span: tuple[int, int] | None) -> bytes:
    """One attempt."""
    fs = _filesystem(url)
    start, stop = span or (None, None)
    if is_http(url):
        data: Any = sync(fs.loop, _http_get, fs, url, span)
    elif isinstance(fs, AsyncFileSystem):
        data = sync(fs.loop, fs._cat_file, fs._strip_protocol(url), start=start, end=stop, timeout=TOTAL_TIMEOUT)
    else:
        data = fs.cat_file(fs._strip_protocol(url), start=start, end=stop)
    if span and len(data) != span[1] - span[0]:
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
            if answer.status in (408, 425, 429) or answer.status >= 500:
                raise OSError(said)
            if answer.status >= 400:
                raise Refused(f"the server says {said}")
            if span and (
                answer.status != 206 or not answer.headers.get("Content-Range", "").startswith(f"bytes {span[0]}-")
            ):
                answer.close()  # not the gigabytes that would follow
                raise Refused("the server sends whole files only (no range requests); use one that knows ranges")
            return await answer.read()
    except TimeoutError as error:
        raise OSError(f"time-out: {error or 'no answer'}") from error
