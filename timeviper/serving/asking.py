"""A checked request becomes a job of the engine: media opened, prompt encoded and counted, bytes predicted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from timeviper.datamodules.build import pack_format
from timeviper.inference.ask import LoadedModel
from timeviper.inference.prefill import Prefilled, kept_bytes
from timeviper.inference.question import Question, TooLongError, check_fits, read_question
from timeviper.pack import Kind, text_runs, vision_groups
from timeviper.serving.decoders import ApartStream
from timeviper.serving.media import MediaRoom, OpenMedium
from timeviper.serving.problems import ApiError
from timeviper.serving.request import ChatRequest
from timeviper.serving.store import FileStore
from timeviper.serving.turns import Pause
from timeviper.tokenizer import Tokenizer


@dataclass
class Facts:
    """What the model was shown, for the reply."""

    media: Sequence[OpenMedium]
    prompt_tokens: int
    vision_tokens: int
    kept: dict[str, int] = field(default_factory=dict)
    """Vision tokens that are left after each TransV stage; known when the prompt has been read."""
    cached_tokens: int = 0

    def as_dict(self) -> dict[str, Any]:
        times = [float(t) for medium in self.media for t in medium.frames.times]
        return {
            "frames": len(times),
            "first_seconds": round(times[0], 3) if times else None,
            "last_seconds": round(times[-1], 3) if times else None,
            "media": [
                {
                    "kind": medium.frames.kind,
                    "duration": round(medium.frames.duration, 3),
                    "frame_times": [round(float(t), 3) for t in medium.frames.times],
                }
                for medium in self.media
            ],
            "tokens": {"prompt": self.prompt_tokens, "vision": self.vision_tokens, "kept": self.kept},
        }


@dataclass
class Prepared:
    """A request that could be answered."""

    read: Callable[[Pause], Prefilled]
    ready: Callable[[], bool]
    num_bytes: int
    facts: Facts
    progress: list[int]
    """Frames that have been read, and of how many."""


class Asker:
    """Prepares requests for one model; may be called from several threads."""

    def __init__(self, model: LoadedModel, media: MediaRoom, wake: Callable[[], None]) -> None:
        self.model, self.media, self.wake = model, media, wake
        self.form = pack_format(model.recipe)
        # Encoding switches how special tokens are seen, so the engine's thread has a tokenizer of its own.
        self._tokenizer, self._lock = Tokenizer.load(str(model.export)), threading.Lock()
        empty = model.model.decoder.empty_state(1, "meta", model.model.decoder.embeddings.weight.dtype)
        self._fixed = empty.num_bytes()

    def prepare(self, request: ChatRequest, files: FileStore) -> Prepared:
        """Raises ApiError."""
        media = [self.media.open(medium, files, self.wake) for medium in request.media]
        question = Question(request.messages, [medium.frames for medium in media])
        most = self.media.settings.max_frames
        if question.num_frames > most:
            message = f"the request's media have {question.num_frames:,} frames; {most:,} are taken: ask for fewer"
            raise ApiError(400, f"{message} (max_frames)", "max_frames")
        decoder, longest = self.model.model.decoder, request.style.max_new_tokens
        try:
            with self._lock:
                encoded = question.encode(self._tokenizer, self.form)
            check_fits(encoded, question.num_frames, longest, decoder.cfg)
        except TooLongError as error:
            raise ApiError(400, str(error), "messages") from None
        except ValueError as error:  # of the chat template
            raise ApiError(400, str(error), "messages") from None
        vision = int((encoded.kind == Kind.VISION).sum())
        groups = vision_groups(text_runs(encoded.kind, [len(encoded.ids)])[0], vision)
        kept = kept_bytes(decoder, groups, len(encoded.ids) - vision + longest)
        progress = [0, question.num_frames]
        return Prepared(
            read=lambda pause: self._read(question, longest, progress, pause),
            ready=lambda: all(m.frames.ready for m in media if isinstance(m.frames, ApartStream)),
            num_bytes=request.style.choices * (kept + self._fixed),
            facts=Facts(media, len(encoded.ids), vision),
            progress=progress,
        )

    def _read(self, question: Question, longest: int, progress: list[int], pause: Pause) -> Prefilled:
        def on_frames(done: int, total: int) -> None:
            progress[:] = done, total
            pause()

        for medium in question.media:
            if isinstance(medium, ApartStream):
                medium.pause = pause
        model = self.model
        _, start = read_question(
            model.model,
            model.tokenizer,
            self.form,
            question,
            tokens_per_piece=model.recipe.eval.tokens_per_piece,
            max_new_tokens=longest,
            on_frames=on_frames,
        )
        return start
