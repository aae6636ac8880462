"""`timeviper shards write`: a person's data become shards, with a live line of progress."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from timeviper.console import ProgressLine
from timeviper.datamodules.formats.held_out import cut
from timeviper.datamodules.formats.manifest import Manifest, ManifestError, read_manifest
from timeviper.datamodules.formats.unusable import MAX_SKIPPED, Unusable, allowed, list_file, way_on, write_list
from timeviper.datamodules.shards.pool import Written, write_shards
from timeviper.datamodules.shards.tar import ShardError
from timeviper.datamodules.shards.writer import Sample


@dataclass(frozen=True)
class WriteOptions:
    """What a person may say beside source and folder."""

    form: str = "auto"
    part: str = "1/1"
    workers: int = 0
    samples_per_shard: int = 256
    media_root: Path | None = None
    ignore: Collection[str] = ()
    """Fields of the source that are as if they were not there."""
    only: Collection[str] = ()
    """`FIELD=VALUE` of the entries that are taken; empty: all."""
    frame_rate: float | None = None
    """Of frames that lie as pictures in folders, a second."""
    name: str = "shard"
    """What the tars are called, before their number."""
    held_out: Path | None = None
    """Folder for the samples that are kept from training."""
    share: float = 0.01
    """How much of the media these are about."""
    skip_unusable: bool = False
    max_skipped: float = MAX_SKIPPED


def write(source: Path, out: Path, options: WriteOptions) -> bool:
    """Write (one part of) `source` into `out`; False if a person stopped it. Errors are ValueError or OSError."""
    for folder in (out, options.held_out or out):
        if source.is_dir() and folder.resolve().is_relative_to(source.resolve()):
            raise ValueError(f"{folder} lies in {source}, so shards would become data of the next run; choose another")
    part = part_of(options.part)
    if not re.fullmatch(r"[\w-]+", options.name) or options.held_out == out:
        raise ValueError("--name is of letters, digits, - and _; and --held-out is another folder than OUT")
    try:
        manifest = read_manifest(
            source,
            options.form,
            options.media_root,
            ignore=options.ignore,
            only=options.only,
            partial=True,
            frame_rate=options.frame_rate,
        )
        listed = list_file(out, part, options.name)
        _leave_out(source, manifest, listed, options)
        for line in (*manifest.fields, *(f"note: {note}" for note in manifest.notes)):
            print(line)
        of = f" of {manifest.entries:,} entries" if manifest.entries != len(manifest.samples) else ""
        total, folders = len(manifest.samples), _folders(out, manifest, options)
        mine = sum(sum(_sizes(len(samples), options, part)) for _, samples in folders)
        print(f"{source}: {total:,} samples{of}, format {manifest.form}; part {options.part}: {mine:,}", flush=True)
        done = {folder: _write(samples, folder, options, part) for folder, samples in folders}
    except KeyboardInterrupt:
        print(f"stopped; the finished shards are whole and stay in {out}, and the same command continues")
        return False
    left_out = [error for written in done.values() for error in written.left_out]
    _tell_left_out(manifest, left_out, listed, options)
    for folder, written in done.items():
        print(f"{written.samples:,} samples in {written.shards:,} shards: {folder}")
    val = f" data.val.mine.shards={options.held_out}" if options.held_out in done else ""
    print(f"train on them:  timeviper train RECIPE data.sources.mine.shards={out}{val}")
    return True


def _folders(out: Path, manifest: Manifest, options: WriteOptions) -> list[tuple[Path, Sequence[Sample]]]:
    """What goes where. ValueError if nothing is left to train on."""
    if options.held_out is None:
        return [(out, manifest.samples)]
    kept, held = cut(manifest.samples, options.share)
    if not kept:
        raise ValueError(f"--share {options.share:g} holds out all {len(held):,} samples; choose a smaller one")
    if not held:
        print(
            f"note: no medium of these {len(kept):,} samples is among the share of {options.share:g} that is held out"
        )
        return [(out, kept)]
    return [(out, kept), (options.held_out, held)]


def _sizes(total: int, options: WriteOptions, part: tuple[int, int]) -> list[int]:
    """Samples in each shard of one part."""
    each, (number, parts) = options.samples_per_shard, part
    return [min(each, total - first) for first in range((number - 1) * each, total, parts * each)]


def _write(samples: Sequence[Sample], folder: Path, options: WriteOptions, part: tuple[int, int]) -> Written:
    """The shards of one part, with a line of progress."""
    sizes = _sizes(len(samples), options, part)
    shards, mine = len(sizes), sum(sizes)
    workers = max(1, min(options.workers or os.cpu_count() or 1, shards))
    with ProgressLine() as line:
        show = partial(_show, line, mine, shards)
        return write_shards(
            samples,
            folder,
            options.samples_per_shard,
            options.name,
            workers=workers,
            part=part,
            progress=show,
            skip=options.skip_unusable,
        )


def _leave_out(source: Path, manifest: Manifest, listed: Path, options: WriteOptions) -> None:
    """List the entries that cannot be used. ManifestError unless the others are to be written, and are enough."""
    found = manifest.unusable
    write_list(listed, found)
    if found:
        enough = bool(manifest.samples) and allowed(len(found), manifest.entries, options.max_skipped)
        if not (options.skip_unusable and enough):
            raise ManifestError(source, found, way_on(len(found), manifest.entries, listed, options.max_skipped))


def _tell_left_out(manifest: Manifest, left_out: list[ShardError], listed: Path, options: WriteOptions) -> None:
    """Entries and samples that were left out, with their number. ValueError if they are too many."""
    by_key = {sample["__key__"]: sample for sample in manifest.samples} if left_out else {}
    samples = [Unusable(error.key, error.detail, _shown(by_key[error.key])) for error in left_out]
    if not (found := [*manifest.unusable, *samples]):
        return
    write_list(listed, found)
    print(f"{len(found):,} unusable are left out ({len(samples):,} of them with files that cannot be read): {listed}")
    if not allowed(len(found), manifest.entries, options.max_skipped):
        raise ValueError(
            f"the shards are written, but {len(found):,} of {manifest.entries:,} are left out, more than --max-skipped "
            f"{options.max_skipped:g} allows: see {listed}, and mend them or allow more"
        )


def _shown(sample: Sample) -> dict[str, Any]:
    """A sample for the list: its json, with the paths of its files."""
    files = {name: str(value) for name, value in sample.items() if name not in ("__key__", "json")}
    return json.loads(sample["json"]) | {"files": files}


def part_of(text: str) -> tuple[int, int]:
    """I and N of `--part I/N`. ValueError if it is none."""
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
