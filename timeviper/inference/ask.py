"""Questions about videos, put to a finished stage: the same frames, prompt and transfer positions as in training."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from timeviper.config import Recipe
from timeviper.console import ProgressLine
from timeviper.datamodules.build import pack_format
from timeviper.datamodules.chat import Encoded
from timeviper.datamodules.frames.stream import FrameStream
from timeviper.datamodules.frames.video import Frames, read_video
from timeviper.inference.generate import check_sampling, write
from timeviper.inference.given import Video, media_of
from timeviper.inference.question import Question, read_question
from timeviper.kernels import dispatch
from timeviper.model.viper import TimeViper
from timeviper.pack import Kind
from timeviper.tokenizer import Tokenizer
from timeviper.weights.export import find_export, load_export, pick_device


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


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A finished stage in memory, to be asked as often as one likes. `load` makes it."""

    export: Path
    """The folder that it comes from."""
    device: torch.device
    model: TimeViper = field(repr=False)
    recipe: Recipe = field(repr=False)
    """Settings of the stage, with the overrides of `load`."""
    tokenizer: Tokenizer = field(repr=False)

    def ask(
        self,
        question: str,
        video: Video,
        *,
        times: ArrayLike | Tensor | None = None,
        fps: float | None = None,
        duration: float | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
        stream: bool = False,
        progress: bool = False,
    ) -> Answer:
        """Answer a question about a video or a picture.

        Frames of a file are decoded as they are needed; a prompt of more than `recipe.eval.tokens_per_piece` tokens
        goes through the model piece by piece, so that hours of video never lie in memory.

        video: the path of a file that PyAV opens, of which frames are taken as `recipe.data.frames` says; or what
        `read_video` gave, to ask about it again without decoding; or frames in memory, as a numpy array or a tensor of
        uint8 `[F, H, W, 3]` (RGB, of any size), or one picture `[H, W, 3]`. With frames in memory either

        - times: `[F]` seconds from the start of the video at which each frame is shown. All of them are used, so give
          as many as the model is used to. duration: seconds that the video lasts, if not as long as evenly spaced
          frames say.
        - fps: frames a second. The array is a whole clip, of which frames are taken as of a file.

        max_new_tokens: of the answer at most; None: `recipe.eval.max_new_tokens`. temperature 0: always the most likely
        token; above: drawn, from the likeliest that together hold `top_p` of the probability, with `generator` (on the
        model's device). stream: print the answer as it is written. progress: show on stderr how far a long prompt is.

        Raises:
            VideoError: for a file that cannot be read.
            TooLongError: for a question that the context does not hold, before any frame is decoded.
            ConfigError: for a temperature, top_p or max_new_tokens that does not exist.
            TypeError: for a video of another kind, or a question that is no text.
            ValueError: for frames of another type or shape, or times that do not fit them, with what is allowed.
        """
        how = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "generator": generator}
        medium = self.media(video, times, fps, duration)
        path = str(video) if isinstance(video, (str, Path)) else ""
        return self.follow(question, medium, path, **how, stream=stream, progress=progress).answer

    def media(
        self,
        video: Video,
        times: ArrayLike | Tensor | None = None,
        fps: float | None = None,
        duration: float | None = None,
    ) -> Frames | FrameStream:
        """The frames that `ask` shows the model; those of a file are decoded when they are asked for. Raises as it."""
        return media_of(video, pack_format(self.recipe).image_size, self.recipe.data.frames, times, fps, duration)

    def follow(
        self,
        question: str,
        medium: Frames | FrameStream,
        path: str = "",
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
        stream: bool = False,
        progress: bool = False,
    ) -> Followed:
        """`ask`, for who wants to know how it came about."""
        if not isinstance(question, str):
            raise TypeError(f"question must be text, got {type(question).__name__}; the video comes after it")
        cfg, form = self.recipe.eval, pack_format(self.recipe)
        longest = cfg.max_new_tokens if max_new_tokens is None else max_new_tokens
        check_sampling(temperature, top_p, longest)
        asked = Question([{"role": "user", "content": question}], [medium], path)
        decoder = self.tokenizer.stream()

        def show(ids: list[int]) -> None:
            sys.stdout.write(decoder.step(ids[0]))
            sys.stdout.flush()

        dispatch.configure(**vars(self.recipe.model.kernel))  # here, because another model may have been asked since
        with ProgressLine(sys.stderr, stays=False) if progress else nullcontext() as line:
            prompt, start = read_question(
                self.model,
                self.tokenizer,
                form,
                asked,
                tokens_per_piece=cfg.tokens_per_piece,
                max_new_tokens=longest,
                on_frames=line and partial(line.count, unit="frames"),
            )
        ids = write(
            self.model.decoder,
            start,
            longest,
            temperature=temperature,
            top_p=top_p,
            stop_ids=self.tokenizer.stop_ids,
            generator=generator,
            on_token=show if stream else None,
        )[0]
        if stream:
            print(flush=True)
        answer = Answer(
            question=question,
            text=self.tokenizer.decode(ids.tolist()),
            video=path,
            duration=medium.duration,
            frame_times=medium.times.tolist(),
            prompt_tokens=len(prompt.ids),
            vision_tokens=int((prompt.kind == Kind.VISION).sum()),
            kept={stage: counts[0] for stage, counts in start.kept.items()},
            survivors={
                stage: torch.bincount(which.cpu() // self.model.tokens_per_frame, minlength=len(medium.times)).tolist()
                for stage, (which,) in start.survivors.items()
            },
        )
        return Followed(answer, asked, prompt, ids, {stage: which.cpu() for stage, (which,) in start.survivors.items()})

    def read_video(self, path: str | Path) -> Frames:
        """The frames of a file as `ask` takes them: `pixels` uint8 `[F, 3, S, S]`, `times` `[F]` seconds.

        Raises VideoError for a file that cannot be read.
        """
        return read_video(path, pack_format(self.recipe).image_size, self.recipe.data.frames)


def load(
    run: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: str | None = None,
    overrides: Sequence[str] = (),
) -> LoadedModel:
    """Load a finished stage: a run folder, or the export in it.

    device: where it computes; None: the GPU if there is one. dtype: in which: float32 or bfloat16, where norms, gates
    and the scan's parameters stay float32; None: `parallel.param_dtype` of the stage on a GPU, float32 elsewhere.
    overrides: settings that differ from the stage's recipe, such as ["data.frames.fps=2", "eval.max_new_tokens=100"].
    `data.tokens_per_pack` limits training alone.

    Raises:
        FileNotFoundError: without an export there, with what makes one.
        ConfigError: for overrides that do not fit, or a dtype that there is not, or not on this device.
        ValueError: for an export that cannot answer, such as that of a vision tower.
    """
    export = find_export(run)
    place = pick_device() if device is None else torch.device(device)
    return LoadedModel(export, place, *load_export(export, overrides, device=place, dtype=dtype))


def ask(
    run: str | Path | LoadedModel,
    question: str,
    video: Video,
    overrides: Sequence[str] = (),
    *,
    times: ArrayLike | Tensor | None = None,
    fps: float | None = None,
    max_new_tokens: int | None = None,
    stream: bool = False,
) -> Answer:
    """Ask a run folder, an export or a loaded model once: `load(run, overrides=overrides).ask(question, video)`.

    Everything else is as in `LoadedModel.ask`; who has several questions should `load` first. Raises what both raise,
    and ValueError for overrides of a model that is loaded already.
    """
    if isinstance(run, LoadedModel):
        if overrides:
            raise ValueError(f"{run.export} is loaded already: give the overrides to load")
        model = run
    else:
        model = load(run, overrides=overrides)
    return model.ask(question, video, times=times, fps=fps, max_new_tokens=max_new_tokens, stream=stream)
