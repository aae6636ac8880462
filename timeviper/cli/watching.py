"""`timeviper watch`: frames as they come into a state on disk, whole at every mark."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Event
from typing import IO

from timeviper.cli.clock import clock
from timeviper.console import ProgressLine
from timeviper.datamodules.build import pack_format
from timeviper.datamodules.frames.live import LiveFrame, live_frames
from timeviper.files import sole_writer
from timeviper.inference.ask import load
from timeviper.inference.live import LiveState


def follow(
    source: str,
    run: Path,
    out: Path,
    overrides: Sequence[str],
    *,
    every: float,
    last: float | None,
    patience: float,
    max_bytes: int | None,
    dtype: str | None,
) -> None:
    """Watch until the source ends, `last` seconds of it have come, nothing more fits, or Ctrl-C; every and last in
    seconds of the video.

    Raises VideoError for what is no video, OSError where another process watches into the same file.
    """
    with sole_writer(out):
        model = load(run, dtype=dtype, overrides=overrides)
        live = model.watch_live(max_bytes=max_bytes, video=source)
        stream: str | Path | IO[bytes] = sys.stdin.buffer if source == "-" else source
        size, fps = pack_format(model.recipe).image_size, model.recipe.data.frames.fps
        stop = Event()
        frames = live_frames(stream, size, fps, patience, stop)
        with _until_interrupted(stop), closing(frames), ProgressLine(sys.stderr, stays=False) as line:
            why = _take(live, frames, out, every, last, line)
        if stop.is_set():
            why = "stopped"
        if live.marks and out.is_file():
            mark, size = live.marks[-1], out.stat().st_size / 1e6
            print(f"{out}: {mark.frames:,} frames of {clock(mark.seconds)}, {size:,.1f} MB ({why})")
        else:
            print(f"nothing is kept ({why})", file=sys.stderr)


def _take(
    live: LiveState, frames: Iterator[LiveFrame], out: Path, every: float, last: float | None, line: ProgressLine
) -> str:
    """Take frames and keep them at every mark; returns why it has ended."""
    following, so_far, why = every, 0.0, "the source has ended"
    for frame in frames:
        live.add(frame.pixels[None], [frame.seconds])
        so_far = frame.until
        line(f"{clock(so_far)}  {live.frames:,} frames")
        if so_far >= following - 1e-9:
            _keep(live, so_far, out)
            following += every * max(1, int((so_far - following) // every + 1))
        if live.full or (last is not None and so_far >= last - 1e-9):
            why = live.full or "as long as was asked for"
            break
    _keep(live, so_far, out)
    return why


@contextmanager
def _until_interrupted(stop: Event) -> Iterator[None]:
    """A Ctrl-C sets `stop`, so that a frame that is being read is read whole; a second one is as elsewhere."""

    def heard(*_: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, heard)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _keep(live: LiveState, seconds: float, out: Path) -> None:
    """A disk that is full ends nothing: the next mark may find room, and the last whole file stays."""
    if live.mark(seconds) is None:
        return
    try:
        live.save(out)
    except OSError as error:
        print(f"the mark at {clock(seconds)} is not kept: {error}", file=sys.stderr)
