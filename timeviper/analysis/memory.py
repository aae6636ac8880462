"""How long the Mamba-2 heads of a run remember its held-out samples, in tokens and in seconds of video.

One forward pass a sample; of it only the steps dt of every scan are looked at.
Letters: L tokens, H heads, K kinds of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from timeviper.analysis.halflife import LN2, NAMES, TIME_TEXT, by_kind, half_lives, kinds, median, rate_a_second, rates
from timeviper.analysis.subject import AnalysisError, Subject
from timeviper.config import Recipe
from timeviper.config.shape import Segment, tokens_per_frame
from timeviper.datamodules.frames.video import frame_count
from timeviper.model.decoder import Decoder
from timeviper.model.hooks import hooked
from timeviper.model.mamba2 import Mamba2
from timeviper.model.transv import Stream
from timeviper.pack import Kind, Pack

SOURCES = 512  # tokens of a sample, evenly spaced, whose half-lives are kept: all of a short one
FAINT = 0.01  # survival below which a head holds nothing any more


@dataclass
class BlockSums:
    """Of one Mamba-2 block, over samples."""

    segment: str
    """Name of the TransV stage before it; empty: none."""
    rate: Tensor
    """float64 `[K, H]`: sums of rates."""
    tokens: Tensor
    """int64 `[K]`."""
    lives: list[Tensor] = field(default_factory=list)
    """int32 `[n, H]` of each sample; 0: censored."""


@dataclass(frozen=True)
class BlockMemory:
    """What one block remembers; every list has a number a head."""

    block: int
    behind: str
    """The TransV stage before it; empty: none."""
    tokens: list[float]
    """Half-life, ln 2 / mean rate over all tokens."""
    median: list[float]
    """Exact half-life of the token in the middle; infinite where more than half are censored."""
    censored: list[float]
    """Share of the tokens whose sequence ends before their half-life."""
    by_kind: dict[str, list[float]]
    """Half-life at the mean rate of one kind of token."""
    seconds: list[float]
    """Half-life in video alone: at this block's vision tokens and time text a second."""
    survival: list[float]
    """Of what was written `at` seconds of video ago."""
    survival_at_answer: list[float]
    """The same when the answer begins: behind the question, too."""
    tokens_a_second: float

    @property
    def best(self) -> float:
        return max(self.survival)


@dataclass(frozen=True)
class Memory:
    """Of a whole run."""

    at: float
    """Seconds of the horizon."""
    frames: int
    """That are read of a video as long as the horizon."""
    trained_frames: int
    """That are read of a video at most while training."""
    samples: int
    blocks: list[BlockMemory]
    warnings: list[str]


@contextmanager
def watching(decoder: Decoder, pack: Pack, sums: dict[int, BlockSums]) -> Iterator[None]:
    """Within it a forward pass of `pack` adds to `sums`, which has a place for every Mamba-2 block."""
    kind, here = kinds(pack), list[tuple[Segment, Stream]]()

    def enter(segment: Segment, stream: Stream) -> None:
        here[:] = [(segment, stream)]

    def look(block: int) -> Callable[[Any, tuple[Any, ...]], None]:
        def add(scan: Any, args: tuple[Any, ...]) -> None:
            (segment, stream), dt = here[0], args[1]
            rate = rates(dt, scan.dt_bias, scan.A_log)
            if block not in sums:
                sums[block] = BlockSums(
                    segment.name, rate.new_zeros(len(NAMES), dt.shape[1]), torch.zeros_like(kind[:5])
                )
            total, count = by_kind(rate, kind[stream.index])
            into = sums[block]
            into.rate, into.tokens = into.rate + total, into.tokens + count
            lives = half_lives(rate, stream.bounds)
            chosen = torch.linspace(0, len(lives) - 1, min(SOURCES, len(lives)), device=lives.device).long()
            into.lives.append(lives[chosen].int().cpu())

        return add

    hooks = [decoder.blocks[i].mixer.ssm.register_forward_pre_hook(look(i)) for i in mamba_blocks(decoder)]  # pyright: ignore
    with hooked(hooks), decoder.watched(enter):
        yield


def mamba_blocks(decoder: Decoder) -> list[int]:
    return [i for i, block in enumerate(decoder.blocks) if isinstance(block.mixer, Mamba2)]


