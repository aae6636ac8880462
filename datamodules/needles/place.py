"""Where in a long video a needle lies: how many frames the video is shown with, and in which part of it.

Samples carry it in their keys, `f10240-d03of10-v00002`: of the third video of 10,240 frames the needle in the fourth of
ten equal parts. So a map needs the answers alone, wherever the shards lie.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from timeviper.datamodules.shards.index_file import SampleRecord, ShardIndex

_KEY = re.compile(r"f(\d+)-d(\d+)of(\d+)-v(\d+)(?:#\d+)?$")


@dataclass(frozen=True, order=True)
class Place:
    """Of one needle."""

    frames: int
    """That the whole video is shown with."""
    part: int
    """Of the video, from 0; the needle's middle lies in it."""
    parts: int
    video: int
    """Its number among those of as many frames."""

    @property
    def key(self) -> str:
        return f"f{self.frames}-d{self.part:02d}of{self.parts:02d}-v{self.video:05d}"

    @property
    def depth(self) -> tuple[float, float]:
        """Shares of the length between which the needle's middle lies."""
        return self.part / self.parts, (self.part + 1) / self.parts

    @property
    def haystack(self) -> str:
        """What the needles of one video share."""
        return f"f{self.frames}-v{self.video:05d}"


def place_of(key: str) -> Place | None:
    """Read from the key of a sample, or of a question about one; None where it is no needle's."""
    found = _KEY.search(key)
    return Place(*map(int, found.groups())) if found else None


def by_length(shards: Iterable[ShardIndex], where: str | Path, count: int | None = None) -> dict[int, list[ShardIndex]]:
    """Shards of needles by the number of frames, shortest first; of each length only the first `count` videos.

    ValueError if they hold samples that are no needles, or needles at other depths than each other.
    """
    found: dict[int, list[ShardIndex]] = defaultdict(list)
    parts = set()
    for shard in shards:
        lengths: dict[int, list[SampleRecord]] = defaultdict(list)
        for sample in shard.samples:
            if (place := place_of(sample.key)) is None:
                raise ValueError(
                    f"{where} holds {sample.key!r}, which is no needle of a map; give the folder `val` of those that "
                    "`timeviper shards needles` made"
                )
            parts.add(place.parts)
            if count is None or place.video < count:
                lengths[place.frames].append(sample)
        for frames, samples in lengths.items():
            found[frames].append(replace(shard, samples=tuple(samples)))
    if len(parts) > 1:
        listed = " and ".join(map(str, sorted(parts)))
        raise ValueError(f"{where} holds videos in {listed} parts; a map is of one kind: give one of them")
    return dict(sorted(found.items()))
