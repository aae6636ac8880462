"""Which samples of a source are kept from training: all about a file, or none, and the same ones on every machine."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

from timeviper.datamodules.shards.writer import Sample


def cut(samples: Sequence[Sample], share: float) -> tuple[list[Sample], list[Sample]]:
    """Samples to train on, and about `share` of all media with all that is said of them, by a hash of their names."""
    parts: tuple[list[Sample], list[Sample]] = ([], [])
    for sample in samples:
        parts[zlib.crc32(_name(sample).encode(errors="replace")) < share * 2**32].append(sample)
    return parts


def _name(sample: Sample) -> str:
    """That of its first file, without folders, which differ between machines; else its key."""
    files = sorted((str(member), file) for member, file in sample.items() if isinstance(file, Path))
    return files[0][1].name if files else str(sample["__key__"])
