"""`timeviper shards write`: a person's data become shards, with a live line of progress."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path

from timeviper.console import ProgressLine
from timeviper.datamodules.formats.manifest import read_manifest
from timeviper.datamodules.shards.pool import Written, write_shards


def write(
    source: Path, out: Path, form: str, part: str, workers: int, samples_per_shard: int, media_root: Path | None
) -> bool:
    """Write (one part of) `source` into `out`; False if a person stopped it. Errors are ValueError or OSError."""
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{out} lies in {source}, so shards would become data of the next run; choose another folder")
    number, parts = _part(part)
    try:
        manifest = read_manifest(source, form, media_root)
        for note in manifest.notes:
            print(f"note: {note}")
        total = len(manifest.samples)
        firsts = range((number - 1) * samples_per_shard, total, parts * samples_per_shard)
        shards, mine = len(firsts), sum(min(samples_per_shard, total - first) for first in firsts)
        print(f"{source}: {total:,} samples, format {manifest.form}; part {part}: {mine:,}", flush=True)
        workers = max(1, min(workers or os.cpu_count() or 1, shards))
        with ProgressLine() as line:
            show = partial(_show, line, mine, shards)
            write_shards(manifest.samples, out, samples_per_shard, workers=workers, part=(number, parts), progress=show)
    except KeyboardInterrupt:
        print(f"stopped; the finished shards are whole and stay in {out}, and the same command continues")
        return False
    print(f"{mine:,} samples in {shards:,} shards: {out}")
    print(f"train on them:  timeviper train RECIPE data.sources.mine.shards={out}")
    return True


def _part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"--part {text}: write I/N with I from 1 to N, such as 1/8 ... 8/8")
    return int(found[1]), int(found[2])


def _show(line: ProgressLine, samples: int, shards: int, done: Written) -> None:
    more = [f"{done.shards:,}/{shards:,} shards"]
    if done.kept:
        more.append(f"{done.kept:,} samples were there")
    if done.samples > done.kept:
        more.append(f"{done.bytes / 1e6 / line.seconds:.1f} MB/s")
    line.count(done.samples, samples, "samples", *more, kept=done.kept)
