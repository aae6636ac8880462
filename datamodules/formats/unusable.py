"""What cannot be used of a source: listed whole in a file beside the shards, and left out if a person says so."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from timeviper.config import DataConfig
from timeviper.files import write_whole

ALWAYS_ALLOWED = 2  # as in training: one bad file must not stop a small source
MAX_SKIPPED = DataConfig().max_skipped
SHOWN = 10  # listed in a message


class Unusable(NamedTuple):
    """An entry, or a sample that was made of it, with what is wrong."""

    where: str  # "line 3", or the key of a sample
    problem: str
    entry: Any  # whole, as the source has it; of a sample its json


def list_file(out: Path, part: tuple[int, int] = (1, 1), name: str = "shard") -> Path:
    """Where those of one part of the shards of a name are listed."""
    of_name = "" if name == "shard" else f"-{name}"
    return out / f"unusable{of_name}{'' if part[1] == 1 else f'-{part[0]}-of-{part[1]}'}.jsonl"


def write_list(path: Path, found: Sequence[Unusable]) -> None:
    """A line each; without any, no file, not even one of an earlier run."""
    if not found:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(one._asdict(), ensure_ascii=True, default=str) + "\n" for one in found)
    write_whole(path, "".join(lines))


def summary(found: Sequence[Unusable]) -> str:
    """The first few, a line each."""
    more = [f"... and {len(found) - SHOWN:,} more"] if len(found) > SHOWN else []
    return "\n  ".join(
        [
            f"{len(found):,} unusable",
            *(f"{u.where}: {u.problem}" if u.where else u.problem for u in found[:SHOWN]),
            *more,
        ]
    )


def allowed(found: int, total: int, max_skipped: float) -> bool:
    """Whether so many of `total` may be left out."""
    return found <= max(ALWAYS_ALLOWED, max_skipped * total)


def way_on(found: int, total: int, listed: Path, max_skipped: float) -> str:
    """What a person can do about them."""
    if found >= total:
        return f"All of them are in {listed}, whole and with what is wrong."
    share = "" if allowed(found, total, max_skipped) else f" --max-skipped {_above(found / total)}"
    return (
        f"All of them are in {listed}, whole and with what is wrong. Mend them, or leave them out and write the other "
        f"{total - found:,}: --skip-unusable{share}"
    )


def _above(share: float) -> str:
    """Two digits that are not below."""
    digits = f"{share:.2g}"
    return digits if float(digits) >= share else f"{float(digits) * 1.1:.2g}"
