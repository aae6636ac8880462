"""Questions one after the other, from a terminal or a pipe: the model is loaded once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from timeviper.datamodules.frames.video import probe_video
from timeviper.inference.given import Video

HELP = """\
A line is a question about the video; each stands for itself. /video FILE: another video; /quit or Ctrl-D: the end."""


def chat(video: Path | None, ask: Callable[[str, Video], object], to_person: bool) -> None:
    """Ask line by line from standard input. ask: puts a question about a video, and shows the answer.

    to_person: whether a person is there, who is told what to do, and whose mistakes end nothing.
    Raises ValueError or OSError for a mistake that nobody is there to mend.
    """
    if to_person:
        print(HELP)
    for line in _lines(to_person):
        word, _, rest = line.partition(" ")
        if word == "/quit":
            return
        try:
            if word == "/video":
                video = _opened(Path(rest.strip()))
            elif word.startswith("/"):
                raise ValueError(f"there is no {word}. {HELP}")
            elif video is None:
                raise ValueError("name a video first: /video FILE")
            else:
                ask(line, video)
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
