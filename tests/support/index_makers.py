"""Random shards, as an index knows them."""

from __future__ import annotations

import zlib
from itertools import accumulate

from hypothesis import strategies as st

from timeviper.datamodules.frames.share import STILL, Length
from timeviper.datamodules.shards.block_sums import BLOCK_BYTES, WIDTH, block_bytes
from timeviper.datamodules.shards.index_file import Conversation, SampleRecord, ShardIndex, Turn
from timeviper.datamodules.shards.tar import Slice

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="/.\0"), min_size=1, max_size=6)
SIZES = st.one_of(st.integers(0, 200_000), st.integers(2**32 - 2, 2**32 + 2))
SECONDS = st.one_of(st.sampled_from([0.5, 2.0, 3600.0]), st.floats(0.001, 1e6))


def sums_size(size: int) -> int:
    """Bytes of checksums of the blocks of a member."""
    return -(-size // block_bytes(size)) * WIDTH if size > BLOCK_BYTES else 0


@st.composite
def talks(draw: st.DrawFn, media: int) -> Conversation:
    turns = [Turn(draw(st.integers(1, 70_000)), draw(st.integers(1, 300)), 0) for _ in range(draw(st.integers(1, 3)))]
    turns[0] = turns[0]._replace(media=media)
    text, answer = (sum(turn[i] for turn in turns) for i in (0, 1))
    kind = draw(st.sampled_from(["chat", "colour", "when"]))
    return Conversation(kind, text, answer, tuple(turns) if len(turns) > 1 else ())


@st.composite
def records(draw: st.DrawFn, key: str) -> SampleRecord:
    videos = draw(st.lists(st.one_of(st.just(STILL), st.builds(Length, SECONDS, st.integers(1, 10**6))), max_size=3))
    sizes = draw(st.dictionaries(st.sampled_from(["json", "mp4", "1.png"]), SIZES, min_size=1))
    ends = [*accumulate(sizes.values())]
    members = {n: Slice(end - size, size, zlib.crc32(n.encode())) for (n, size), end in zip(sizes.items(), ends)}
    sums = {name: b"\1\2\3\4" * (sums_size(size) // 4) for name, size in sizes.items() if 0 < sums_size(size) < 10**4}
    members = {name: where for name, where in members.items() if len(sums.get(name, b"")) == sums_size(where.size)}
    moving = any(v.duration for v in videos)
    return SampleRecord(
        key=key,
        members=members,
        media="video" if moving else "image" if videos else "none",
        duration=float(sum(v.duration for v in videos)),
        fps=draw(st.sampled_from([29.97, 25.0])) if moving else 0.0,
        frames=sum(v.frames for v in videos),
        conversations=tuple(draw(st.lists(talks(len(videos)), min_size=1, max_size=3))),
        keyframe_spacing=draw(st.sampled_from([None, 0.5, 0.1])) if moving else None,
        fingerprint=draw(st.sampled_from([None, "0badcafe"])),
        blocks={name: value for name, value in sums.items() if name in members},
        lengths=tuple(videos) if len(videos) > 1 else (),
    )


@st.composite
def shards(draw: st.DrawFn, most: int = 4) -> list[ShardIndex]:
    made = []
    for number in range(draw(st.integers(1, most))):
        keys = draw(st.lists(WORDS, min_size=1, max_size=4, unique=True))
        samples = tuple(draw(records(key)) for key in keys)
        made.append(ShardIndex(f"data/shard-{number:05d}.tar", 1 << 40, samples))
    return made
