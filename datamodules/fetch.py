"""Where a unit's texts and frames come from: a slice of a shard, or a Python class. Nothing else opens media."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

from timeviper.config import FramesConfig
from timeviper.datamodules.dataset_class import ClassDataset
from timeviper.datamodules.frames.container import Source, Still
from timeviper.datamodules.frames.part import Part, part_of
from timeviper.datamodules.frames.share import shared
from timeviper.datamodules.frames.stored import decode_features
from timeviper.datamodules.frames.stream import FrameStream
from timeviper.datamodules.frames.video import Empty, Frames, empty, frame_count, read_video
from timeviper.datamodules.mixture import Unit
from timeviper.datamodules.remote.block_cache import BlockCache
from timeviper.datamodules.remote.member_file import SampleFiles
from timeviper.datamodules.remote.storage import is_remote
from timeviper.datamodules.shards.index_file import SampleRecord
from timeviper.datamodules.shards.schema import FEATURES, media_type, parse_record

SMALL = 1 << 20  # bytes that arrive sooner than an answer to a further request
A_FRAME = 1 << 18  # bytes; a second of Full HD has twice as many
USUAL_SPACING = 4.0  # s from keyframe to keyframe, where the index does not say

Record = dict[str, Any]
"""The json of a sample in its full form."""


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
    empty: Empty = empty,
    texts: Record | None = None,
) -> Fetched:
    """Read and decode a unit; `classes` are the sources that are Python classes, by name.

    `cache` keeps what was read of remote shards (None: the default folder). `empty` makes the arrays in which frames
    are decoded. `texts`: as `local_texts` gave them. Raises ValueError or OSError that says what is wrong with the
    sample, never anything else.
    """
    record, media = fetch_sample(unit, frames, size, classes, cache, empty, unit.conversation, texts)
    return Fetched(record["conversations"][unit.conversation], media)


def local_texts(unit: Unit, classes: Mapping[str, ClassDataset]) -> Record | None:
    """The json of a unit's sample of a shard on a disk; None of other units. Raises as `fetch`."""
    if unit.source in classes or is_remote(unit.shard):
        return None
    raw = SampleFiles(unit.shard, unit.record).read("json")
    return parse_record(raw, unit.record.members, unit.conversation)


def fetch_sample(
    unit: Unit,
    frames: FramesConfig,
    size: int,
    classes: Mapping[str, ClassDataset],
    cache: BlockCache | None = None,
    empty: Empty = empty,
    only: int | None = None,
    texts: Record | None = None,
) -> tuple[Record, list[Frames]]:
    """The whole json of a unit's sample and its media; otherwise as `fetch`. `only` as for `parse_record`."""
    with SampleFiles(unit.shard, unit.record, cache) as files:
        record, stored = _texts(files, unit, frames, size, classes, only, texts)
        if stored:
            return record, stored
        media: list[Frames] = []
        for opened, wanted, duration, part in _media(files, unit, record, frames, classes):
            with opened() as source:
                media.append(read_video(source, size, wanted, duration, part, empty))
    return record, media


def fetch_stream(
    unit: Unit,
    frames: FramesConfig,
    size: int,
    classes: Mapping[str, ClassDataset],
    cache: BlockCache | None = None,
) -> tuple[dict[str, Any], list[Frames | FrameStream]]:
    """The conversation of a unit, and its media, whose frames are read when they are needed; otherwise as `fetch`.

    Stored features are read at once: they are small.
    """
    files = SampleFiles(unit.shard, unit.record, cache)
    record, stored = _texts(files, unit, frames, size, classes, unit.conversation)
    streams = (FrameStream(o, size, f, d, p) for o, f, d, p in _media(files, unit, record, frames, classes))
    return record["conversations"][unit.conversation], [*(stored or streams)]


def _texts(
    files: SampleFiles,
    unit: Unit,
    frames: FramesConfig,
    size: int,
    classes: Mapping[str, ClassDataset],
    only: int | None,
    texts: Record | None = None,
) -> tuple[Record, list[Frames]]:
    """The json of a sample, and its media where they are stored as features."""
    if dataset := classes.get(unit.source):
        return dataset.record(unit.record.key, unit.record), []
    stored = [FEATURES] if unit.record.fingerprint else []
    media = [field for field in unit.record.members if media_type(field)]
    whole = stored or [field for field in media if _is_read_wholly(unit.record, field, frames)]
    files.expect(["json", *whole], [] if stored else [field for field in media if field not in whole])
    record = parse_record(files.read("json"), unit.record.members, only) if texts is None else texts
    return record, list(decode_features(files.read(FEATURES), size, frames)) if stored else []


def _is_read_wholly(record: SampleRecord, field: str, frames: FramesConfig) -> bool:
    """Whether hardly anything of a medium will be left out: it is small, or most groups of pictures are decoded."""
    if record.members[field].size <= SMALL or media_type(field) == "image":
        return True
    if len(record.each) != 1:  # only the json tells which length is whose
        return False
    spacing = USUAL_SPACING if record.keyframe_spacing is None else record.keyframe_spacing
    count = frame_count(record.duration, frames)
    # The second, because it may be a part of a long file: the json tells that.
    return count * spacing >= record.duration and record.members[field].size <= count * A_FRAME


def _media(
    files: SampleFiles,
    unit: Unit,
    record: dict[str, Any],
    frames: FramesConfig,
    classes: Mapping[str, ClassDataset],
) -> Iterator[tuple[Callable[[], AbstractContextManager[Source]], FramesConfig, float | None, Part | None]]:
    """What opens each medium of a sample, which frames are wanted of it, the length that it states, and its part."""
    dataset, lengths = classes.get(unit.source), unit.record.each
    if len(lengths) != len(record["media"]):
        raise ValueError(f"has {len(record['media'])} media, but {len(lengths)} when its source was indexed")
    for medium, wanted in zip(record["media"], shared(lengths, frames)):
        member, duration, part = medium["member"], medium.get("duration"), part_of(medium)
        if dataset:
            yield partial(_of_class, dataset, unit.record.key, member, medium["type"]), wanted, duration, part
            continue
        opened = partial(files.open, member)
        yield partial(_still, opened) if medium["type"] == "image" else opened, wanted, duration, part


def _of_class(dataset: ClassDataset, key: str, member: str, kind: str) -> AbstractContextManager[Source]:
    source = dataset.open(key, member)
    return nullcontext(Still(source) if kind == "image" else source)


@contextmanager
def _still(opened: Callable[[], AbstractContextManager[IO[bytes]]]) -> Iterator[Source]:
    with opened() as file:
        yield Still(file)