@torch.no_grad()
def measure(subject: Subject, at: float, samples: int, told: Callable[[int], None] = lambda done: None) -> Memory:
    """at: seconds of the horizon. told: hears how many samples are done.

    Raises AnalysisError for a decoder without Mamba blocks, or data without videos.
    """
    check(subject)
    sums: dict[int, BlockSums] = {}
    frames = torch.zeros(1, dtype=torch.int64)
    done = 0
    for done, pack in enumerate(subject.packs(subject.items(samples)), 1):
        with watching(subject.model.decoder, pack, sums):
            subject.model(pack)
        frames += pack.num_frames
        told(done)
    return summary(subject.recipe, subject.stored_recipe, sums, int(frames), done, at)


def check(subject: Subject) -> None:
    """AnalysisError where there is no state that could be forgotten."""
    if not mamba_blocks(subject.model.decoder):
        family = subject.recipe.model.decoder.family
        raise AnalysisError(
            f"{subject.export} has no Mamba block ({family}, {subject.layout}): attention keeps every token until the "
            "end, so there is no half-life. `timeviper analyse maps` shows where its attention goes."
        )


def summary(
    recipe: Recipe, trained: Recipe, sums: dict[int, BlockSums], frames: int, samples: int, at: float
) -> Memory:
    """From sums over samples that had `frames` frames in all."""
    read, learned = frame_count(at, recipe.data.frames), trained_frames(trained)
    blocks = [_block(block, one, frames, samples, at, read / at) for block, one in sorted(sums.items())]
    return Memory(at, read, learned, samples, blocks, warnings(recipe, blocks, at, read, learned))


def trained_frames(recipe: Recipe) -> int:
    """Frames of the longest video of any phase, as the settings bound it."""
    phases = (phase.max_frames for phase in recipe.train.phases.values())
    return max([recipe.data.frames.max_frames, *(n for n in phases if n)])


def warnings(recipe: Recipe, blocks: Iterable[BlockMemory], at: float, read: int, learned: int) -> list[str]:
    """What a reader must know before a number."""
    found = []
    if read < round(at * recipe.data.frames.fps):
        most = recipe.data.frames.max_frames
        found.append(
            f"Of {at:g} s of video {read} frames are read (data.frames.max_frames = {most}), one in {at / read:.3g} s: "
            "seconds below are counted so. data.frames.max_frames=N asks for longer streams."
        )
    faint = [f"block {one.block}: {one.best:.1e}" for one in blocks if one.best < FAINT]
    if faint and learned < read:
        tokens = read * tokens_per_frame(recipe.model)
        found.append(
            f"A video of {at:g} s is {read:,} frames, {tokens:,} vision tokens; training "
            f"saw {learned:,} frames at most. In these blocks the best head keeps less than {FAINT:.0%} over that "
            f"length ({'; '.join(faint)}): what was never learned at such lengths may not be found there."
        )
    return found


def _block(block: int, one: BlockSums, frames: int, samples: int, at: float, rate: float) -> BlockMemory:
    mean = one.rate / one.tokens[:, None]  # [K, H], NaN where there is no such token
    a_frame = [0.0] * len(NAMES)
    for kind in (Kind.VISION, TIME_TEXT):
        a_frame[kind] = int(one.tokens[kind]) / max(frames, 1)
    second = rate_a_second(mean, a_frame, rate)  # [H]
    question = torch.nan_to_num(mean[Kind.INSTRUCTION]) * int(one.tokens[Kind.INSTRUCTION]) / samples
    lives = torch.cat(one.lives)
    return BlockMemory(
        block,
        one.segment,
        (LN2 * int(one.tokens.sum()) / one.rate.sum(0)).tolist(),
        median(lives).tolist(),
        (lives == 0).double().mean(0).tolist(),
        {name: (LN2 / mean[k]).tolist() for k, name in enumerate(NAMES) if one.tokens[k]},
        (LN2 / second).tolist(),
        (-at * second).exp().tolist(),
        (-at * second - question).exp().tolist(),
        sum(a_frame) * rate,
    )


def middle(values: list[float]) -> float:
    """The middle of a list, of an even number the lower; NaN of none."""
    return sorted(values)[(len(values) - 1) // 2] if values else math.nan
