"""How to look: what one can ask `timeviper look` for, and what does not fit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

from timeviper.analysis.cut import mixers
from timeviper.datamodules.frames.stream import FrameStream
from timeviper.datamodules.frames.video import Frames
from timeviper.errors import ConfigError, Problem, one_of

Rows = Literal["answer", "question", "last"]
Method = Literal["rows", "relevance"]
MOST_STRETCHES = 2000


@dataclass(frozen=True)
class Options:
    rows: Rows = "answer"
    per: float | None = None
    """Seconds of a stretch; None: one, or more where frames lie further apart or a long video has too many."""
    method: Method = "rows"
    truth: tuple[float, float] | None = None
    blocks: tuple[int, ...] | None = None
    max_new_tokens: int | None = None


def check(options: Options, medium: Frames | FrameStream, layout: str, video: str) -> list[int]:
    """The blocks to look at. ConfigError with all that does not fit."""
    wrong, there = [], mixers(layout)
    if medium.kind == "image":
        says = "is a picture, and has no seconds: ask about it with `timeviper ask`, or name a video."
        wrong.append(Problem("--video", video, says))
    for block in options.blocks or ():
        if block not in there:
            what = (
                f"block {block} is an MLP" if 0 <= block < len(layout) else f"there are blocks 0 to {len(layout) - 1}"
            )
            wrong.append(Problem("--blocks", block, f"{what}; tokens meet in {', '.join(map(str, there))} ({layout})."))
    if options.per is not None and medium.kind == "video":
        least = medium.duration / MOST_STRETCHES
        if not (math.isfinite(options.per) and options.per > 0):
            wrong.append(Problem("--per", options.per, "must be seconds above 0, such as 1s."))
        elif options.per < least:
            says = (
                f"makes more than {MOST_STRETCHES:,} stretches of {medium.duration:g} seconds: {least:.2g}s at least."
            )
            wrong.append(Problem("--per", f"{options.per:g}s", says))
    if options.truth is not None and medium.kind == "video":
        start, stop = options.truth
        span = f"{start:g}-{stop:g}"
        if not start < stop:
            wrong.append(Problem("--truth", span, "is an empty window: the second number must be the larger one."))
        elif start < 0 or stop > medium.duration + 0.05:
            wrong.append(
                Problem("--truth", span, f"lies outside of the video, which lasts {medium.duration:g} seconds.")
            )
        elif not any(start <= seconds < stop for seconds in medium.times):
            near = min(medium.times, key=lambda t: min(abs(t - start), abs(t - stop)))
            says = f"holds none of the {len(medium.times)} frames shown to the model; the nearest is at {near:g} s."
            wrong.append(Problem("--truth", span, says))
    if wrong:
        raise ConfigError("what to look at", wrong)
    return sorted(set(options.blocks)) if options.blocks else there


def seconds_of(words: str, option: str) -> float:
    """`1s`, `1.5` or `1:30`."""
    try:
        *minutes, last = words.strip().removesuffix("s").split(":")
        found = float(last) + sum(60 ** (i + 1) * int(m) for i, m in enumerate(reversed(minutes)))
    except ValueError:
        found = math.nan
    if math.isnan(found):
        raise ConfigError("what to look at", [Problem(option, words, "must be seconds, such as 2, 2.5s or 1:30.")])
    return found


def options_of(
    rows: str, per: str | None, method: str, truth: str | None, blocks: str | None, longest: int | None
) -> Options:
    """From words as one types them. ConfigError with what is allowed."""
    wrong = []
    for option, value, allowed in (
        ("--rows", rows, ("answer", "question", "last")),
        ("--method", method, ("rows", "relevance")),
    ):
        if value not in allowed:
            wrong.append(Problem(option, value, f"must be {one_of(allowed)}."))
    numbers = [word.strip() for word in blocks.split(",")] if blocks else []
    if not all(word.isdigit() for word in numbers):
        wrong.append(Problem("--blocks", blocks, "must be numbers of blocks, such as 0,3."))
    span = truth.split("-") if truth else []
    if truth and len(span) != 2:
        wrong.append(Problem("--truth", truth, "must be two times, such as 2.5-7 or 1:05-1:20."))
    if wrong:
        raise ConfigError("what to look at", wrong)
    seconds = partial(seconds_of, option="--truth")
    return Options(
        rows,  # type: ignore[arg-type]
        seconds_of(per, "--per") if per else None,
        method,  # type: ignore[arg-type]
        (seconds(span[0]), seconds(span[1])) if span else None,
        tuple(map(int, numbers)) or None,
        longest,
    )
