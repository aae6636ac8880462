"""One question about media on its way into the decoder: whole, or in pieces as frames are read.

A long prompt is never whole anywhere: a group of frames is decoded, goes through tower and merging, and its tokens
through the decoder, `eval.tokens_per_piece` at a time, before the next group is asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from timeviper.config import DecoderConfig
from timeviper.datamodules.chat import Encoded, Media, encode_chat
from timeviper.datamodules.frames.stored import StoredFrames
from timeviper.datamodules.frames.stream import FramesDifferError, FrameStream
from timeviper.datamodules.frames.video import Frames
from timeviper.datamodules.reader import PackFormat
from timeviper.inference.generate import Part, read_prompt
from timeviper.inference.prefill import Prefilled
from timeviper.model.viper import TimeViper
from timeviper.pack import Kind
from timeviper.tokenizer import Message, Tokenizer

log = logging.getLogger("timeviper")

Change = Callable[[Part], Part]
OnFrames = Callable[[int, int], None]


class TooLongError(ValueError):
    """A question that the context cannot hold."""


@dataclass
class Question:
    """What is asked, and about what."""

    messages: Sequence[Message]
    """The last one a user's."""
    media: Sequence[Frames | FrameStream]
    key: str = ""
    """For messages."""

    @property
    def num_frames(self) -> int:
        return sum(len(medium.times) for medium in self.media)

    def encode(self, tokenizer: Tokenizer, form: PackFormat) -> Encoded:
        media = [Media(medium.times, medium.duration, medium.kind) for medium in self.media]
        return encode_chat(tokenizer, self.messages, media, form.tokens_per_frame, form.chat, generate=True)

    def parts(self, count: int) -> Iterator[Part]:
        """The frames of all media, `count` at a time; what was stored as features, medium by medium."""
        if any(isinstance(medium, StoredFrames) for medium in self.media):  # all of them, then
            for medium in self.media:
                assert isinstance(medium, StoredFrames)
                for start in range(0, len(medium.times), count):
                    yield {tower: f[start : start + count] for tower, f in medium.features.items()}
            return
        held: list[Tensor] = []
        room = count
        for pixels in self._pixels(count):
            while len(pixels):
                held.append(pixels[:room])
                pixels, room = pixels[room:], room - len(held[-1])
                if room == 0:
                    yield _joined(held)
                    held, room = [], count
        if held:
            yield _joined(held)

    def _pixels(self, count: int) -> Iterator[Tensor]:
        for medium in self.media:
            pieces = medium.pieces(count) if isinstance(medium, FrameStream) else (medium.pixels,)
            yield from map(torch.as_tensor, pieces)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Frames one after the other, in the layout of those of a file: other ones would round differently."""
    return (parts[0] if len(parts) == 1 else torch.cat(list(parts))).contiguous()


def read_question(
    model: TimeViper,
    tokenizer: Tokenizer,
    form: PackFormat,
    question: Question,
    *,
    tokens_per_piece: int,
    max_new_tokens: int,
    change: Change | None = None,
    on_frames: OnFrames | None = None,
) -> tuple[Encoded, Prefilled]:
    """The prompt, and the decoder's state after it.

    tokens_per_piece: prompts of more tokens go through the decoder so many at a time; 0: all go whole. change: what
    becomes of each part of the frames before it is encoded. on_frames: told how many frames are done, and of how many.

    Raises TooLongError, before any frame is decoded, when prompt and answer do not fit the context; VideoError, with
    what is wrong with a file.
    """
    while True:
        encoded = question.encode(tokenizer, form)
        check_fits(encoded, question.num_frames, max_new_tokens, model.decoder.cfg)
        try:
            return encoded, _prefill(model, encoded, question, tokens_per_piece, max_new_tokens, change, on_frames)
        except FramesDifferError as error:
            stream = error.stream
        # Outside of the `except`, which holds all that was computed.
        log.warning("%s: some frames cannot be decoded; they are counted, then it begins again", question.key)
        stream.recount()


def check_fits(encoded: Encoded, num_frames: int, max_new_tokens: int, cfg: DecoderConfig) -> None:
    """Raises TooLongError with about how many frames would fit."""
    tokens, room = len(encoded.ids), cfg.max_tokens - max_new_tokens
    if tokens <= room:
        return
    text = int((encoded.kind != Kind.VISION).sum())
    fitting = max(int(num_frames * room / tokens), 0)
    fewer = f"take fewer frames (about data.frames.max_frames={fitting}), " if fitting else "take "
    raise TooLongError(
        f"the question takes {tokens:,} tokens ({tokens - text:,} for {num_frames:,} frames, {text:,} of text), and "
        f"{max_new_tokens:,} are to be written, but model.decoder.max_tokens = {cfg.max_tokens:,}: {fewer}a "
        "shorter text or answer, or raise the limit if you know that the weights can"
    )


def _prefill(
    model: TimeViper,
    encoded: Encoded,
    question: Question,
    tokens_per_piece: int,
    max_new_tokens: int,
    change: Change | None,
    on_frames: OnFrames | None,
) -> Prefilled:
    whole = tokens_per_piece == 0 or len(encoded.ids) <= tokens_per_piece

    def parts(count: int) -> Iterator[Part]:
        found = question.parts(count)
        found = found if change is None else map(change, found)
        return found if whole or on_frames is None else _told(found, question.num_frames, on_frames)

    seconds = torch.cat([torch.zeros(0, dtype=torch.float64), *(torch.as_tensor(m.times) for m in question.media)])
    sizes = dict(tokens_per_piece=tokens_per_piece, max_new_tokens=max_new_tokens)
    return read_prompt(model, encoded.ids, encoded.kind, seconds, parts, **sizes)


def _told(parts: Iterator[Part], total: int, on_frames: OnFrames) -> Iterator[Part]:
    done = 0
    for part in parts:
        yield part
        done += len(next(iter(part.values()))) if isinstance(part, Mapping) else len(part)
        on_frames(done, total)
