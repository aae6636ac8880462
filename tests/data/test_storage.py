"""Reading from stores: ranges, retries, errors for people; and the cache that processes share."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
from range_server import RangeServer, serving

from timeviper.datamodules.remote import patience, storage
from timeviper.datamodules.remote.patience import wait
from timeviper.datamodules.remote.storage import (
    StorageError,
    StoreUnusable,
    begin_range,
    hindrance,
    read_file,
    read_range,
)
from timeviper.datamodules.shards.block_sums import BLOCK_BYTES

DATA = random.Random(0).randbytes(5 * BLOCK_BYTES // 2)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    """A server of one file, and little patience with it."""
    monkeypatch.setattr(patience, "FIRST_WAIT", 0.01)
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "data.tar").write_bytes(DATA)
    with serving(tmp_path / "served") as server:
        yield server


def test_a_range_is_just_that(server: RangeServer) -> None:
    url = f"{server.url}/data.tar"
    assert read_range(url, 1000, 1010) == DATA[1000:1010]
    assert read_range(url, len(DATA) - 1, len(DATA)) == DATA[-1:]
    assert (server.sent, server.requests[0][1]) == ({"/data.tar": 11}, "bytes=1000-1009")
    assert read_file(url) == DATA


def test_what_may_pass_is_tried_again(server: RangeServer) -> None:
    """Every third request fails: 503, a closed connection, half a body."""
    server.fail_every = 3
    for start in range(0, 1800, 100):
        assert read_range(f"{server.url}/data.tar", start, start + 100) == DATA[start : start + 100]
    assert server.failures == 8
    server.fail_every = 1
    with pytest.raises(StorageError, match=r"data.tar could not be read for 0 s, in \d+ attempts? \(last: "):
        read_range(f"{server.url}/data.tar", 0, 10, 0.1)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (403, r"may not be read \(403\): the store wants other credentials"),
        (401, "may not be read"),
        (404, r"does not exist \(404\)"),
        (416, "ends before byte 5; its index is of another file"),
        (418, "the server says 418"),
        (200, r"sends whole files only \(no range requests\)"),
    ],
)
def test_what_will_not_pass_is_said_at_once(server: RangeServer, status: int, message: str) -> None:
    server.status = status
    with pytest.raises(StorageError, match=f"{server.url}/data.tar .*{message}"):
        read_range(f"{server.url}/data.tar", 5, 10)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_store_that_stays_away_is_named(server: RangeServer, status: int) -> None:
    server.status = status
    with pytest.raises(StoreUnusable, match=rf"\d attempts? \(last: {status} .*is the store up .*data.patience=0.1 is"):
        read_range(f"{server.url}/data.tar", 5, 10, 0.1)
    server.forget()
    with pytest.raises(StoreUnusable, match="in 1 attempt "):
        read_range(f"{server.url}/data.tar", 5, 10, 0.0)
    assert [path for path, _ in server.requests].count("/data.tar") == 1


def test_a_server_without_ranges_does_not_send_its_gigabytes(server: RangeServer) -> None:
    server.ranges = False
    with pytest.raises(StorageError, match="no range requests"):
        read_range(f"{server.url}/data.tar", 0, 10)


SIGNATURE = "X-Cred=AKIA%2F2026%2Fs3&sig=a%2Bb%2F9%3D/[x]*&response=a%20b"


def test_a_signature_arrives_letter_by_letter(server: RangeServer) -> None:
    server.query = SIGNATURE
    url = f"{server.url}/data.tar?{SIGNATURE}"
    assert read_range(url, 1000, 1010) == DATA[1000:1010]
    assert read_file(url) == DATA
    for other in (f"{server.url}/data.tar", f"{url}x"):
        with pytest.raises(StorageError, match=r"data.tar(\?\.\.\.)? may not be read \(403\)") as error:
            read_range(other, 0, 10)
        assert "AKIA" not in str(error.value), "a log is no place for a signature"
    assert "signature in its query" in str(error.value)


def test_an_address_that_is_sent_on_is_followed_as_it_is_written(server: RangeServer) -> None:
    """To another host, with a range, and a signature of its own."""
    server.sends_on = server.query = SIGNATURE
    assert read_range(f"{server.url}/data.tar", 1000, 1010) == DATA[1000:1010]
    assert server.requests == [("/data.tar", "bytes=1000-1009"), (f"/data.tar?{SIGNATURE}", "bytes=1000-1009")]


def test_silence_ends(server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "READ_TIMEOUT", 0.1)
    server.delay = 0.6
    begun = time.monotonic()
    with pytest.raises(StoreUnusable, match=r"attempts? .*time-out: Timeout on reading"):
        read_range(f"{server.url}/data.tar", 0, 10, 0.1)
    assert time.monotonic() - begun < 5
    server.shutdown()
    server.server_close()
    with pytest.raises(StoreUnusable, match="Cannot connect"):
        read_range(f"{server.url}/data.tar", 0, 10, 0.1)


def test_back_off_grows_and_is_the_same_in_every_run() -> None:
    waits = [wait("https://host/a.tar", "0-10", attempt) for attempt in range(5)]
    assert all(0.5 * 0.25 * 2**i <= seconds < 0.25 * 2**i for i, seconds in enumerate(waits))
    assert waits == [wait("https://host/a.tar", "0-10", attempt) for attempt in range(5)]
    assert len({wait("https://host/a.tar", f"{i}-", 0) for i in range(50)}) == 50
    assert 15 <= wait("https://host/a.tar", "0-10", 10**6) < 30


def test_stores_that_cannot_be_used() -> None:
    assert hindrance("https://host/x") == hindrance("file:///x") == ""
    assert "no store that fsspec knows" in hindrance("s4://bucket/x")
    with pytest.raises(StorageError, match="s4:// is no store"):
        read_file("s4://bucket/x")


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_obeyed(server: RangeServer, form: str) -> None:
    """A server that is back at once, but asked for a pause."""
    server.fail_next = 1
    server.headers = {"Retry-After": "1" if form == "seconds" else formatdate(time.time() + 2.0, usegmt=True)}
    server.busy = True
    begun = time.monotonic()
    assert read_range(f"{server.url}/data.tar", 0, 10, 30.0) == DATA[:10]
    assert time.monotonic() - begun > 0.9
    assert len(server.requests) == 2
    for nonsense in ("soon", "-5", ""):
        server.fail_next = 1
        server.headers = {"Retry-After": nonsense}
        assert read_range(f"{server.url}/data.tar", 0, 10, 30.0) == DATA[:10]


def test_no_pause_is_longer_than_the_patience_that_is_left(server: RangeServer) -> None:
    server.busy, server.headers = True, {"Retry-After": "3600"}
    server.away_for(60.0)
    with pytest.raises(StoreUnusable, match=r"could not be read for \d+ s, in \d attempts? \(last: 503"):
        read_range(f"{server.url}/data.tar", 0, 10, 0.5)


def test_one_file_that_a_store_cannot_give_is_no_outage(server: RangeServer) -> None:
    """Its store answers other requests, so the file is to blame, after the same patience."""
    server.broken = "/data.tar"
    with pytest.raises(StorageError, match=r"data.tar could not be read .*500.*though its store answers") as error:
        read_range(f"{server.url}/data.tar", 0, 10, 0.1)
    assert not isinstance(error.value, StoreUnusable)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("bytes 0-9/163840", r"sends bytes 0 to 9 in place of 5 to 9"),
        ("bytes 5-9", r"without saying which \(Content-Range: bytes 5-9\)"),
        ("bytes 5-7/8", "it ends after 8 bytes, before byte 10; its index is of another file"),
        ("", r"\(Content-Range: none\)"),
    ],
)
def test_bytes_of_another_place_are_never_taken(server: RangeServer, said: str, message: str) -> None:
    server.headers = {"Content-Range": said}
    with pytest.raises(StorageError, match=message):
        read_range(f"{server.url}/data.tar", 5, 10, 0.1)


def test_a_file_that_is_shorter_than_its_index_says(server: RangeServer, tmp_path: Path) -> None:
    """On the web and in a store that fsspec reads: said at once."""
    end = len(DATA)
    for url in (f"{server.url}/data.tar", f"file://{tmp_path}/served/data.tar"):
        with pytest.raises(StorageError, match=rf"it ends after {end} bytes, before byte {end + 9}; its index is of"):
            read_range(url, end - 5, end + 9)


def test_who_waits_long_says_so(
    server: RangeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, however many requests wait."""
    monkeypatch.setattr(patience, "TOLD_AFTER", 0.05)
    server.fail_next = 40
    answers = [begin_range(f"{server.url}/data.tar", i, i + 10, 60.0) for i in range(8)]
    assert [answer.result() for answer in answers] == [DATA[i : i + 10] for i in range(8)]
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        rf"waiting for {server.url}/data.tar \(.*\): 0 s until now, 60 s at most \(data.patience\)", line
    )
