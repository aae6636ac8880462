"""The doctor of shards: everything that training would stumble over, found beforehand.

`timeviper shards check` reads every byte and decodes every wanted frame, prints what it finds with shard and
sample, and exits with 1 if there are problems. What is a problem and what a note: `defects.py`. Shards are examined
one by one and remembered (`kept.py`); what concerns several, media that are there twice, is looked for at the end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from timeviper.datamodules.checks.defects import NOTES, PROBLEMS, Defect, Report
from timeviper.datamodules.checks.forecast import Forecast
from timeviper.datamodules.checks.kept import Found, Shelf, shelf
from timeviper.datamodules.checks.sample import CheckConfig, Examined, Sample, examine
from timeviper.datamodules.checks.twins import DETAILS, find_twins, is_usable
from timeviper.datamodules.ordered_pool import ordered
from timeviper.datamodules.shards.column_file import FILE, in_memory, open_file
from timeviper.datamodules.shards.index import index_path, read_index
from timeviper.datamodules.shards.index_file import MERGED, SUFFIX, SampleRecord, decode
from timeviper.datamodules.shards.tar import Member, ShardError, group, is_litter, iter_tar

__all__ = ["NOTES", "PROBLEMS", "CheckConfig", "Defect", "Report", "check_shards", "find_shards", "walk_shard"]

NUMBERED = re.compile(r"(.*?)(\d+)\.tar")


def check_shards(
    folder: str | Path,
    config: CheckConfig | None = None,
    workers: int = 0,
    progress: Callable[[int, str], None] | None = None,
    state: str | Path | None = None,
    part: tuple[int, int] = (1, 1),
) -> Report:
    """Check every shard below `folder`, to the last byte. ValueError if there is none.

    `workers` processes, 0: this one alone; the report does not depend on it. `progress` is called with the
    number of samples done and the shard of the last one. `state`: a folder that remembers each shard that is done, so
    that the same call goes on after a stop. `part`, i of n: only each n-th shard from the i-th on; the part that is
    done last reports of all, those before of their own shards, without comparing media.
    """
    folder, config = Path(folder), config or CheckConfig()
    if part != (1, 1) and state is None:
        raise ValueError("a part of a check needs a folder (state) in which the parts come together")
    tars = find_shards(folder)
    with shelf(Path(state) if state else None, folder, config) as kept:
        done, mine = 0, tars[part[0] - 1 :: part[1]]
        here = {tar for tar in mine if state and kept.has(tar)}
        for sample, shard in examine_shards(kept, folder, [tar for tar in mine if tar not in here], config, workers):
            done += isinstance(sample, Sample)
            if progress:
                progress(done, shard)
        if progress:
            progress(done, "what shards have in common")
        left = [tar for tar in tars if tar not in mine and not kept.has(tar)] if part[1] > 1 else []
        return _report(kept, folder, mine if left else tars, config, waiting=len(left))


@dataclass(frozen=True)
class _End:
    """Travels behind the samples of a shard."""

    tar: Path
    about: dict[str, Any]


def examine_shards(
    kept: Shelf, folder: Path, tars: list[Path], config: CheckConfig, workers: int
) -> Iterator[tuple[Sample | Defect, str]]:
    """Put what is found in some shards into `kept`, each when it is done; gives each sample with its shard."""

    def jobs() -> Iterator[Sample | Defect | _End]:
        for tar in tars:
            about = kept.about(tar)
            yield from walk_shard(tar, str(tar.relative_to(folder)))
            yield _End(tar, about)

    found = Found()
    for job, examined in ordered(partial(_examined, config=config), jobs(), workers, _crashed):
        if isinstance(job, _End):
            kept.put(job.tar, found, job.about)
            found = Found()
        else:
            found.add(job, examined)
            yield job, job.shard


def _examined(job: Sample | Defect | _End, config: CheckConfig) -> Examined:
    """Problems travel with the samples so that all stay in order."""
    return examine(job, config) if isinstance(job, Sample) else Examined()


def _crashed(job: Sample | Defect | _End) -> Examined:
    return Examined([("crash", "decoding it ended the process: not a video to train on, and maybe an attack")])


def _report(kept: Shelf, folder: Path, tars: list[Path], config: CheckConfig, waiting: int) -> Report:
    report, forecast = Report(shards=len(tars), waiting=waiting), Forecast()
    twins = None
    if not waiting:
        for found in _around(folder, tars):
            report.add(found, config.accept)
        usable = [np.array([is_usable(e, config.accept) for e in kept.entries(tar)], bool) for tar in tars]
        twins = find_twins(kept, tars, usable)
    names: dict[tuple[int, int], str] = {}  # of samples that others are compared with
    named = twins.named if twins else set()
    for number, tar in enumerate(tars):
        shard, entries = str(tar.relative_to(folder)), kept.entries(tar)
        names |= {(number, i): entries[i].key for i in range(len(entries)) if (number, i) in named}
        members = [(entry, member) for entry in entries for member in entry.members]
        for place, kind, other, at, rms in twins.of_shard(number) if twins else ():
            there = tars[other]
            apart = ", in another folder: held-out data must not be training data" if there.parent != tar.parent else ""
            first = f"{names[other, at]!r} in {there.relative_to(folder)}{apart}"
            entry, member = members[place]
            entry.findings.append((kind, DETAILS[kind].format(member, first, rms)))
        for entry in entries:
            for kind, detail in entry.findings:
                report.add(Defect(shard, entry.key, kind, detail), config.accept)
            if entry.seconds is not None:
                forecast.add(shard, entry.key, entry.seconds, entry.frames, entry.conversations)
            report.samples += entry.sample
    report.forecast = forecast.summary(config.frames, config.image_size)
    return report


def find_shards(folder: Path) -> list[Path]:
    """All tars below a folder, in order. ValueError if there is none."""
    tars = sorted(p for p in folder.rglob("*.tar") if p.is_file() and not is_litter(p))
    if not tars:
        raise ValueError(f"no shards: {folder} has no .tar in it")
    return tars


def _around(folder: Path, tars: list[Path]) -> Iterator[Defect]:
    """What lies beside the shards, or does not and should."""
    for index in sorted(p for p in folder.rglob(f"*{SUFFIX}") if not is_litter(p)):
        tar = index.with_name(index.name.removesuffix(SUFFIX) + ".tar")
        if not tar.exists():
            detail = f"the shard is missing, though its index {index.name} is there; put it back or delete the index"
            yield Defect(str(tar.relative_to(folder)), "", "index", detail)
    for merged in sorted([*folder.rglob(FILE), *folder.rglob(MERGED)]):
        yield from _merged(folder, merged, [tar for tar in tars if tar.parent == merged.parent])
    for partial_file in sorted(folder.rglob("*.tar.*tmp")):
        name = str(partial_file.relative_to(folder))
        yield Defect(name, "", "shards", "left over from a writer that was stopped; run it again, or delete this")
    rows: dict[tuple[Path, str], dict[int, Path]] = {}
    for tar in tars:
        if match := NUMBERED.fullmatch(tar.name):
            rows.setdefault((tar.parent, match[1]), {})[int(match[2])] = tar
    for row in rows.values():
        for before, number in zip(sorted(row), sorted(row)[1:]):
            if number > before + 1:
                detail = f"{number - before - 1} numbers are missing between {row[before].name} and this shard"
                yield Defect(str(row[number].relative_to(folder)), "", "shards", detail)


def _merged(folder: Path, merged: Path, tars: list[Path]) -> Iterator[Defect]:
    """The index of a folder beside those of its shards."""
    remedy, name = f"run `timeviper shards index {merged.parent}`", str(merged.relative_to(folder))
    try:
        known = _sums(merged, remedy)
    except (ValueError, OSError) as error:
        yield Defect(name, "", "index", str(error))
        return
    for tar in tars:
        if tar.name not in known:
            yield Defect(str(tar.relative_to(folder)), "", "index", f"is not in {merged.name}; {remedy}")
        elif index_path(tar).exists():
            with suppress(ValueError, OSError):  # what is wrong with its own index comes with its samples
                if read_index(tar).crc32 != known[tar.name]:
                    detail = f"{merged.name} and {index_path(tar).name} tell it differently; delete both and {remedy}"
                    yield Defect(str(tar.relative_to(folder)), "", "index", detail)
    for shard in map(merged.with_name, known):
        if not shard.exists():
            detail = f"the shard is missing, though {merged.name} knows it; put it back or {remedy}"
            yield Defect(str(shard.relative_to(folder)), "", "index", detail)


def _sums(merged: Path, remedy: str) -> dict[str, int | None]:
    """What an index of many shards notes of each: the checksum of what the index of that shard alone says."""
    if merged.name == MERGED:
        return {s.name: s.crc32 for s in decode(merged.read_bytes(), merged.name, remedy, str)}
    with open_file(merged) as file:
        columns = in_memory(file.read, merged.name, remedy, str(merged))
    return dict(zip(columns.names(), columns.arrays["shard_crc32"].tolist()))


def walk_shard(tar: Path, shard: str) -> Iterator[Sample | Defect]:
    """The whole samples of one shard, as far as they can be got at, and what is wrong with the others.

    In a damaged archive an index that still fits tells where the samples are; without one, those before the
    damage come out.
    """
    known: dict[str, SampleRecord] | None = None
    try:
        known = {record.key: record for record in read_index(tar).samples}
    except (ValueError, OSError) as error:
        yield Defect(shard, "", "index", str(error))
    members, damage = [], None
    try:
        for member in iter_tar(tar):
            members.append(member)
    except (ShardError, OSError) as error:
        damage = error
        detail = error.detail if isinstance(error, ShardError) else f"cannot be read: {error}"
        yield Defect(shard, getattr(error, "key", ""), getattr(error, "kind", "tar"), detail)
        if isinstance(error, OSError):
            return
    if damage and known:
        members = [Member(r.key, f, *at[:2]) for r in known.values() for f, at in r.members.items()]
    size, keys = tar.stat().st_size, set()
    for found in group(tar, [m for m in members if m.offset + m.size <= size]):
        if isinstance(found, ShardError):
            yield Defect(shard, found.key, found.kind, found.detail)
            keys.add(found.key)
            continue
        keys.add(found[0])
        if known is not None and found[0] not in known:
            yield Defect(shard, found[0], "index", f"is not in {index_path(tar).name}; delete that and write it anew")
        yield Sample(tar, shard, *found, known.get(found[0]) if known else None)
    for key in (k for k in known or {} if k not in keys):
        yield Defect(shard, key, "missing", f"is in {index_path(tar).name}, but not in the tar; copy the shard again")
