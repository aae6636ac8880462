"""Reading from stores: ranges, retries, errors for people; and the cache that processes share."""

from __future__ import annotations

import random
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from cache_writer import block_of
from range_server import RangeServer, serving
from tree import ROOT

from timeviper.datamodules.remote import storage
from timeviper.datamodules.remote.block_cache import BlockCache
from timeviper.datamodules.remote.storage import StorageError, hindrance, read_file, read_range, wait
from timeviper.datamodules.shards.block_sums import BLOCK_BYTES, FileBlock, FileBlocks, summed

DATA = random.Random(0).randbytes(5 * BLOCK_BYTES // 2)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    """A server of one file, and little patience with it."""
    monkeypatch.setattr(storage, "FIRST_WAIT", 0.01)
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
    with pytest.raises(StorageError, match=rf"data.tar could not be read in {storage.ATTEMPTS} attempts"):
        read_range(f"{server.url}/data.tar", 0, 10)


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


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_stays_busy_is_named(server: RangeServer, status: int) -> None:
    server.status = status
    with pytest.raises(StorageError, match=rf"{storage.ATTEMPTS} attempts \(last: {status} .*is the server up"):
        read_range(f"{server.url}/data.tar", 5, 10)
    assert len(server.requests) == storage.ATTEMPTS


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


def test_the_cache_knows_a_file_under_another_signature(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, max_bytes=10_000)
    block, data = block_of(1)
    cache.put("https://host/a.tar?sig=1", block, data)
    assert cache.get("https://host/a.tar?sig=2", block) == data
    assert cache.get("https://host/b.tar?sig=1", block) is None


def test_silence_ends(server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "READ_TIMEOUT", 0.1)
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    server.delay = 0.6
    begun = time.monotonic()
    with pytest.raises(StorageError, match=r"in 2 attempts .*time-out: Timeout on reading"):
        read_range(f"{server.url}/data.tar", 0, 10)
    assert time.monotonic() - begun < 5
    server.shutdown()
    server.server_close()
    with pytest.raises(StorageError, match="Cannot connect"):
        read_range(f"{server.url}/data.tar", 0, 10)


def test_back_off_grows_and_is_the_same_in_every_run() -> None:
    waits = [wait("https://host/a.tar", "0-10", attempt) for attempt in range(5)]
    assert all(0.5 * 0.25 * 2**i <= seconds < 0.25 * 2**i for i, seconds in enumerate(waits))
    assert waits == [wait("https://host/a.tar", "0-10", attempt) for attempt in range(5)]
    assert len({wait("https://host/a.tar", f"{i}-", 0) for i in range(50)}) == 50


def test_stores_that_cannot_be_used() -> None:
    assert hindrance("https://host/x") == hindrance("file:///x") == ""
    assert "no store that fsspec knows" in hindrance("s4://bucket/x")
    with pytest.raises(StorageError, match="s4:// is no store"):
        read_file("s4://bucket/x")


def test_blocks_of_a_member(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"head" + DATA)
    where, sums = summed(path, 4, len(DATA))
    blocks = FileBlocks(where, sums)
    assert (where.crc32, len(blocks), len(sums)) == (zlib.crc32(DATA), 3, 12)
    assert [(b.offset, b.size) for b in blocks] == [
        (4, BLOCK_BYTES),
        (4 + BLOCK_BYTES, BLOCK_BYTES),
        (4 + 2 * BLOCK_BYTES, BLOCK_BYTES // 2),
    ]
    for number, block in enumerate(blocks):
        data = DATA[number * BLOCK_BYTES :][: block.size]
        assert block.holds(data)
        assert not block.holds(data[:-1] + bytes([data[-1] ^ 1]))
        assert not block.holds(data[:-1])
    where, sums = summed(path, 4, BLOCK_BYTES)
    assert (sums, list(FileBlocks(where))) == (b"", [FileBlock(4, BLOCK_BYTES, zlib.crc32(DATA[:BLOCK_BYTES]))])
    with pytest.raises(ValueError, match="0 bytes of checksums for a member of"):
        FileBlocks(where._replace(size=BLOCK_BYTES + 1))
    with pytest.raises(OSError, match="ends 10 bytes before"):
        summed(path, 14, len(DATA))


def size_of(cache: BlockCache) -> int:
    """Bytes of all files but the lock, at one moment: whoever adds or deletes holds it."""
    with cache._locked():
        return sum(path.stat().st_size for path in cache.folder.glob("??/*"))


def test_the_cache_keeps_what_was_used_last(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, max_bytes=10_000)
    blocks = [block_of(100 * i) for i in range(12)]
    for block, data in blocks[:9]:
        cache.put("a.tar", block, data)
    assert cache.get("a.tar", blocks[0][0]) == blocks[0][1]
    assert cache.get("b.tar", blocks[0][0]) is None
    for block, data in blocks[9:]:
        cache.put("a.tar", block, data)
    assert size_of(cache) <= 10_000
    assert cache.has("a.tar", blocks[0][0])
    assert not cache.has("a.tar", blocks[1][0])
    assert all(cache.has("a.tar", block) for block, _ in blocks[9:])
    assert size_of(cache) == int((tmp_path / "lock").read_text())


def test_the_cache_believes_no_damaged_block(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, max_bytes=10_000)
    block, data = block_of(1)
    cache.put("a.tar", block, data)
    (path,) = tmp_path.glob("??/*")
    for wrong in (data[:-1] + bytes([data[-1] ^ 1]), data[:10], b""):
        path.write_bytes(wrong)
        assert cache.get("a.tar", block) is None
        cache.put("a.tar", block, data)
        assert cache.get("a.tar", block) == data
    changed = block._replace(crc32=1)  # the shard was written anew
    assert cache.get("a.tar", changed) is None


def test_a_cache_of_nothing_and_one_that_cannot_be_written(tmp_path: Path) -> None:
    block, data = block_of(1)
    BlockCache(tmp_path / "none", 0).put("a.tar", block, data)
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").write_text("")
    cache = BlockCache(tmp_path / "file", 10_000)
    with pytest.warns(UserWarning, match=r"nothing is kept in .*file: .*Not a directory|File exists"):
        cache.put("a.tar", block, data)
    cache.put("a.tar", block, data)
    assert cache.get("a.tar", block) is None


def start(cache: BlockCache, seed: int, count: int) -> subprocess.Popen:
    script = ROOT / "tests/support/cache_writer.py"
    return subprocess.Popen([sys.executable, script, *map(str, (cache.folder, cache.max_bytes, seed, count))])


def test_several_processes_never_exceed_the_bound(tmp_path: Path) -> None:
    """Four of them want ten times of it; one is killed in the middle, again and again."""
    cache = BlockCache(tmp_path, 20_000)
    writers = [start(cache, seed, 400) for seed in range(3)]
    victim, kills, sizes = start(cache, 9, 10**9), 0, []
    while any(writer.poll() is None for writer in writers):
        sizes.append(size_of(cache))
        if kills < 3 and sizes[-1] > 0 and len(sizes) % 20 == 0:
            victim.kill()
            victim.wait()
            victim, kills = start(cache, 10 + kills, 10**9), kills + 1
    victim.kill()
    victim.wait()
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert cache.max_bytes / 2 < max(sizes) <= cache.max_bytes
    # What a killed process left behind, a sum that is too large or half a file, the next one puts right.
    cache.put("a.tar", *block_of(1000))
    assert size_of(cache) == int((tmp_path / "lock").read_text()) <= cache.max_bytes
    assert not list(tmp_path.glob("??/*.tmp"))
