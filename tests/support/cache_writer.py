"""Reads and fills a block cache at random, as a loader process does: `cache_writer.py FOLDER BOUND SEED COUNT`."""

from __future__ import annotations

import random
import sys
import zlib

from timeviper.datamodules.remote.block_cache import BlockCache
from timeviper.datamodules.shards.block_sums import BLOCK_BYTES, FileBlock


def block_of(number: int) -> tuple[FileBlock, bytes]:
    data = random.Random(number).randbytes(1000 + number % 100)
    return FileBlock(number * BLOCK_BYTES, len(data), zlib.crc32(data)), data


def fill(folder: str, bound: int, seed: int, count: int) -> None:
    cache, rng = BlockCache(folder, bound), random.Random(seed)
    for _ in range(count):
        block, data = block_of(rng.randrange(200))
        found = cache.get("a.tar", [block])
        assert found in ({}, {block: data})
        if not found:
            cache.put("a.tar", {block: data})


if __name__ == "__main__":
    fill(sys.argv[1], *map(int, sys.argv[2:]))
