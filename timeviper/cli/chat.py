"""A conversation about a video, from a terminal or a pipe: the model is loaded once and the video is read once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from timeviper.cli.clock import clock, clocks_in
from timeviper.datamodules.frames.video import probe_video
from timeviper.tokenizer import Message

HELP = """\
A line is a question about the video, after what was said before. /new: begin anew; /video FILE: another video;
/quit or Ctrl-D: the end."""


class Asked(Protocol):
    """A video's state, as far as a conversation needs it."""

    def ask(self, question: str, *, history: Sequence[Message] = ..., stream: bool = ...) -> Any: ...

    @property
    def seconds(self) -> float: ...


def chat(
    run: Path | None,
    video: Path | None,
    state: Path | None,
    overrides: Sequence[str],
    *,
    until: str | None = None,
    alone: bool = False,
    max_new_tokens: int | None = None,
    dtype: str | None = None,
) -> None:
    """`timeviper chat`. Raises ConfigError where neither a run nor a state is named, and as loading and watching do."""
    from timeviper.cli.states import opened_state
    from timeviper.errors import ConfigError, Problem
    from timeviper.inference.ask import load

    if state is None and run is None:
        raise ConfigError("chat", [Problem("RUN", None, "name a run, or the state of a video (--state).")])
    changes = list(overrides) + ([] if max_new_tokens is None else [f"eval.max_new_tokens={max_new_tokens}"])
    person, first = sys.stdin.isatty(), None
    if state is not None:
        first = opened_state(run, video, state, overrides=changes, dtype=dtype, until=until)
        model = first.model
    else:
        assert run is not None
        model = load(run, dtype=dtype, overrides=changes)

    def watched(path: Path) -> Asked:
        return model.watch(path, progress=person)

    talk(first or video, watched, person, alone)


def talk(video: Path | Asked | None, watch: Callable[[Path], Asked], to_person: bool, alone: bool = False) -> None:
    """Ask line by line from standard input, answers to standard output. watch: reads a video.

    to_person: whether a person is there, who is told what to do and what a clock shows at the times of an answer, and
    whose mistakes end nothing. alone: nothing is remembered.
    Raises ValueError or OSError for a mistake that nobody is there to mend.
    """
    history: list[Message] = []
    if to_person:
        print(HELP)
    for line in _lines(to_person):
        word, _, rest = line.partition(" ")
        if word == "/quit":
            return
        try:
            if word == "/video":
                video, history = _opened(Path(rest.strip())), []
            elif word == "/new":
                history = []
            elif word.startswith("/"):
                raise ValueError(f"there is no {word}. {HELP}")
            elif video is None:
                raise ValueError("name a video first: /video FILE")
            else:
                if isinstance(video, Path):
                    video = watch(video)
                    if to_person and video.seconds:
                        print(f"({clock(video.seconds)} of video)")
                answer = video.ask(line, history=() if alone else history, stream=True)
                if to_person and (times := clocks_in(str(answer))):
                    print(f"  = {times}")
                history += [Message(role="user", content=line), Message(role="assistant", content=str(answer))]
        except (ValueError, OSError) as error:
            if not to_person:
                raise
            print(f"error: {error}", file=sys.stderr)


def _opened(path: Path) -> Path:
    """A file whose first frames can be read. VideoError otherwise: before a question is typed."""
    probe_video(path)
    return path


def _lines(to_person: bool) -> Iterator[str]:
    """What is typed, without empty lines."""
    while True:
        try:
            line = input("> " if to_person else "").strip()
        except EOFError:
            if to_person:
                print()
            return
        if line:
            yield line
