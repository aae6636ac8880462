"""256 frames of an hour of video in a shard behind a web server that takes its time, beside the same from a disk.

The server is a process of its own on this machine; each of its answers comes so many milliseconds late. What it sends
is set against what must be sent: the packets that the decoder gets, the list of packets, and the json.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import av
from bench_decoding import FPS, write_video

from timeviper.config import FramesConfig
from timeviper.datamodules.build import load_index
from timeviper.datamodules.fetch import fetch
from timeviper.datamodules.frames.container import Container
from timeviper.datamodules.frames.ranges import index_span
from timeviper.datamodules.mixture import Source, Unit
from timeviper.datamodules.remote.block_cache import BlockCache
from timeviper.datamodules.remote.storage import is_remote
from timeviper.datamodules.shards.index import index_shards
from timeviper.datamodules.shards.pool import write_shards
from timeviper.datamodules.shards.tar import SliceFile

TALK = [{"role": "user", "content": "What happens?"}, {"role": "assistant", "content": "Numbers count up."}]
HOUR = 3600 * FPS  # frames


class Run(NamedTuple):
    wall: float
    cpu: float
    requests: int
    sent: int
    pixels: int  # crc32


def hour(cache: Path, gop: int, ending: str) -> Path:
    """An hour of video that repeats its first minute, or as many frames as end with a group of pictures."""
    path = cache / f"hour_gop{gop}.{ending}"
    if path.exists():
        return path
    frames = -(-60 * FPS // gop) * gop
    minute = write_video(cache / f"{frames}frames_gop{gop}.mp4", frames / 60 / FPS, gop)
    partial = path.with_name(f"{path.stem}.part.{ending}")
    with av.open(str(partial), "w") as out, av.open(str(minute)) as model:
        target = out.add_stream_from_template(model.streams.video[0])
        for number in range(HOUR // frames):
            with av.open(str(minute)) as source:
                for packet in source.demux(source.streams.video[0]):
                    if packet.dts is None or packet.pts is None:
                        continue
                    shift = round(number * frames / FPS / packet.time_base)
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, target
                    out.mux(packet)
    return partial.replace(path)


def needed(unit: Unit, frames: FramesConfig, size: int) -> int:
    """Bytes without which the frames cannot be had."""
    total, plain = unit.record.members["json"].size, Container.packets
    (field,) = (name for name in unit.record.members if name != "json")

    def counted(self: Container, every_stream: bool = False) -> Iterator[av.Packet]:
        nonlocal total
        for packet in plain(self, every_stream):
            total += packet.size
            yield packet

    where = unit.record.members[field]
    with SliceFile(unit.shard, where.offset, where.size) as file:
        start, stop = index_span(file.read(4096), where.size) or (0, 0)
    Container.packets = counted
    try:
        fetch(unit, frames, size, {})
    finally:
        Container.packets = plain
    return total + stop - start


@contextmanager
def served(folder: Path, delay: float) -> Iterator[tuple[str, Any]]:
    """Address of a server in a process of its own, and where it counts requests and bytes."""
    context = multiprocessing.get_context("spawn")
    counts, told = context.Array("q", 2), context.SimpleQueue()
    process = context.Process(target=_serve, args=(folder, delay, counts, told), daemon=True)
    process.start()
    try:
        yield told.get(), counts
    finally:
        process.kill()
        process.join()


def _serve(folder: Path, delay: float, counts: Any, told: Any) -> None:
    sys.path.append(str(Path(__file__).parent.parent / "tests/support"))
    from range_server import serving

    with serving(folder) as server:
        server.delay = delay
        told.put(server.url)
        while True:
            time.sleep(0.02)
            counts[0], counts[1] = len(server.requests), sum(server.sent.values())


def measure(where: str, frames: FramesConfig, size: int, cache: BlockCache, counts: Any = None) -> Run:
    """One sample, its index read before."""
    source = Source("x", load_index(where))
    time.sleep(0.1 if counts else 0.0)
    before = counts[:] if counts else [0, 0]
    wall, cpu = time.perf_counter(), time.process_time()
    pixels = fetch(source[0], frames, size, {}, cache).media[0].pixels
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    time.sleep(0.1 if counts else 0.0)
    after = counts[:] if counts else [0, 0]
    return Run(wall, cpu, after[0] - before[0], after[1] - before[1], zlib.crc32(pixels.tobytes()))


def table(cache: Path, count: int, gops: list[int], size: int, runs: int, delays: list[float]) -> list[str]:
    """The lines of a page."""
    lines = [
        f"{count} frames of {size} px of an hour (H.264, 320x240, 30 frames a second, B-frames) in a shard.",
        "Each run reads what no cache has yet; its index was read before. CPU is that of the reading process alone, "
        "with what the cache writes.",
        f"Median of {runs} runs in turns. Needed: packets that are decoded, the list of packets, the json. The load of "
        f"the machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.",
        "",
        "| file | a request | wall s | beyond disk s | CPU s | requests | MB | of needed | of the file | same pixels |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    frames = FramesConfig(fps=1.0, max_frames=count)
    for name, gop in [*(("mp4", gop) for gop in gops), ("mkv", gops[0])]:
        folder = cache / f"far_{name}_{gop}"
        if not (folder / "index.json").exists():
            video = hour(cache, gop, name)
            write_shards([{"__key__": "hour", "json": {"messages": TALK}, name: video}], folder)
            index_shards(folder)
        source = Source("x", load_index(folder))
        must, whole = needed(source[0], frames, size), source[0].record.members[name].size
        found: dict[float, list[Run]] = {}
        for _ in range(runs):
            found.setdefault(0.0, []).append(measure(str(folder), frames, size, BlockCache("", 0)))
            for delay in delays:
                with served(folder, delay) as (url, counts), TemporaryDirectory(dir=cache) as kept:
                    assert is_remote(url)
                    found.setdefault(delay, []).append(measure(url, frames, size, BlockCache(kept), counts))
        disk = statistics.median(run.wall for run in found[0.0])
        for delay, those in found.items():
            wall, cpu, requests, sent = (statistics.median(values) for values in [*zip(*those)][:4])
            same = "yes" if {run.pixels for run in those} == {found[0.0][0].pixels} else "NO"
            far = f"{wall - disk:.2f}" if delay else ""
            share = f"{requests:.0f} | {sent / 1e6:.1f} | {sent / must:.2f} | {sent / whole:.2f}" if delay else "| | |"
            place = f"{1e3 * delay:.0f} ms" if delay else "disk"
            lines.append(f"| {name}, GOP {gop} | {place} | {wall:.2f} | {far} | {cpu:.2f} | {share} | {same} |")
            print(lines[-1], flush=True)
    return lines
