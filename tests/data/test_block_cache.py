"""The cache that processes share, and the blocks that it keeps."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from cache_writer import block_of
from hypothesis import given
from hypothesis import strategies as st
from tree import ROOT

from timeviper.datamodules.remote import block_cache
from timeviper.datamodules.remote.block_cache import FOLDERS, SUMS, BlockCache
from timeviper.datamodules.shards.block_sums import (
    BLOCK_BYTES,
    LEAST_BYTES,
    SIZES,
    WIDTH,
    FileBlock,
    FileBlocks,
    block_bytes,
    fits,
    summed,
)
from timeviper.datamodules.shards.tar import Slice

DATA = random.Random(0).randbytes(5 * BLOCK_BYTES // 2)


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


@given(size=st.integers(1, 40 * BLOCK_BYTES), block=st.sampled_from(SIZES), data=st.data())
def test_the_number_of_checksums_tells_the_size_of_a_block(size: int, block: int, data: st.DataObject) -> None:
    count = -(-size // block) if size > BLOCK_BYTES else 0
    blocks = FileBlocks(Slice(100, size, 0), bytes(count * WIDTH))
    assert blocks.block_bytes == (block if count else BLOCK_BYTES)
    assert [b.offset for b in blocks] == [*range(100, 100 + size, blocks.block_bytes)]
    assert sum(b.size for b in blocks) == size
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start, size + 5))
    touched = [n for n, b in enumerate(blocks) if b.offset - 100 < min(stop, size) and start < b.end - 100]
    assert [*blocks.between(start, stop)] == (touched if start < stop else [])
    assert not fits(size, bytes((count + 1) * WIDTH)) or size > BLOCK_BYTES
    assert not fits(size, bytes(count * WIDTH + 1))


def test_blocks_of_long_videos_are_a_quarter_of_a_second() -> None:
    """So an index has at most eight checksums a second; short videos and other files keep blocks of 64 KiB."""
    hour = 3600.0
    assert block_bytes(10**9) == block_bytes(10**9, 299.0) == block_bytes(BLOCK_BYTES, hour) == BLOCK_BYTES
    assert [block_bytes(round(rate * hour), hour) for rate in (10_000, 20_000, 33_000, 140_000, 500_000)] == [
        LEAST_BYTES, LEAST_BYTES, 2 * LEAST_BYTES, BLOCK_BYTES // 2, BLOCK_BYTES,
    ]  # fmt: skip
    assert -(-round(33_000 * hour) // block_bytes(round(33_000 * hour), hour)) <= 8 * hour


def put(cache: BlockCache, shard: str, *blocks: tuple[FileBlock, bytes]) -> None:
    cache.put(shard, dict(blocks))


def get(cache: BlockCache, shard: str, block: FileBlock) -> bytes | None:
    return cache.get(shard, [block]).get(block)


def size_of(cache: BlockCache) -> int:
    """Bytes of all pages, at one moment: whoever adds or deletes holds the lock."""
    with cache._locked():
        return sum(path.stat().st_size for path in cache.folder.glob("??/*"))


def noted(cache: BlockCache) -> int:
    """What the cache believes it has."""
    return sum(SUMS.unpack((cache.folder / "lock").read_bytes())[:FOLDERS])


def test_the_cache_knows_a_file_under_another_signature(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, max_bytes=10_000)
    block, data = block_of(1)
    put(cache, "https://host/a.tar?sig=1", (block, data))
    assert get(cache, "https://host/a.tar?sig=2", block) == data
    assert get(cache, "https://host/b.tar?sig=1", block) is None


def test_the_cache_keeps_what_was_used_last(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, max_bytes=10_000)
    blocks = [block_of(100 * i) for i in range(12)]
    for found in blocks[:9]:
        put(cache, "a.tar", found)
    assert get(cache, "a.tar", blocks[0][0]) == blocks[0][1]
    assert get(cache, "b.tar", blocks[0][0]) is None
    for found in blocks[9:]:
        put(cache, "a.tar", found)
    assert size_of(cache) == noted(cache) <= 10_000
    assert [number for number, (block, data) in enumerate(blocks) if get(cache, "a.tar", block) != data] in (
        [1, 2, 3],
        [1, 2, 3, 4],
    )


def test_a_page_gathers_its_blocks(tmp_path: Path) -> None:
    """Small blocks share a file; new ones take the place of those that they overlap."""
    cache, rng = BlockCache(tmp_path, 10**6), random.Random(0)
    pieces = [rng.randbytes(LEAST_BYTES) for _ in range(40)]
    blocks = [FileBlock(100 + i * LEAST_BYTES, LEAST_BYTES, zlib.crc32(piece)) for i, piece in enumerate(pieces)]
    for order in (range(0, 40, 3), range(1, 40, 3)):
        put(cache, "a.tar", *((blocks[i], pieces[i]) for i in order))
    there = {block: piece for i, (block, piece) in enumerate(zip(blocks, pieces)) if i % 3 != 2}
    assert cache.get("a.tar", blocks) == there
    assert len([*tmp_path.glob("??/*")]) == -(-blocks[-1].end // BLOCK_BYTES)
    whole = b"".join(pieces)[:BLOCK_BYTES]
    large = FileBlock(100, BLOCK_BYTES, zlib.crc32(whole))
    put(cache, "a.tar", (large, whole))
    assert [*cache.get("a.tar", [large, *blocks])] == [large, *(b for b in there if b.offset >= BLOCK_BYTES)]
    assert size_of(cache) == noted(cache)


def test_the_cache_believes_no_damaged_block(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, max_bytes=10_000)
    block, data = block_of(1)
    put(cache, "a.tar", (block, data))
    (path,) = tmp_path.glob("??/*")
    whole = path.read_bytes()
    for wrong in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:10], b"", b"\xff" * 40):
        path.write_bytes(wrong)
        assert get(cache, "a.tar", block) is None
        put(cache, "a.tar", (block, data))
        assert get(cache, "a.tar", block) == data
    assert get(cache, "a.tar", block._replace(crc32=1)) is None, "the shard was written anew"


def test_a_cache_of_nothing_and_one_that_cannot_be_written(tmp_path: Path) -> None:
    found = block_of(1)
    put(BlockCache(tmp_path / "none", 0), "a.tar", found)
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").write_text("")
    cache = BlockCache(tmp_path / "file", 10_000)
    with pytest.warns(UserWarning, match=r"nothing is kept in .*file for 60 s: .*(Not a directory|File exists)"):
        put(cache, "a.tar", found)
    put(cache, "a.tar", found)
    assert get(cache, "a.tar", found[0]) is None


def test_a_failed_write_leaves_nothing_and_does_not_end_caching(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full for a while: a file that takes the first bytes and no more."""
    cache, write = BlockCache(tmp_path, 10_000), Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        write(path, data[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(block_cache, "PAUSE", 0.0)
    first, second = block_of(1), block_of(2)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.warns(UserWarning, match="No space left on device"):
            put(cache, "a.tar", first)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["lock"]
    put(cache, "a.tar", second)
    assert get(cache, "a.tar", first[0]) is None
    assert get(cache, "a.tar", second[0]) == second[1]
    assert size_of(cache) == noted(cache)


def test_a_new_process_counts_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where the sums are gone, as in a folder of an older version."""
    cache = BlockCache(tmp_path, 100_000)
    for number in range(20):
        put(cache, "a.tar", block_of(number))
    looked: list[int] = []
    files = BlockCache._files
    monkeypatch.setattr(BlockCache, "_files", lambda self, number: looked.append(number) or files(self, number))
    put(BlockCache(tmp_path, 100_000), "a.tar", block_of(21))
    assert not looked
    for text in ("", "00000000000000001000"):
        (tmp_path / "lock").write_text(text)
        put(BlockCache(tmp_path, 100_000), "a.tar", block_of(22))
        assert [*looked] == [*range(FOLDERS)]
        looked.clear()
        assert size_of(cache) == noted(cache)


def test_a_large_cache_looks_at_some_folders_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And yet forgets what is old, and never exceeds its bound; files that went by themselves are noticed."""
    monkeypatch.setattr(block_cache, "LOOK", 8)
    cache = BlockCache(tmp_path, 1_000_000)
    looked: list[int] = []
    files = BlockCache._files
    monkeypatch.setattr(BlockCache, "_files", lambda self, number: looked.append(number) or files(self, number))
    for number in range(1500):
        put(cache, "a.tar", block_of(number))
        assert noted(cache) <= cache.max_bytes
    ages = [n for n in range(1500) if get(cache, "a.tar", block_of(n)[0])]
    assert size_of(cache) == noted(cache) > 0.85 * cache.max_bytes
    assert sum(n >= 1000 for n in ages) > 450
    assert len(looked) < FOLDERS * 20
    for path in [*tmp_path.glob("??/*")][::2]:
        path.unlink()
    for number in range(1500, 2200):
        put(cache, "a.tar", block_of(number))
        assert noted(cache) <= cache.max_bytes
    assert 0.8 * noted(cache) < size_of(cache) <= noted(cache)


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
    # What a killed process left behind: at most one unfinished file, which the next one takes away.
    for number in range(1000, 1020):  # until the bound is reached, and sums that are too large are mended
        put(cache, "a.tar", block_of(number))
    assert size_of(cache) == noted(cache) <= cache.max_bytes
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"lock"}
