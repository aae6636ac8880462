"""Where a unit's texts and frames come from: a slice of a shard, or a Python class. Nothing else opens media."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from timeviper.config import FramesConfig
from timeviper.datamodules.dataset_class import ClassDataset
from timeviper.datamodules.frames.stored import decode_features
from timeviper.datamodules.frames.video import Frames, frame_count, read_video
from timeviper.datamodules.mixture import Unit
from timeviper.datamodules.remote.block_cache import BlockCache
from timeviper.datamodules.remote.member_file import open_member, read_whole
from timeviper.datamodules.shards.block_sums import BLOCK_BYTES
from timeviper.datamodules.shards.schema import FEATURES, parse_record


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


def fetch(
    unit: Unit,
    frames: FramesConfig,
    size: int,
    classes: Mapping[str, ClassDataset],
    cache: BlockCache | None = None,
) -> Fetched:
    """Read and decode a unit; `classes` are the sources that are Python classes, by name.

    `cache` keeps what was read of remote shards (None: the default folder). Raises ValueError or OSError that says
    what is wrong with the sample, never anything else.
    """
    record, media = fetch_sample(unit, frames, size, classes, cache)
    return Fetched(record["conversations"][unit.conversation], media)


def fetch_sample(
    unit: Unit,
    frames: FramesConfig,
    size: int,
    classes: Mapping[str, ClassDataset],
    cache: BlockCache | None = None,
) -> tuple[dict[str, Any], list[Frames]]:
    """The whole json of a unit's sample and its media; otherwise as `fetch`."""
    if dataset := classes.get(unit.source):
        record = dataset.record(unit.record.key)
        opened = {m["member"]: dataset.open(unit.record.key, m["member"]) for m in record["media"]}
        return record, [read_video(opened[m["member"]], size, frames, m.get("duration")) for m in record["media"]]
    record = parse_record(read_whole(unit.shard, unit.record, "json", cache), unit.record.members)
    if unit.record.fingerprint:
        raw = read_whole(unit.shard, unit.record, FEATURES, cache)
        return record, list(decode_features(raw, size, frames))
    return record, [_medium(unit, medium, frames, size, cache) for medium in record["media"]]


def _medium(unit: Unit, medium: dict[str, Any], frames: FramesConfig, size: int, cache: BlockCache | None) -> Frames:
    member, duration = medium["member"], medium.get("duration")
    # A frame is wanted for each block, on average: then hardly a block will be left out.
    dense = frame_count(duration or unit.record.duration, frames) * BLOCK_BYTES >= unit.record.members[member].size
    with open_member(unit.shard, unit.record, member, cache, whole=dense or medium["type"] == "image") as file:
        return read_video(file, size, frames, duration)
