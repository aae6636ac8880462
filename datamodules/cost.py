"""What a unit costs, from the index alone: one at a time, in full, or many at once, in columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from timeviper.config import FramesConfig
from timeviper.datamodules.frames.share import frame_counts
from timeviper.datamodules.frames.video import frame_counts_of
from timeviper.datamodules.order import Rows
from timeviper.datamodules.shards.index_file import Turn
from timeviper.datamodules.source import Source, Unit

Columns = NDArray[np.int64]


class SequenceShape(NamedTuple):
    """One sequence of a pack."""

    text: int
    """Text tokens."""
    groups: tuple[int, ...]
    """Frames of the media of each turn that has any (see `timeviper.pack.vision_groups`)."""


@dataclass(frozen=True)
class Item:
    """A unit with the frames that this step wants of it and what it costs."""

    unit: Unit
    num_frames: int
    """Of all its sequences."""
    tokens: int
    """Decoder tokens at the input."""
    cost: float
    """Tokens a block sees on average, after every transfer: what activations grow with, so what fills a pack."""
    work: float
    """Computation, in text tokens that cost as much: what ranks are balanced by."""
    spares: tuple[Item, ...] = ()
    """No dearer units of the same source that take its place, the first that can be read, if it cannot be."""
    sequences: tuple[SequenceShape, ...] = ()
    """What it is in a pack: one, or one for each turn."""

    @property
    def read(self) -> int:
        """Frames that are decoded for it: turns share them."""
        return max((sum(s.groups) for s in self.sequences), default=self.num_frames)


@dataclass(frozen=True)
class CostModel:
    """Tokens of a unit, from the index alone."""

    tokens_per_frame: int
    vision_share: float
    """Share of the vision tokens that a block sees on average (see `config.shape.kept_share`)."""
    frame_work: float
    """Computation of a frame, tower included, in text tokens that cost as much."""
    estimate: Callable[[int, tuple[int, ...], int], int]
    """Text tokens of a conversation from its bytes, the frames of each of its videos, and its turns."""
    split: bool = False
    """Each turn is a sequence of its own, with all that comes before it."""
    share_at: Callable[[int], float] | None = None
    """The vision share of every step, where the curriculum changes it. A frame's work is not counted anew: it only
    balances ranks, and most of it does not depend on what TransV keeps."""
    estimates: Callable[[Columns, Columns, Columns], Columns] | None = None
    """`estimate` of many conversations about one medium at most, from bytes, frames (-1: of no video) and turns."""

    def at(self, step: int) -> CostModel:
        """The costs that hold at a step."""
        return replace(self, vision_share=self.share_at(step)) if self.share_at else self

    def identity(self) -> list[Any]:
        """What tells it from others: its numbers, and what it says of some conversations."""
        texts = [self.estimate(4000, (2**i,) * (i % 3), 1 + i // 4) for i in range(14)]
        texts += [self.estimate(size, (), 1) for size in (0, 1, 10**6, 10**9)]
        return [self.tokens_per_frame, self.vision_share, self.frame_work, self.split, texts]

    def item(self, unit: Unit, frames: FramesConfig) -> Item:
        sequences = tuple(self._sequences(unit, frame_counts(unit.record.each, frames)))
        num_frames, text = sum(sum(s.groups) for s in sequences), sum(s.text for s in sequences)
        tokens, cost, work = self.of(num_frames, text)
        return Item(unit, num_frames, tokens, cost, work, sequences=sequences)

    def items(self, units: Iterable[Unit], frames: FramesConfig, sizes: Iterable[Sequence[int]]) -> list[Item]:
        """`item` of many units, whose frames and text tokens were measured."""
        made = []
        for unit, (count, text) in zip(units, sizes, strict=True):
            media = unit.record.each
            if len(media) > 1 or (self.split and len(unit.spec.turns) > 1):
                made.append(self.item(unit, frames))
            else:
                shape = SequenceShape(text, (count,) if media else ())
                made.append(Item(unit, count, *self.of(count, text), sequences=(shape,)))
        return made

    def of(self, frames: Any, text: Any) -> tuple[Any, Any, Any]:
        """Tokens, cost and work, as in `Item`, of integers or of columns of them; the same to the last bit."""
        vision = frames * self.tokens_per_frame
        return text + vision, text + vision * self.vision_share, text + frames * self.frame_work

    def measure(self, source: Source, rows: Rows, frames: FramesConfig) -> tuple[Columns, Columns]:
        """Frames and text tokens of many units: what `item` says of each."""
        sizes = source.sizes(rows)
        several = (sizes.media > 1) | (self.split & (sizes.turns > 1))
        counts = np.where(sizes.media == 1, frame_counts_of(sizes.duration, frames, sizes.frames), 0)
        if self.estimates:
            text = self.estimates(sizes.text, np.where(sizes.duration > 0, counts, -1), sizes.turns)
        else:
            videos = [(n,) if lasting else () for n, lasting in zip(counts.tolist(), sizes.duration > 0)]
            text = np.array([*map(self.estimate, sizes.text.tolist(), videos, sizes.turns.tolist())], dtype=np.int64)
        for i in np.flatnonzero(several).tolist():  # columns cannot tell
            item = self.item(source[int(rows[i])], frames)
            counts[i], text[i] = item.num_frames, sum(s.text for s in item.sequences)
        return counts, text

    def _sequences(self, unit: Unit, counts: tuple[int, ...]) -> Iterator[SequenceShape]:
        """What a unit becomes in a pack, given the frames of each of its media."""
        spec = unit.spec
        turns = spec.turns or (Turn(spec.text_bytes, spec.answer_bytes, len(counts)),)
        lasting = [medium.duration > 0 for medium in unit.record.each]
        size, media, groups = 0, 0, ()
        for number, turn in enumerate(turns, 1):
            new = counts[media : media + turn.media]
            size, media, groups = size + turn.text_bytes, media + turn.media, (*groups, *([sum(new)] if new else []))
            if self.split or number == len(turns):
                videos = tuple(compress(counts[:media], lasting))
                yield SequenceShape(self.estimate(size, videos, number), groups)
