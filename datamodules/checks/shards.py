"""The doctor of shards: everything that training would stumble over, found beforehand.

`timeviper shards check` reads every byte and decodes every wanted frame, prints what it finds with shard and
sample, and exits with 1 if there are problems. What is a problem and what a note: `defects.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from timeviper.datamodules.checks.defects import MENDED, NOTES, PROBLEMS, Defect, Report
from timeviper.datamodules.checks.forecast import Forecast
from timeviper.datamodules.checks.sample import CheckConfig, Examined, Sample, examine
from timeviper.datamodules.checks.twins import Twins
from timeviper.datamodules.ordered_pool import ordered
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
) -> Report:
    """Check every shard below `folder`, to the last byte. ValueError if there is none.

    `workers` processes, 0: this one alone; the report does not depend on it. `progress` is called with the
    number of samples done and the shard of the last one.
    """
    config = config or CheckConfig()
    tars = find_shards(Path(folder))
    report, forecast, twins = Report(shards=len(tars)), Forecast(), Twins()
    for found in _around(Path(folder), tars):
        report.add(found, config.accept)

    def samples() -> Iterator[Sample | Defect]:
        for tar in tars:
            yield from walk_shard(tar, str(tar.relative_to(folder)))

    for sample, examined in ordered(partial(_examine, config=config), samples(), workers, _crashed):
        if isinstance(sample, Defect):
            report.add(sample, config.accept)
            continue
        findings = list(examined.findings)
        if not any(kind in PROBLEMS and kind not in (*MENDED, *config.accept) for kind, _ in findings):
            findings += twins.of(sample, examined)  # of what is not used there can be no second use
        for kind, detail in findings:
            report.add(Defect(sample.shard, sample.key, kind, detail), config.accept)
        if examined.seconds is not None:
            forecast.add(sample.shard, sample.key, examined.seconds, examined.frames, examined.conversations)
        report.samples += 1
        if progress:
            progress(report.samples, sample.shard)
    report.forecast = forecast.summary(config.frames, config.image_size)
    return report


def _examine(sample: Sample | Defect, config: CheckConfig) -> Examined:
    """Problems travel with the samples so that all stay in order."""
    return Examined() if isinstance(sample, Defect) else examine(sample, config)


def _crashed(sample: Sample | Defect) -> Examined:
    return Examined([("crash", "decoding it ended the process: not a video to train on, and maybe an attack")])


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
    for merged in sorted(folder.rglob(MERGED)):
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
        there = decode(merged.read_bytes(), merged.name, remedy, lambda shard: str(merged.with_name(shard)))
    except (ValueError, OSError) as error:
        yield Defect(name, "", "index", str(error))
        return
    known = {shard.name: shard for shard in there}
    for tar in tars:
        if tar.name not in known:
            yield Defect(str(tar.relative_to(folder)), "", "index", f"is not in {merged.name}; {remedy}")
        elif index_path(tar).exists():
            with suppress(ValueError, OSError):  # what is wrong with its own index comes with its samples
                if read_index(tar) != known[tar.name]:
                    detail = f"{merged.name} and {index_path(tar).name} tell it differently; delete both and {remedy}"
                    yield Defect(str(tar.relative_to(folder)), "", "index", detail)
    for shard in there:
        if not shard.path.exists():
            detail = f"the shard is missing, though {merged.name} knows it; put it back or {remedy}"
            yield Defect(str(shard.path.relative_to(folder)), "", "index", detail)


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
