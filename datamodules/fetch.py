"""Where a unit's texts and frames come from: a slice of a shard, or a Python class. Nothing else opens media."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from timeviper.config import FramesConfig
from timeviper.datamodules.dataset_class import ClassDataset
from timeviper.datamodules.mixture import Unit
from timeviper.datamodules.shard_schema import parse_record
from timeviper.datamodules.shard_tar import SliceFile, read_member
from timeviper.datamodules.video import Frames, read_video


@dataclass(frozen=True)
class Fetched:
    """One conversation and the media that it is about."""

    conversation: dict[str, Any]
    """`type` and `messages`, as in the shard's json."""
    media: list[Frames]

    @property
    def missing(self) -> int:
        """Frames that were wanted and could not be decoded."""
        return sum(m.missing for m in self.media)


def fetch(unit: Unit, frames: FramesConfig, size: int, classes: Mapping[str, ClassDataset]) -> Fetched:
    """Read and decode a unit; `classes` are the sources that are Python classes, by name.

    Raises ValueError or OSError that says what is wrong with the sample, never anything else.
    """
    if dataset := classes.get(unit.source):
        record = dataset.record(unit.record.key)
        opened = {m["member"]: dataset.open(unit.record.key, m["member"]) for m in record["media"]}
    else:
        record = _record(unit)
        opened = {m["member"]: SliceFile(unit.shard, *unit.record.members[m["member"]][:2]) for m in record["media"]}
    media = [read_video(opened[m["member"]], size, frames, m.get("duration")) for m in record["media"]]
    return Fetched(record["conversations"][unit.conversation], media)


def _record(unit: Unit) -> dict[str, Any]:
    """The sample's json, with its checksum verified: a flipped bit in a text reads as good text."""
    raw = read_member(unit.shard, *unit.record.members["json"])
    return parse_record(raw, unit.record.members)
