"""`timeviper shards write`: a person's data become shards, with a live line of progress."""

from __future__ import annotations

import os
import re
import time
from datetime import timedelta
from pathlib import Path

from timeviper.console import LiveLine
from timeviper.datamodules.formats.manifest import read_manifest
from timeviper.datamodules.shards.pool import Written, write_shards


def write(
    source: Path, out: Path, form: str, part: str, workers: int, samples_per_shard: int, media_root: Path | None
) -> bool:
    """Write (one part of) `source` into `out`; False if a person stopped it. Errors are ValueError or OSError."""
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{out} lies in {source}, so shards would become data of the next run; choose another folder")
    number, parts = _part(part)
    progress = None
    try:
        manifest = read_manifest(source, form, media_root)
        for note in manifest.notes:
            print(f"note: {note}")
        total = len(manifest.samples)
        firsts = range((number - 1) * samples_per_shard, total, parts * samples_per_shard)
        shards, mine = len(firsts), sum(min(samples_per_shard, total - first) for first in firsts)
        print(f"{source}: {total:,} samples, format {manifest.form}; part {part}: {mine:,}", flush=True)
        progress = _Progress(mine, shards)
        workers = max(1, min(workers or os.cpu_count() or 1, shards))
        write_shards(manifest.samples, out, samples_per_shard, workers=workers, part=(number, parts), progress=progress)
    except BaseException as error:
        if progress:
            progress.close()
        if isinstance(error, KeyboardInterrupt):
            print(f"stopped; the finished shards are whole and stay in {out}, and the same command continues")
            return False
        raise
    progress.close()
    print(f"{mine:,} samples in {shards:,} shards: {out}")
    print(f"train on them:  timeviper train RECIPE data.sources.mine.shards={out}")
    return True


def _part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"--part {text}: write I/N with I from 1 to N, such as 1/8 ... 8/8")
    return int(found[1]), int(found[2])


class _Progress:
    """Samples, shards, megabytes a second and time left, of `samples` samples in `shards` shards."""

    def __init__(self, samples: int, shards: int) -> None:
        self.samples, self.shards = samples, shards
        self.line, self.begun = LiveLine(), time.monotonic()
        self.last = Written()

    def __call__(self, done: Written) -> None:
        self.last = done
        self.line(self._text())

    def close(self) -> None:
        """Leave the last state on the screen."""
        self.line(self._text(), last=True)

    def _text(self) -> str:
        done, seconds = self.last, time.monotonic() - self.begun
        new, left = done.samples - done.kept, self.samples - done.samples
        line = f"{done.samples:,}/{self.samples:,} samples  {done.shards:,}/{self.shards:,} shards"
        if done.kept:
            line += f"  {done.kept:,} samples were there"
        if new:
            line += f"  {done.bytes / 1e6 / max(seconds, 1e-3):.1f} MB/s"
        if new and left:
            line += f"  left {timedelta(seconds=round(seconds / new * left))}"
        return line
