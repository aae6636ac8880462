"""A video's questions, put to a loaded model: the video is read once, and each question goes on from its state."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import IO, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from timeviper.benchmarking.archives import ArchiveError
from timeviper.benchmarking.capsule import BLIND, Reply, Shown, watched_key
from timeviper.benchmarking.item import Item, VideoRef
from timeviper.benchmarking.media import open_video
from timeviper.benchmarking.needle_frame import WithNeedle, haystack_frames, picture_of
from timeviper.benchmarking.protocol import Protocol
from timeviper.benchmarking.subtitles import chosen, cues_of
from timeviper.benchmarking.testset import Form
from timeviper.datamodules.build import pack_format
from timeviper.datamodules.chat import Encoded
from timeviper.datamodules.frames.container import VideoError
from timeviper.datamodules.frames.stream import FrameStream
from timeviper.inference.ask import LoadedModel
from timeviper.inference.generate import write
from timeviper.inference.prefill import Prefilled
from timeviper.inference.question import Question, TooLongError, read_question
from timeviper.inference.reading import drained
from timeviper.inference.state_key import StateError
from timeviper.inference.video_state import VideoState
from timeviper.inference.watch import watching
from timeviper.kernels import dispatch
from timeviper.kernels.bounds import Bounds
from timeviper.pack import Kind
from timeviper.tokenizer import Message

GREY = 128  # what the towers' normalisation maps to zero, as in inference/held_out.py
MISSING = "the video is not there"
Failures = (VideoError, ArchiveError, TooLongError, StateError, OSError, ValueError)


@dataclass(frozen=True)
class Way:
    """How questions are asked."""

    form: Form
    protocol: Protocol
    subtitles: str = "none"
    max_new_tokens: int = 16
    prefill: Literal["video", "question"] = "video"
    """video: all questions of a video go on from one prefill; question: each has its own, for comparison."""
    files: tuple[Path, ...] = ()
    """Of the annotations, in which pictures of needles are."""


class Grey(FrameStream):
    """A stream whose frames are all mid-grey: the times are the video's, and nothing is decoded."""

    def __init__(self, stream: FrameStream) -> None:
        self.__dict__.update(stream.__dict__)

    def pieces(self, count: int) -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(self.times), count):
            frames = min(count, len(self.times) - start)
            yield np.full((frames, 3, self._size, self._size), GREY, np.uint8)


@contextmanager
def opened(ref: VideoRef) -> Iterator[str | IO[bytes]]:
    """What decoders read, closed at the end."""
    source = open_video(ref)
    try:
        yield source
    finally:
        if not isinstance(source, str):
            source.close()


