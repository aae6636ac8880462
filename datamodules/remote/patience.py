"""How long a store is waited for: a request that fails for a reason that may pass is repeated, with growing pauses.

A store that is away, or that asks for patience, is waited for minutes (`data.patience`), and then it is the store that
has failed, never a sample: `StoreUnusable`. What will not pass by itself is said at once. The jitter of the pauses
depends on the request alone, so that many readers do not come back together and yet every run waits alike.
"""

from __future__ import annotations

import asyncio
import sys
import time
import zlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import TypeVar

from timeviper.config import DataConfig
from timeviper.datamodules.shards.address import shown, split_query

T = TypeVar("T")

PATIENCE = DataConfig.patience  # s
FIRST_WAIT, LONGEST_WAIT = 0.25, 30.0  # s; the pause is doubled each time
TOLD_AFTER, TOLD_EVERY = 10.0, 60.0  # s of waiting before a process says so, and between two such lines


class StorageError(OSError):
    """Something that could not be read from a store: where, why, and what to do."""


class StoreUnusable(StorageError):
    """The store gives nothing: it has been away for too long, or refuses the credentials. No sample is to blame."""


class Refused(Exception):
    """What a server said of one file that will not pass by itself."""


class BusyError(OSError):
    """What a server said of itself that will pass; `after`: seconds that it asks to be left alone."""

    def __init__(self, said: str, after: str | None = None) -> None:
        super().__init__(said)
        self.after = _seconds(after)


class _Teller:
    """Says what is waited for: one line a minute of a process, however many requests wait."""

    last = 0.0

    def tell(self, place: str, reason: str, waited: float, patience: float) -> None:
        now = time.monotonic()
        if waited >= TOLD_AFTER and now - self.last >= TOLD_EVERY:
            self.last = now
            print(
                f"waiting for {place} ({reason}): {waited:.0f} s until now, {patience:.0f} s at most (data.patience)",
                file=sys.stderr,
                flush=True,
            )


_teller = _Teller()


async def patiently(
    url: str,
    what: str,
    request: Callable[[], Awaitable[T]],
    is_up: Callable[[], Awaitable[bool]],
    patience: float = PATIENCE,
) -> T:
    """The answer, or an error for people.

    `patience`: seconds for which it is asked for again; 0: once. `is_up`: whether the store answers other requests, so
    that this file alone is what it cannot give.
    """
    place, began, attempt = shown(url), time.monotonic(), 0
    while True:
        try:
            return await request()
        except StorageError:
            raise
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{place} does not exist (404)") from error
        except PermissionError as error:
            raise StoreUnusable(f"{place} may not be read (403): {_denied(url)} ({error})") from error
        except (Refused, ValueError, TypeError, NotImplementedError, ImportError) as error:
            raise StorageError(f"{place} cannot be read: {error}") from error
        except Exception as error:  # a store's client raises what it likes: time-outs, resets, 503, ...
            if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
                raise StoreUnusable(f"{place} cannot be read: {error}; set the credentials of the store") from error
            waited, reason = time.monotonic() - began, str(error) or type(error).__name__
            if waited >= patience:
                attempts = f"{attempt + 1} attempts" if attempt else "1 attempt"
                tried = f"could not be read for {waited:.0f} s, in {attempts} (last: {reason})"
                if not isinstance(error, BusyError) and await is_up():
                    raise StorageError(f"{place} {tried}, though its store answers: copy the file again") from error
                raise StoreUnusable(
                    f"{place} {tried}; is the store up and reachable? (data.patience={patience:g} is how long it is "
                    "waited for)"
                ) from error
            _teller.tell(place, reason, waited, patience)
            pause = max(wait(url, what, attempt), getattr(error, "after", 0.0))
            await asyncio.sleep(min(pause, max(patience - waited, 0.0)))
            attempt += 1


def wait(url: str, what: str, attempt: int) -> float:
    """Seconds before the next attempt: between half and all of `FIRST_WAIT * 2 ** attempt`, or of the longest."""
    share = zlib.crc32(f"{url} {what} {attempt}".encode()) / 2**32
    return min(FIRST_WAIT * 2.0 ** min(attempt, 64), LONGEST_WAIT) * (0.5 + 0.5 * share)


def _denied(url: str) -> str:
    if split_query(url)[1]:
        wants = "the signature in its query is over, or was made for another file"
    else:
        wants = "the store wants other credentials, or knows no such file and may not say so"
    return f"{wants}. That is no outage, so it is not waited for"


def _seconds(after: str | None) -> float:
    """What Retry-After asks for, in seconds or as a date; 0 where it says nothing that can be read."""
    with suppress(TypeError, ValueError):
        if after and after.strip().isdigit():
            return float(after)
        if after:
            return max(parsedate_to_datetime(after).timestamp() - time.time(), 0.0)
    return 0.0
