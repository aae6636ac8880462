"""V-NIAH's haystacks: the first frames of a long video, and a picture put between two of them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from timeviper.benchmarking.item import Item
from timeviper.config import FramesConfig
from timeviper.datamodules.formats.cells import arrow
from timeviper.datamodules.frames.rule import FIRST, FrameRule
from timeviper.datamodules.frames.stream import FrameStream
from timeviper.datamodules.frames.video import read_video

ONE = FramesConfig(1.0, 1, 1)  # frame, of a picture


class WithNeedle(FrameStream):
    """The frames of another stream with one more before frame `at`, at the middle of the times beside it."""

    def __init__(self, haystack: FrameStream, at: int, picture: NDArray[np.uint8]) -> None:
        """picture: `[3, S, S]`, of the haystack's size."""
        self.__dict__.update(haystack.__dict__)
        self._haystack, self._at, self._picture = haystack, min(at, len(haystack.times)), picture
        self._note_times()

    def _note_times(self) -> None:
        ends = [0.0, *self._haystack.times.tolist(), self._haystack.duration]
        self.times = np.insert(self._haystack.times, self._at, (ends[self._at] + ends[self._at + 1]) / 2)

    def recount(self) -> None:
        self._haystack.recount()
        self._note_times()

    def pieces(self, count: int) -> Iterator[NDArray[np.uint8]]:
        held, start = self._picture[None][:0], 0
        for piece in self._haystack.pieces(count):
            inside = start <= self._at < start + len(piece)
            held = np.concatenate([held, np.insert(piece, self._at - start, self._picture, 0) if inside else piece])
            start += len(piece)
            while len(held) >= count:
                yield held[:count]
                held = held[count:]
        if self._at == start:
            held = np.concatenate([held, self._picture[None]])
        yield from (held[i : i + count] for i in range(0, len(held), count))


def haystack_frames(item: Item, frames: FramesConfig) -> FramesConfig:
    """As many of the first frames as the item says. ValueError for a protocol that does not show as many."""
    wanted = int(item.extra["frames"])
    if not isinstance(frames, FrameRule) or frames.rule != FIRST or frames.max_frames < wanted:
        raise ValueError(f"the needle is put into the first {wanted} frames: give --frames first:1:{wanted} or more")
    return replace(frames, max_frames=wanted)


def picture_of(item: Item, files: Sequence[Path], size: int) -> NDArray[np.uint8]:
    """`[3, S, S]`, from the annotation file, or a path in it. ValueError where there is none."""
    told: Mapping[str, Any] = item.extra["needle"]
    file = next((path for path in files if path.name == told["file"]), None)
    if file is None:
        raise ValueError(f"{told['file']} is not among the annotations")
    if told.get("image"):
        return read_video(str(file.parent / str(told["image"])), size, ONE).pixels[0]
    image = arrow().parquet.read_table(file, columns=["image"])["image"][int(told["row"])].as_py()
    content = image.get("bytes") if isinstance(image, dict) else image
    if not content:
        raise ValueError(f"{file.name}, row {told['row'] + 1}: has no bytes of a picture")
    return read_video(io.BytesIO(content), size, ONE).pixels[0]
