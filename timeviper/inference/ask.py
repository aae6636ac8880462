"""Questions about videos, put to a finished stage: the same frames, prompt and transfer positions as in training."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import get_args

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from timeviper.config import Recipe
from timeviper.console import ProgressLine
from timeviper.datamodules.build import pack_format
from timeviper.datamodules.frames.stream import FrameStream
from timeviper.datamodules.frames.video import Frames, read_video
from timeviper.errors import one_of
from timeviper.inference.answer import GREEDY, Answer, Followed, Sampling, check_question, written
from timeviper.inference.given import Video, media_of
from timeviper.inference.live import LiveState
from timeviper.inference.question import Question, read_question
from timeviper.inference.state_file import StateFile
from timeviper.inference.state_key import StateError, StateKey, content_of, model_key, sampler_of
from timeviper.inference.video_state import Tier, VideoState
from timeviper.inference.watch import NOTHING, watching
from timeviper.kernels import dispatch
from timeviper.model.viper import TimeViper
from timeviper.tokenizer import Message, Tokenizer
from timeviper.weights.export import DTYPES, find_export, is_export, load_export, pick_device
from timeviper.weights.lineage import read_lineage


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
    overrides: tuple[str, ...] = field(default=(), repr=False)

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
        check_question(question)
        medium = self.media(video, times, fps, duration)
        path = str(video) if isinstance(video, (str, Path)) else ""
        how = Sampling(max_new_tokens, temperature, top_p, generator, stream)
        return self.follow(question, medium, path, how, progress).answer

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
        how: Sampling = GREEDY,
        progress: bool = False,
    ) -> Followed:
        """`ask`, for who wants to know how it came about."""
        check_question(question)
        asked = Question([{"role": "user", "content": question}], [medium], path)
        longest = how.longest(self.recipe.eval.max_new_tokens)
        dispatch.configure(**vars(self.recipe.model.kernel))  # here, because another model may have been asked since
        with _telling(progress) as told:
            prompt, start = read_question(
                self.model,
                self.tokenizer,
                pack_format(self.recipe),
                asked,
                tokens_per_piece=self.recipe.eval.tokens_per_piece,
                max_new_tokens=longest,
                on_frames=told,
            )
        return written(self.model, self.tokenizer, asked, medium, prompt, start, longest, how)

    def watch(
        self,
        video: Video,
        *,
        times: ArrayLike | Tensor | None = None,
        fps: float | None = None,
        duration: float | None = None,
        messages: Sequence[Message] = NOTHING,
        tier: Tier = "state",
        max_bytes: int | None = None,
        salt: str = "",
        progress: bool = False,
    ) -> VideoState:
        """Read a video once, for any number of questions: `state.ask(question)` costs about the question alone, and
        gives what `ask` gives with the video.

        video, times, fps, duration, progress: as for `ask`. messages: a conversation that begins as those will that
        are asked, where a system message or other text stands before the video. tier: `state`, or `features` for a
        sixth of the size and a prefill at the first question. max_bytes: the most that the state may take; counted
        before anything is decoded. salt: makes the key one's own.

        Raises as `ask` does; TooLongError too for more than `max_bytes`.
        """
        if tier not in get_args(Tier):
            raise ValueError(f"tier must be {one_of(get_args(Tier))}, got {tier!r}")
        medium = self.media(video, times, fps, duration)
        content = content_of(video, None if isinstance(medium, FrameStream) else medium)
        sampler = sampler_of(video, self.recipe.data.frames)
        key = self.state_key.with_(content=content, sampler=sampler, salt=salt)
        path = str(video) if isinstance(video, (str, Path)) else ""
        steps = watching(self, medium, key, messages=messages, tier=tier, max_bytes=max_bytes, video=path)
        with _telling(progress) as told:
            while True:
                try:
                    done, total = next(steps)
                except StopIteration as end:
                    return end.value
                if told is not None:
                    told(done, total)

    @cached_property
    def state_key(self) -> StateKey:
        """What a video's state depends on, as far as the model says it."""
        return model_key(self.model, self.recipe, read_lineage(self.export).get("weights"))

    def watch_live(
        self, *, messages: Sequence[Message] = NOTHING, max_bytes: int | None = None, video: str = ""
    ) -> LiveState:
        """What frames can be given to as they come, and that can be asked about what there is so far: see `LiveState`.

        messages, max_bytes: as for `watch`; once the bytes are used up, no more frames are taken. video: its name."""
        return LiveState(self, messages, max_bytes, video)

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
    return LoadedModel(export, place, *load_export(export, overrides, device=place, dtype=dtype), tuple(overrides))


def load_state(
    path: str | Path,
    run: str | Path | LoadedModel | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: str | None = None,
    overrides: Sequence[str] = (),
    on_host: bool = False,
    until: float | None = None,
) -> VideoState:
    """A state that `VideoState.save` or `timeviper prefill` wrote, with its model.

    run: the model that made it, loaded or as for `load`; None: where the file says that it came from, with the
    overrides of then. device, dtype, overrides: as for `load`. on_host: leave the state in the host's memory, of which
    each question fetches what it needs. until: of a video that was watched as it came, only what was there at the last
    mark not after so many seconds.

    Raises StateError for a file that is missing, truncated, from a newer version, or of another model, with the field
    that differs; and as `load` does.
    """
    file = StateFile(path)
    if not isinstance(run, LoadedModel):
        made, before = str(file.header.get("run", "")), file.header.get("overrides")
        if run is None and not is_export(Path(made)):
            raise StateError(str(path), f"was made by {made}, which is not there any more: say where it is (--run)")
        key = file.header.get("key")
        if dtype is None and isinstance(key, dict) and key.get("dtype") in DTYPES:
            dtype = key["dtype"]
        then = [str(word) for word in before] if run is None and isinstance(before, list) else []
        run = load(run or made, device=device, dtype=dtype, overrides=[*then, *overrides])
    return VideoState.read(file, run, "cpu" if on_host else None, until)


@contextmanager
def _telling(progress: bool) -> Iterator[Callable[[int, int], None] | None]:
    """What shows on stderr how many frames are done."""
    if not progress:
        yield None
        return
    with ProgressLine(sys.stderr, stays=False) as line:
        yield partial(line.count, unit="frames")


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