class Asker:
    """Asks a model about videos, one after the other."""

    def __init__(self, model: LoadedModel, way: Way) -> None:
        self.model, self.way = model, way
        self.form = pack_format(model.recipe)
        self.prefix = model.tokenizer.encode(way.form.prefix) if way.form.prefix else []

    def ask(self, items: Sequence[Item], variant: str = "") -> tuple[list[Reply], list[Shown]]:
        """Replies to questions about one video, or one part of it, in order, and the frames that were shown."""
        try:
            medium, state = self.watch(items[0], variant)
        except Failures as error:
            return [self._failed(item, variant, _told(error)) for item in items], []
        replies = [self.reply(item, variant, medium, state) for item in items]
        fallback = f"{medium.missing} frames could not be decoded" if medium.missing else ""
        times = tuple(round(float(t), 3) for t in medium.times)
        shown = Shown(watched_key(items[0]), times, round(medium.duration, 3), fallback)
        return replies, [] if variant == BLIND else [shown]

    def watch(self, item: Item, variant: str = "") -> tuple[FrameStream, VideoState | None]:
        """The frames of an item's video, and its state where all questions share one. Raises one of `Failures`."""
        ref = item.video
        if ref.missing:
            raise ValueError(MISSING)
        dispatch.configure(**vars(self.model.recipe.model.kernel))
        stream = self._stream(item)
        medium = Grey(stream) if variant == BLIND else stream
        if self.way.prefill == "question":
            return medium, None
        key = self.model.state_key.with_(content=watched_key(item))
        return medium, drained(watching(self.model, medium, key, messages=self.messages(item, medium), video=item.key))

    def _stream(self, item: Item) -> FrameStream:
        frames, size = self.way.protocol.frames, self.form.image_size
        if "needle" in item.extra:
            frames = haystack_frames(item, frames)
        stream = FrameStream(lambda: opened(item.video), size, frames, part=item.video.part)
        if "needle" not in item.extra:
            return stream
        return WithNeedle(stream, int(item.extra["at"]), picture_of(item, self.way.files, size))

    def messages(self, item: Item, medium: FrameStream) -> list[Message]:
        """What is said to the model; subtitles count from the start of the file, as frames do."""
        cues = ""
        if self.way.subtitles != "none" and item.subtitles is not None:
            start = item.video.start or 0.0
            shown = chosen(cues_of(item.subtitles), self.way.subtitles, [float(t) + start for t in medium.times])
            cues = "\n".join(shown)
        text = self.way.form.render(item, cues, medium.duration, len(medium.times))
        asked: Message = {"role": "user", "content": text}
        return [*self._system(), asked]

    def _system(self) -> list[Message]:
        return [{"role": "system", "content": self.way.form.system}] if self.way.form.system else []

    def reply(self, item: Item, variant: str, medium: FrameStream, state: VideoState | None) -> Reply:
        """What the model writes to one question about the frames of `watch`."""
        begun = time.monotonic()
        try:
            messages = self.messages(item, medium)
            encoded, start = self._prompt(item, messages, medium, state)
            longest = self.way.max_new_tokens
            stops = self.model.tokenizer.stop_ids
            ids = write(self.model.model.decoder, self._forced(start), longest, stop_ids=stops)[0]
        except Failures as error:
            return self._failed(item, variant, _told(error))
        return Reply(
            key=item.key,
            variant=variant,
            prompt=prompt_digest(messages, self.way.form.prefix),
            reply=self.model.tokenizer.decode(ids.tolist()),
            tokens={
                "prompt": len(encoded.ids) + len(self.prefix),
                "vision": int((encoded.kind == Kind.VISION).sum()),
                "written": len(ids),
            },
            finish="stop" if len(ids) < longest else "length",
            seconds=round(time.monotonic() - begun, 3),
        )

    def _prompt(
        self, item: Item, messages: list[Message], medium: FrameStream, state: VideoState | None
    ) -> tuple[Encoded, Prefilled]:
        room = self.way.max_new_tokens + len(self.prefix)
        if state is not None:
            with suppress(StateError):  # another text stands before the video: it is read for this question alone
                return state.prompt(messages, room)
        cfg = self.model.recipe.eval
        return read_question(
            self.model.model,
            self.model.tokenizer,
            self.form,
            Question(messages, [medium], item.key),
            tokens_per_piece=cfg.tokens_per_piece,
            max_new_tokens=room,
        )

    @torch.inference_mode()
    def _forced(self, start: Prefilled) -> Prefilled:
        """After the beginning that the reply is made to have."""
        if not self.prefix:
            return start
        decoder = self.model.model.decoder
        ids = torch.tensor(self.prefix, device=start.hidden.device)
        out = decoder(decoder.embed(ids), Bounds([len(ids)], ids.device), state=start.state)
        return replace(start, hidden=out.hidden[-1:])

    def _failed(self, item: Item, variant: str, reason: str) -> Reply:
        return Reply(item.key, variant, "", "", {}, "", 0.0, reason)


def prompt_digest(messages: Sequence[Message], prefix: str) -> str:
    """sha256 of what is said to the model, media apart."""
    told = "\0".join(f"{m['role']}\0{m['content']}" for m in messages)
    return sha256(f"{told}\0{prefix}".encode()).hexdigest()


def _told(error: Exception) -> str:
    """One line."""
    return " ".join(str(error).split()) or type(error).__name__
