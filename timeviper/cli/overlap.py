"""`timeviper shards overlap`: what held-out media and training shards have in common, for people."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from timeviper.console import ProgressLine
from timeviper.datamodules.checks.overlap import find_overlap


def overlap(shards: Path, media: Path, workers: int, json_file: Path | None, state: Path | None) -> bool:
    """Compare, print and write what was found; whether that is nothing, and all could be compared."""
    with ProgressLine(sys.stderr, stays=False) as line:
        found = find_overlap(shards, media, workers, lambda n, name: line(f"{n:,} media seen, now {name}"), state)
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(asdict(found), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, reason in found.unreadable:
        print(f"{name}  cannot be compared by look: {reason}")
    for pair in found.found:
        how = "has the bytes of" if pair.rms is None else f"looks like (they differ by {pair.rms:.1f} of 255)"
        print(f"{pair.shard}  {pair.key}  {pair.member} {how} {pair.media}")
    there = len({pair.media for pair in found.found})
    samples = len({(pair.shard, pair.key) for pair in found.found})
    print(
        f"{there} of {found.media} media of {media} are in {samples} samples of {shards} ({found.compared} media); "
        f"{len(found.unreadable)} could not be compared by look"
    )
    return not found.found and not found.unreadable
