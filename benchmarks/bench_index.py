"""The index at the size of the published mixture: seconds until a rank knows its samples, and memory of a node.

    python benchmarks/bench_index.py [--samples 10000 100000 1000000 10000000] [--work build/scale]

Synthetic folders: tars of the right sizes without any content (holes), 256 samples of one video and one conversation
each, videos of 2 seconds to 5 minutes, and an `index.safetensors` with all that the index of real shards says.
Ranks are processes of their own that load the source as training does, then read what the plan reads of every unit of
an epoch, in its order. Every figure is a median of `--runs`.

cold        nothing of the index is in memory, and no copy of it on this node
warm        the copy is there. Both in seconds, and in seconds of CPU, for machines that have other work
a rank      memory that only this rank has, beyond a process that loaded one sample
a node      of 8 ranks: eight times that, and what they share, which is all that they have touched of the file

`--shards` also tries one sample a shard, as one folder of many files; `--json` the way from the indexes beside the
tars: making the file at first, and with one shard more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from timeviper.datamodules.shards.block_sums import BLOCK_BYTES
from timeviper.datamodules.shards.column_file import FILE, open_file, read_header, write_columns
from timeviper.datamodules.shards.column_join import columns_of, join
from timeviper.datamodules.shards.columns import FLOATS, Arrays, Columns
from timeviper.datamodules.shards.index import index_path, index_shards
from timeviper.datamodules.shards.index_file import encode

RANKS = 8  # of a node
A_SHARD = 256  # samples
PART = 1 << 18  # samples that are made at a time
TEXT = 512  # bytes of a json

RANK = """
import json, sys, time
from pathlib import Path
import numpy as np

def memory():
    found = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, size = line.split()[:2]
        found[name.rstrip(":")] = int(size) * 1024
    private = found["Private_Clean"] + found["Private_Dirty"]
    return private, found["Rss"] - private

from timeviper.config import SourceConfig
from timeviper.datamodules.build import load_sources
before = memory()[0]
begun, used = time.perf_counter(), time.process_time()
(source,) = load_sources({"x": SourceConfig(sys.argv[1])}, sys.argv[2]).values()
len(source), source[len(source) - 1].key
seconds, cpu = time.perf_counter() - begun, time.process_time() - used
begun = time.process_time()
order = np.random.default_rng(0).permutation(len(source.counts))
starts = np.concatenate([[0], np.cumsum(source.counts)])
for shard in order.tolist():
    source.sizes(np.arange(starts[shard], starts[shard + 1]))
epoch = time.process_time() - begun
maps = Path("/proc/self/smaps").read_text().split("\\n")
shared = 0
for i, line in enumerate(maps):
    if "/indexes/" in line:
        shared += 1024 * next(int(x.split()[1]) for x in maps[i:] if x.startswith("Rss:"))
