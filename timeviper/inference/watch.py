"""Watching: a video's frames into its state, which `LoadedModel.watch` asks for."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from timeviper.config import ModelConfig
from timeviper.datamodules.build import pack_format
from timeviper.datamodules.chat import Encoded
from timeviper.datamodules.frames.stored import StoredFrames
from timeviper.datamodules.frames.stream import FramesDifferError, FrameStream
from timeviper.datamodules.frames.video import Frames
from timeviper.inference.question import Question, TooLongError, check_fits
from timeviper.inference.reading import counted, read_features, read_video_prompt
from timeviper.inference.state_key import StateKey, digest_of, head_of, prefix_of
from timeviper.inference.state_tensors import FACTS
from timeviper.inference.video_state import Tier, VideoState, medium_of
from timeviper.kernels import dispatch
from timeviper.model.state_size import frames_within, state_bytes
from timeviper.tokenizer import Message

if TYPE_CHECKING:
    from timeviper.inference.ask import LoadedModel

log = logging.getLogger("timeviper")

NOTHING: list[Message] = [{"role": "user", "content": ""}]


def without_pixels(medium: Frames | FrameStream, features: dict[str, Tensor]) -> StoredFrames:
    """Times and facts of a medium, with the features of its frames."""
    facts = {name: getattr(medium, name, 0) for name in FACTS}
    return medium_of(facts, np.asarray(medium.times), features)


def watching(
    model: LoadedModel,
    medium: Frames | FrameStream,
    key: StateKey,
    *,
    messages: Sequence[Message] = NOTHING,
    tier: Tier = "state",
    max_bytes: int | None = None,
    video: str = "",
) -> Generator[tuple[int, int], None, VideoState]:
    """Watch a video: frames done, and of how many, after each piece; at the end the state is returned.

    key: of model and content; what depends on the prompt is filled in. The rest as for `LoadedModel.watch`.
    """
    inner, piece = model.model, model.recipe.eval.tokens_per_piece
    dispatch.configure(**vars(model.recipe.model.kernel))
    while True:
        encoded = Question(messages, [medium]).encode(model.tokenizer, pack_format(model.recipe))
        head, total = head_of(encoded), len(medium.times)
        text, e = head - total * inner.tokens_per_frame, inner.decoder.embeddings.weight.element_size()
        if tier == "state":
            check_fits(Encoded(*(t[:head] for t in vars(encoded).values())), total, 0, inner.decoder.cfg)
        if max_bytes is not None:
            check_budget(model.recipe.model, tier, total, text, e, max_bytes)
        boundary, features = None, {}
        try:
            if tier == "features":
                features = yield from counted(read_features(inner, medium, piece), total)
            else:
                boundary = yield from counted(read_video_prompt(inner, encoded, medium, piece), total)
        except FramesDifferError as error:
            differs = error.stream
        else:
            made = without_pixels(medium, features)
            known = "" if boundary is None else digest_of(encoded, head)
            whole = key.with_(prefix=prefix_of(encoded))
            return VideoState(model, whole, made, list(messages), boundary, known, video)
        # Outside of the `except`, which holds all that was computed.
        log.warning("%s: some frames cannot be decoded; they are counted, then it begins again", video)
        differs.recount()


def check_budget(model: ModelConfig, tier: str, frames: int, text: int, e: int, budget: int) -> None:
    """TooLongError, before any frame is decoded, with how many frames would fit."""
    needed = state_bytes(model, tier, frames, text, e)
    if needed <= budget:
        return
    fit = frames_within(model, tier, budget, e, text / max(frames, 1))
    others = ""
    if tier != "features":
        features = state_bytes(model, "features", frames, 0, e)
        others = f", or keep features alone ({features / 1e6:,.1f} MB; --tier features)"
    advice = f"take fewer frames (data.frames.max_frames={fit})" if fit else "no frame fits: give more"
    raise TooLongError(
        f"the state of {frames:,} frames takes {needed / 1e6:,.1f} MB, and {budget / 1e6:,.1f} MB are allowed "
        f"(--max-bytes): {advice}{others}"
    )
