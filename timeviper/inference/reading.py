"""The frames of a video into what is kept of it, part by part: a boundary of the decoder, or features of the towers.

Generators that tell after each part how far they are, so that whoever owns the model may do other things in between.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

import torch
from torch import Tensor

from timeviper.datamodules.chat import Encoded
from timeviper.datamodules.frames.stream import FrameStream
from timeviper.datamodules.frames.video import Frames
from timeviper.inference.generate import embed_frames, frames_at_once, in_pieces
from timeviper.inference.question import Question
from timeviper.inference.state_key import head_of
from timeviper.inference.watching import watch_prompt
from timeviper.model.boundary import Boundary
from timeviper.model.viper import TimeViper
from timeviper.model.vision.tower import FRAMES_PER_CHUNK

Medium = Frames | FrameStream
Result = TypeVar("Result")
Steps = Generator[int, None, Result]
"""Yields how many frames are done."""


def drained(steps: Generator[object, None, Result]) -> Result:
    """What a generator returns at its end."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def counted(steps: Steps[Result], total: int) -> Generator[tuple[int, int], None, Result]:
    """The same steps, each with how many frames there are."""
    while True:
        try:
            done = next(steps)
        except StopIteration as end:
            return end.value
        yield done, total


@torch.inference_mode()
def read_video_prompt(model: TimeViper, encoded: Encoded, medium: Medium, tokens_per_piece: int) -> Steps[Boundary]:
    """The beginning of a prompt, up to the last token of its only video, through towers and decoder.

    Raises FramesDifferError for frames that are others than foretold, VideoError for a file that cannot be read.
    """
    head, frames = head_of(encoded), len(medium.times)
    device, vision = model.decoder.embeddings.weight.device, frames * model.tokens_per_frame
    ids, kind = encoded.ids[:head].to(device), encoded.kind[:head].to(device)
    parts = Question([], [medium]).parts(_at_once(model, tokens_per_piece, frames))
    embedded = embed_frames(model, ids, kind, parts, torch.as_tensor(medium.times))
    steps = watch_prompt(model.decoder, in_pieces(embedded, tokens_per_piece or head), vision, head - vision)
    while True:
        try:
            seen = next(steps)
        except StopIteration as end:
            return end.value
        yield seen * frames // head


@torch.inference_mode()
def read_features(model: TimeViper, medium: Medium, tokens_per_piece: int) -> Steps[dict[str, Tensor]]:
    """What the towers make of all frames, `[F, T, C]` by tower: merged, not projected. Raises as
    `read_video_prompt`."""
    device, done = model.decoder.embeddings.weight.device, 0
    found: dict[str, list[Tensor]] = {name: [] for name in model.towers}
    for part in Question([], [medium]).parts(_at_once(model, tokens_per_piece, len(medium.times))):
        assert isinstance(part, Tensor), "they have features already"
        for name, tower in model.towers.items():
            found[name].append(tower(part.to(device, non_blocking=True), model.merge_to[name]))
        done += len(part)
        yield done
    return {name: torch.cat(parts) for name, parts in found.items()}


def _at_once(model: TimeViper, tokens_per_piece: int, frames: int) -> int:
    if tokens_per_piece:
        return frames_at_once(tokens_per_piece, model.tokens_per_frame)
    return max(frames, FRAMES_PER_CHUNK)
