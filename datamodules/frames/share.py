"""How many frames are taken of each medium of a sample: plan, reader, `shards features` and evaluations ask here.

`data.frames.max_frames` bounds a sample, not a medium. So several media share it, each by what it would take alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from timeviper.config import FramesConfig
from timeviper.datamodules.frames.video import frame_count


class Length(NamedTuple):
    """One medium, whole."""

    duration: float
    """Seconds; 0 for an image."""
    frames: int
    """1 for an image."""


STILL = Length(0.0, 1)


def shared(media: Sequence[Length], frames: FramesConfig) -> list[FramesConfig]:
    """What is to be read of each medium of a sample, so that all together have at most `frames.max_frames` frames.

    Where they would have more, each has one, and the rest is shared in proportion to what each would take beyond that;
    what rounding leaves goes to the largest remainders, the first of equals. More media than `max_frames` have one
    frame each.
    """
    if len(media) < 2:
        return [frames] * len(media)
    most = max(frames.max_frames, len(media))
    free = replace(frames, max_frames=max(most, *(m.frames for m in media)))
    spare = [frame_count(m.duration, free, m.frames) - 1 for m in media]
    room, asked = most - len(media), sum(spare)
    if asked > room:
        given = [n * room // asked for n in spare]
        first = sorted(range(len(media)), key=lambda i: (-(spare[i] * room % asked), i))
        for i in first[: room - sum(given)]:
            given[i] += 1
        spare = given
    return [replace(frames, max_frames=1 + n) for n in spare]


def added(parts: Sequence[object]) -> str:
    """Of each medium, for messages."""
    return " + ".join(map(str, parts))


def frame_counts(media: Sequence[Length], frames: FramesConfig) -> tuple[int, ...]:
    """Frames that are taken of each medium."""
    each = zip(media, shared(media, frames))
    return tuple(frame_count(medium.duration, wanted, medium.frames) for medium, wanted in each)
