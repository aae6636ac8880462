"""The sizes that a pack has on its way through the model, from its frames and text alone.

The decoder cuts its stream by the same functions, so what is planned and what runs cannot come to differ.
Letters: L tokens, S sequences, F frames, V vision tokens, M labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from timeviper.config.model import ModelConfig, TransVConfig, TransVStage

if TYPE_CHECKING:
    from timeviper.pack import Pack  # it imports torch, and reading a recipe must not


@dataclass(frozen=True)
class Segment:
    """The blocks between two transfers, and the stage that runs before the first of them."""

    name: str
    stage: TransVStage | None
    blocks: range


def cut_layout(layout: str, transv: TransVConfig) -> list[Segment]:
    """Cut the layout before the block of every stage; the first segment has no stage (and, where a stage
    runs before block 0, no blocks)."""
    cuts = [0, *(stage.layer for stage in transv.stages.values()), len(layout)]
    named = [("", None), *transv.stages.items()]
    return [Segment(n, s, range(a, b)) for (n, s), a, b in zip(named, cuts, cuts[1:])]


def kept_counts(keep: float, original: Sequence[int], current: Sequence[int]) -> list[int]:
    """Vision tokens that a stage leaves each group of media: `keep` of the ORIGINAL number, at least 1 of any."""
    return [min(n, max(1, math.floor(keep * n0 + 1e-9))) if n else 0 for n0, n in zip(original, current)]


def kept_share(transv: TransVConfig, num_blocks: int) -> float:
    """Share of the vision tokens that a block sees, averaged over the blocks: packs are filled by it."""
    edges = [0, *(min(stage.layer, num_blocks) for stage in transv.stages.values()), num_blocks]
    keeps = [1.0, *(stage.keep for stage in transv.stages.values())]
    return sum(k * (b - a) for k, (a, b) in zip(keeps, pairwise(edges))) / num_blocks


@dataclass(frozen=True)
class PackShape:
    """One pack: what a rank reads for one forward and backward pass."""

    frames: tuple[int, ...]
    """Frames of each sequence."""
    text: tuple[int, ...]
    """Text tokens of each sequence: prompt and answer."""
    labels: int
    """Supervised tokens of the pack."""
    stored: int = 0
    """Frames that no tower encodes: their features were stored beforehand, or are those of another sequence."""
    groups: tuple[tuple[int, ...], ...] = ()
    """Frames of the media of each turn of each sequence; empty: all of a sequence belong together."""

    @classmethod
    def of(cls, pack: Pack) -> PackShape:
        """The shape of a real pack; counts only, whatever device the pack is on."""
        a_frame = pack.num_vision // max(pack.num_frames, 1)
        text = (n - f * a_frame for n, f in zip(pack.lengths, pack.frame_counts))
        stored = pack.num_frames - pack.frames.shape[0]
        groups = tuple(tuple(n // max(a_frame, 1) for n in group) for group in pack.vision_groups)
        return cls(tuple(pack.frame_counts), tuple(text), pack.num_labels, stored, cls.parted(groups))

    @staticmethod
    def parted(groups: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
        """`groups` as the field has them."""
        return groups if any(len(group) > 1 for group in groups) else ()

    @property
    def num_frames(self) -> int:
        return sum(self.frames)

    @property
    def num_text(self) -> int:
        return sum(self.text)


@dataclass(frozen=True)
class SegmentShape:
    """The stream in the blocks between two transfers."""

    segment: Segment
    vision: tuple[int, ...]
    """Vision tokens of each sequence that these blocks see."""
    before: tuple[int, ...]
    """Vision tokens of each sequence before the transfer that opens the segment (the same if there is none)."""
    text: tuple[int, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(v + t for v, t in zip(self.vision, self.text))

    @property
    def num_tokens(self) -> int:
        return sum(self.vision) + sum(self.text)

    @property
    def dropped(self) -> tuple[int, ...]:
        return tuple(a - b for a, b in zip(self.before, self.vision))


def tokens_per_frame(model: ModelConfig) -> int:
    return sum(tower.tokens for tower in model.towers.values())


def segment_shapes(model: ModelConfig, shape: PackShape) -> list[SegmentShape]:
    """The stream before and after every transfer, in the order of the blocks."""
    groups = shape.groups or [(frames,) for frames in shape.frames]
    original = [[frames * tokens_per_frame(model) for frames in group] for group in groups]
    current, shapes = original, []
    for segment in cut_layout(model.decoder.layout, model.transv):
        kept = current
        if segment.stage is not None:
            kept = [kept_counts(segment.stage.keep, *pair) for pair in zip(original, current)]
        shapes.append(SegmentShape(segment, tuple(map(sum, kept)), tuple(map(sum, current)), shape.text))
        current = kept
    return shapes


def mean_tokens(model: ModelConfig, shape: PackShape) -> float:
    """Tokens that a block sees, mean over the blocks: what `data.tokens_per_pack` limits."""
    shapes = segment_shapes(model, shape)
    return sum(s.num_tokens * len(s.segment.blocks) for s in shapes) / len(model.decoder.layout)