private = max(memory()[0] - before - shared, 0)  # whoever maps a file alone has its pages for private ones
print(json.dumps({"s": seconds, "cpu": cpu, "epoch": epoch, "private": private, "shared": shared}))
"""


def columns(first: int, count: int, a_shard: int) -> Columns:
    """`count` samples as the index of real shards would tell of them."""
    rng = np.random.default_rng(first)
    seconds = np.exp(rng.uniform(np.log(2.0), np.log(300.0), count)).round(2)
    size = (seconds * 60_000).astype(np.int64)  # 0.5 Mbit/s
    padded = -(-size // 512) * 512 + 512
    space = padded + 512 + -(-TEXT // 512) * 512
    shards = -(-count // a_shard)
    shard = np.arange(count) // a_shard
    ends = np.cumsum(space)
    begins = ends - space
    json_at = begins - begins[shard * a_shard] + 512
    offsets = np.stack([json_at, json_at + 1024], 1).ravel()
    sizes = np.stack([np.full(count, TEXT), size], 1).ravel()
    blocks = np.where(sizes > BLOCK_BYTES, -(-sizes // BLOCK_BYTES), 0)
    keys = "".join(f"clip-{number:09d}-{number % 65521:04x}" for number in range(first, first + count)).encode()
    widths = [len(f"clip-{number:09d}-{number % 65521:04x}") for number in range(first, first + count)]
    names = [f"shard-{number:07d}.tar".encode() for number in range(first // a_shard, first // a_shard + shards)]
    last = np.minimum(np.arange(1, shards + 1) * a_shard, count)
    text = rng.integers(80, 1500, count)
    arrays: Arrays = {
        "shard_bytes": np.diff(np.concatenate([[0], ends[last - 1]])) + 1024,
        "shard_crc32": rng.integers(0, 2**32, shards),
        "sample_start": np.concatenate([[0], last]),
        "name": np.frombuffer(b"".join(names), np.uint8),
        "name_start": starts(map(len, names)),
        "key": np.frombuffer(keys, np.uint8),
        "key_start": starts(widths),
        "media": np.full(count, 2),
        "fps": np.full(count, 29.97),
        "spacing": np.full(count, 2.002),
        "fingerprint": np.zeros(count, np.int64),
        "member_start": np.arange(count + 1) * 2,
        "member_name": np.tile([1, 2], count),
        "member_offset": offsets,
        "member_size": sizes,
        "member_crc32": rng.integers(0, 2**32, 2 * count),
        "sum_start": starts(blocks),
        "sum": rng.integers(0, 2**32, int(blocks.sum()), np.uint32),
        "medium_start": np.arange(count + 1),
        "medium_seconds": seconds,
        "medium_frames": (seconds * 29.97).astype(np.int64) + 1,
        "talk_start": np.arange(count + 1),
        "talk_type": np.full(count, 3),
        "talk_text": text,
        "talk_answer": text // 2,
        "turn_start": np.zeros(count + 1, np.int64),
        "turn_text": np.zeros(0, np.int64),
        "turn_answer": np.zeros(0, np.int64),
        "turn_media": np.zeros(0, np.int64),
        "letter": np.frombuffer(b"jsonmp4chat", np.uint8),
        "letter_start": np.array([0, 0, 4, 7, 11]),
    }
    return Columns({n: a.astype(np.float64) if n in FLOATS else a for n, a in arrays.items()}, "here/")


def starts(sizes: Any) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.fromiter(sizes, np.int64))])


def build(folder: Path, samples: int, a_shard: int = A_SHARD) -> None:
    """A folder of tars that have their size and nothing else, and its index."""
    if (folder / FILE).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    step = PART // a_shard * a_shard
    parts = [join([columns(first, min(step, samples - first), a_shard)]) for first in range(0, samples, step)]
    for part in parts:
        for name, size in zip(part.names(), part.arrays["shard_bytes"].tolist()):
            with (folder / name).open("wb") as tar:
                tar.truncate(size)
    write_columns(folder / FILE, parts)


def rank(folder: Path, cache: Path) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", RANK, folder, cache], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def out_of_memory(folder: Path) -> None:
    """Have the system forget what it holds of the files of a folder."""
    for path in folder.rglob(f"*{Path(FILE).suffix}"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measured(folder: Path, work: Path, runs: int) -> dict[str, Any]:
    """Medians of cold and warm starts."""
    cold, warm = [], []
    for _ in range(runs):
        shutil.rmtree(work / "cache", ignore_errors=True)
        out_of_memory(folder)
        cold.append(rank(folder, work / "cache"))
        warm.append(rank(folder, work / "cache"))
    found = {name: statistics.median(run[name] for run in warm) for name in warm[0]}
    return found | {f"cold {name}": statistics.median(run[name] for run in cold) for name in ("s", "cpu")}


def row(samples: int, found: dict[str, Any], folder: Path, one: dict[str, Any]) -> str:
    private = max(found["private"] - one["private"], 0)
    node = RANKS * private + found["shared"]
    with open_file(folder / FILE) as file:
        header = read_header(file.read, "", "")
    sums = header.columns["sum"].stop - header.columns["sum"].start
    size = f"{header.bytes / samples:.0f}, {(header.bytes - sums) / samples:.0f}"
    each = f"{size} | {private / 1e9:.3f} | {node / 1e9:.2f} | {node / samples:.0f}"
    cold, warm = (f"{found[f'{when}s']:.2f}, {found[f'{when}cpu']:.2f}" for when in ("cold ", ""))
    return f"| {samples:,} | {cold} | {warm} | {found['epoch'] / samples * 1e6:.2f} | {each} |"


def table(sizes: list[int], work: Path, runs: int) -> Iterator[str]:
    heads = "samples | cold: s, CPU s | warm: s, CPU s | plan reads, CPU us a unit"
    heads += " | file: bytes a sample, without sums of blocks"
    yield f"| {heads} | a rank, GB | a node, GB | a node, bytes a sample |"
    yield "|---|---|---|---|---|---|---|---|"
    build(work / "one", 1)
    one = rank(work / "one", work / "cache")
    for samples in sizes:
        folder = work / str(samples)
        build(folder, samples)
        yield row(samples, measured(folder, work, runs), folder, one)


def many_files(shards: int, work: Path, runs: int) -> Iterator[str]:
    folder = work / f"{shards}-files"
    build(folder, shards, 1)
    found = measured(folder, work, runs)
    yield (
        f"{shards:,} shards of one sample in one folder: {found['cold s']:.1f} s cold, {found['s']:.1f} s warm "
        f"({found['cpu']:.1f} s of CPU)."
    )


def from_json(samples: int, work: Path, workers: int) -> Iterator[str]:
    """Tars that are never read: their indexes are beside them, as `shards write` leaves them."""
    folder = work / f"{samples}-json"
    shutil.rmtree(folder, ignore_errors=True)
    build(folder, samples)
    (folder / FILE).unlink()
    made = columns(0, samples, A_SHARD)
    size = 0
    for number in range(len(made)):
        shard = made[number]
        size += index_path(folder / shard.name).write_bytes(encode([shard]))
    begun = time.perf_counter()
    index_shards(folder, workers=workers)
    seconds = time.perf_counter() - begun
    first = folder / made.names()[0]
    shutil.copy(first, folder / "zz.tar")
    more = columns_of([made[0]])[0]
    index_path(folder / "zz.tar").write_bytes(encode([type(more)("zz.tar", more.bytes, more.samples)]))
    begun = time.perf_counter()
    index_shards(folder, workers=workers)
    yield (
        f"`shards index` of {samples:,} samples with {size / samples:.0f} bytes of JSON each: {seconds:.1f} s, "
        f"{seconds / samples * 1e6:.0f} us a sample, by {workers} processes; with one shard more: "
        f"{time.perf_counter() - begun:.1f} s."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7])
    parser.add_argument("--shards", type=int, default=10**6)
    parser.add_argument("--json", type=int, default=10**5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("build/scale"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    args = parser.parse_args()
    head = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {args.runs} runs"
    lines = [f"# The index of many samples\n\n{date.today()}, {head}, made by\n"]
    lines += ["    python benchmarks/bench_index.py\n", "```", (__doc__ or "").strip(), "```", ""]
    print(head)
    for part in (
        table(args.samples, args.work, args.runs),
        many_files(args.shards, args.work, 1) if args.shards else (),
        from_json(args.json, args.work, args.workers) if args.json else (),
    ):
        for line in part:
            print(line, flush=True)
            lines.append(line)
        lines.append("")
    path = args.out / f"index_{platform.machine()}-cpu-{os.cpu_count()}cores_{date.today()}.md"
    path.write_text("\n".join(lines))
    print(f"written: {path}")


if __name__ == "__main__":
    main()
