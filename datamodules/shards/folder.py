"""All shards of a folder on a disk, as columns.

They come from `index.safetensors` as far as that still holds, and from the index beside each shard where one was added
or written anew since, so that a folder without that file is read as well, only slower. A shard is as it was when its
tar has the size that was noted, and the index beside it is older than the file, or has the checksum that was noted.
What is large is brought to the node once (`node_files.py`); what is small is held by each process.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any

from timeviper.datamodules.ordered_pool import ordered
from timeviper.datamodules.shards.column_file import (
    FILE,
    Header,
    Read,
    copy_columns,
    in_memory,
    mapped,
    open_file,
    read_header,
    write_columns,
)
from timeviper.datamodules.shards.column_join import columns_of, join, pick, runs
from timeviper.datamodules.shards.columns import Columns
from timeviper.datamodules.shards.index_file import SUFFIX, ShardIndex
from timeviper.datamodules.shards.node_files import LASTING, NodeFiles
from timeviper.datamodules.shards.tar import LITTER
from timeviper.files import whole_file

log = logging.getLogger("timeviper")

SMALL = 1 << 24  # bytes, of some 100,000 samples
BATCH = 64  # shards that become one part, or the work of a process
CRC = re.compile(rb'"crc32":"([0-9a-f]{8})"')
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)


@dataclass(slots=True)
class Entry:
    """What a folder has of one shard."""

    bytes: int | None = None
    """Of the tar; None where that is missing."""
    index: os.stat_result | None = None
    """The file beside it."""


def remedy(folder: Path) -> str:
    return f"run `timeviper shards index {folder}`"


def scan(folder: Path) -> dict[str, Entry]:
    """Every shard by the name of its tar, those that only have an index, too; in order."""
    found: dict[str, Entry] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if not name.endswith((SUFFIX, ".tar")) or LITTER.fullmatch(name):
                continue
            if name.endswith(SUFFIX):
                found.setdefault(name.removesuffix(SUFFIX) + ".tar", Entry()).index = entry.stat()
            else:
                found.setdefault(name, Entry()).bytes = entry.stat().st_size
    return dict(sorted(found.items()))


def load_folder(
    folder: Path,
    wanted: Collection[str] | None,
    read: Callable[[Path], ShardIndex],
    nodes: NodeFiles,
) -> Columns:
    """The shards of a folder, or those with the names `wanted`, in order. read: what one has beside it.

    ValueError that says what to do where one has no index, or that of another tar.
    """
    entries = scan(folder)
    names = [*entries] if wanted is None else sorted(wanted)
    if not names:
        return columns_of([])
    file, known, fresh = folder / FILE, None, {}
    if file.exists():
        with open_file(file) as opened:
            known = of_file(opened.read, str(file), remedy(folder), f"{folder}/", str(file.resolve()), nodes)
            fresh = still_true(folder, entries, known, os.fstat(opened.fd).st_mtime_ns)
        if wanted is None and (gone := [name for name in known.names() if name not in entries]):
            raise ValueError(
                f"{len(gone)} shards are missing, though {file} knows them: {', '.join(gone[:3])}; put them back or "
                f"{remedy(folder)}"
            )
    others = [name for name in names if name not in fresh]
    if known and not others:
        return pick(known, [fresh[name] for name in names])
    beside = sum(entry.index.st_size for name in others if (entry := entries.get(name)) and entry.index)
    if (known.nbytes if known else 0) + beside <= SMALL:
        return join([*_parts(folder, names, known, fresh, read, 0)])

    def look() -> str:
        stats = ((n, e.bytes, e.index and (e.index.st_size, e.index.st_mtime_ns)) for n, e in entries.items())
        return sha256(repr((names, [*stats], known and known.arrays["shard_crc32"].tobytes())).encode()).hexdigest()[
            :16
        ]

    def make(path: Path) -> None:
        what = f"{len(others):,} shards of {folder} are not in its {FILE}" if known else f"{folder} has no {FILE}"
        log.warning("%s: their own indexes are read now; `timeviper shards index` does it once for all", what)
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        write_columns(path, [*_parts(folder, names, known, fresh, read, workers)])

    try:
        path = nodes.get(f"{folder.resolve()} {'' if wanted is None else names}", look, make)
        return mapped(path, str(path), f"delete {path}", f"{folder}/")
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        _say_no_room(str(folder), error)
        return join([*_parts(folder, names, known, fresh, read, 0)])


def of_file(
    read: Read,
    where: str,
    remedy: str,
    beside: str,
    place: str,
    nodes: NodeFiles,
    *,
    small: int | None = None,
    reading: Any = map,
) -> Columns:
    """The columns of a file, wherever it lies. `place` names it among `nodes`, unless it has at most `small` bytes
    (None: `SMALL`).

    `where`, `remedy`: for messages. `beside`: as in `Columns`. `reading`: as for `copy_columns`.
    """
    seen: list[Header] = []

    def look() -> str:
        seen.append(read_header(read, where, remedy))
        return seen[-1].digest

    def make(path: Path) -> None:
        header = seen[-1] if seen else read_header(read, where, remedy)
        with whole_file(path, LASTING) as partial_file, partial_file.open("wb") as file:
            copy_columns(read, header, lambda at, data: os.pwrite(file.fileno(), data, at), where, remedy, reading)

    small = SMALL if small is None else small
    if small and read_header(read, where, remedy).bytes <= small:
        return in_memory(read, where, remedy, beside)

    for attempt in range(2):
        try:
            path = nodes.get(place, look, make)
            # A copy that has just been made is as the file is.
            return mapped(path, *((where, remedy) if attempt else (str(path), f"delete {path}")), beside)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            _say_no_room(where, error)
            return in_memory(read, where, remedy, beside)
        except ValueError:  # somebody has cut the copy, not the file; else the same comes again
            if attempt:
                raise
            nodes.forget(place)
    raise AssertionError


def _say_no_room(where: str, error: OSError) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        log.warning("the index of %s cannot be kept for all ranks of this node (%s): each holds its own", where, error)


def still_true(folder: Path, entries: dict[str, Entry], known: Columns, written: int) -> dict[str, int]:
    """The shards of which `known`, `written` at that time (ns), is still right: their numbers by name."""
    names = known.names()
    numbers = dict(zip(names, range(len(names))))
    if len(numbers) < len(names):
        twice = next(name for number, name in enumerate(names) if numbers[name] != number)
        raise ValueError(f"index {folder / FILE} tells of {twice} twice; delete it and {remedy(folder)}")
    sizes, sums = known.arrays["shard_bytes"].tolist(), known.arrays["shard_crc32"].tolist()
    return {
        name: number
        for name, number in numbers.items()
        if (entry := entries.get(name))
        and entry.bytes == sizes[number]
        and (
            entry.index is None
            or entry.index.st_mtime_ns <= written
            or _noted_crc(folder / f"{name.removesuffix('.tar')}{SUFFIX}") == sums[number]
        )
    }


def _noted_crc(index: Path) -> int | None:
    """The checksum that an index file of one shard begins with."""
    try:
        with index.open("rb") as file:
            found = CRC.search(file.read(64))
    except OSError:
        return None
    return int(found[1], 16) if found else None


def _parts(
    folder: Path,
    names: Sequence[str],
    known: Columns | None,
    fresh: dict[str, int],
    read: Callable[[Path], ShardIndex],
    workers: int,
) -> Iterator[Columns]:
    """The shards in order: of `known` those that are `fresh`, the others read by so many processes (0: this one)."""
    jobs = [
        ([*batch], was_there)
        for was_there, run in groupby(names, lambda name: name in fresh)
        for batch in ([run] if was_there else batches(run))
    ]
    made = ordered(partial(_read_all, folder, read), [job for job, was_there in jobs if not was_there], workers)
    for batch, was_there in jobs:
        if was_there and known:
            yield from runs(known, [fresh[name] for name in batch])
        else:
            yield next(made)[1]


def _read_all(folder: Path, read: Callable[[Path], ShardIndex], names: list[str]) -> Columns:
    return columns_of((read(folder / name) for name in names), f"{folder}/")


def batches(names: Iterable[str]) -> Iterator[list[str]]:
    held: list[str] = []
    for name in names:
        held.append(name)
        if len(held) == BATCH:
            yield held
            held = []
    if held:
        yield held


def merge(folder: Path, known: Columns | None, fresh: dict[str, int], new: dict[str, Columns]) -> Path | None:
    """Write the columns of a folder: what is `fresh` of `known`, and `new` ones of single shards. None: as it is."""
    names = sorted({*fresh, *new})
    if not names or (known and not new and known.names() == names):
        return None
    parts: list[Columns] = []
    for is_new, run in groupby(names, lambda name: name in new):
        if is_new:
            parts += [join([new[name] for name in batch]) for batch in batches(run)]
        elif known:
            parts += runs(known, [fresh[name] for name in run])
    return write_columns(folder / FILE, parts)
