"""An answer: how it is written, and what it tells of the video that it is about."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from timeviper.datamodules.chat import Encoded
from timeviper.datamodules.frames.stream import FrameStream
from timeviper.datamodules.frames.video import Frames
from timeviper.inference.generate import check_sampling, write
from timeviper.inference.prefill import Prefilled
from timeviper.inference.question import Question
from timeviper.model.viper import TimeViper
from timeviper.pack import Kind
from timeviper.tokenizer import Tokenizer


@dataclass(frozen=True)
class Answer:
    """What a model wrote, and what it was shown; `str` of it is the text."""

    question: str
    text: str
    video: str
    """The path; empty for frames in memory."""
    duration: float
    """Seconds that the video lasts; 0 for a picture."""
    frame_times: list[float]
    """Seconds at which a player shows each frame that the model was shown."""
    prompt_tokens: int
    """Of the whole prompt, those of the frames among them."""
    vision_tokens: int
    kept: dict[str, int]
    """Vision tokens that are left after each TransV stage, by its name."""
    survivors: dict[str, list[int]]
    """How many of them each frame has, in the order of `frame_times`."""

    def __str__(self) -> str:
        return self.text

    def as_dict(self) -> dict[str, Any]:
        """What `timeviper ask --json` prints: times to the millisecond."""
        return {
            "question": self.question,
            "answer": self.text,
            "video": self.video,
            "duration": self.duration,
            "frame_times": [round(seconds, 3) for seconds in self.frame_times],
            "tokens": {"prompt": self.prompt_tokens, "vision": self.vision_tokens, "kept": self.kept},
            "survivors": self.survivors,
        }


@dataclass(frozen=True)
class Followed:
    """An answer, and what it came from."""

    answer: Answer
    asked: Question
    prompt: Encoded
    ids: Tensor
    """`[n]` int64: what was written, without a stop."""
    survivors: dict[str, Tensor]
    """Which vision tokens each TransV stage left, `[n]` int64 on the host, the video's first one being 0."""


@dataclass(frozen=True)
class Sampling:
    """How an answer is written; see `LoadedModel.ask`."""

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    generator: torch.Generator | None = None
    stream: bool = False

    def longest(self, usual: int) -> int:
        """Tokens at most; usual: where nothing is said. Raises ConfigError for settings that do not exist."""
        found = usual if self.max_new_tokens is None else self.max_new_tokens
        check_sampling(self.temperature, self.top_p, found)
        return found


GREEDY = Sampling()


def check_question(question: object) -> None:
    if not isinstance(question, str):
        raise TypeError(f"question must be text, got {type(question).__name__}; the video comes after it")


def written(
    model: TimeViper,
    tokenizer: Tokenizer,
    asked: Question,
    medium: Frames | FrameStream,
    prompt: Encoded,
    start: Prefilled,
    longest: int,
    how: Sampling,
) -> Followed:
    """Write the answer, `longest` tokens at most, to a prompt that has gone through the decoder, whose state is used
    up."""
    decoder = tokenizer.stream()

    def show(ids: list[int]) -> None:
        sys.stdout.write(decoder.step(ids[0]))
        sys.stdout.flush()

    ids = write(
        model.decoder,
        start,
        longest,
        temperature=how.temperature,
        top_p=how.top_p,
        stop_ids=tokenizer.stop_ids,
        generator=how.generator,
        on_token=show if how.stream else None,
    )[0]
    if how.stream:
        print(flush=True)
    survivors = {stage: which.cpu() for stage, (which,) in start.survivors.items()}
    answer = Answer(
        question=asked.messages[-1]["content"],
        text=tokenizer.decode(ids.tolist()),
        video=asked.key,
        duration=medium.duration,
        frame_times=medium.times.tolist(),
        prompt_tokens=len(prompt.ids),
        vision_tokens=int((prompt.kind == Kind.VISION).sum()),
        kept={stage: counts[0] for stage, counts in start.kept.items()},
        survivors={
            stage: torch.bincount(which // model.tokens_per_frame, minlength=len(medium.times)).tolist()
            for stage, which in survivors.items()
        },
    )
    return Followed(answer, asked, prompt, ids, survivors)
