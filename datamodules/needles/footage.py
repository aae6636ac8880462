"""Needles in people's own videos: captioned pictures that are shown for some seconds, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

from timeviper.datamodules.needles.haystack import Cut, Shown, write_haystack
from timeviper.datamodules.needles.material import Clip
from timeviper.datamodules.needles.pictures import Layout, Picture
from timeviper.datamodules.needles.place import Place
from timeviper.datamodules.shards.writer import Sample
from timeviper.datamodules.when import bounds

NUMBERS = ("one", "two", "three", "four", "five")

# Several ways to ask, drawn by seed. What a question says tells nothing about the answer.
PROMPTS: dict[str, tuple[str, ...]] = {
    "at": ("Which picture is shown at {}?", "What is in the picture at {}?", "Name the picture at {}."),
    "when": (
        "When is the picture of {} shown?",
        "From when to when is the picture of {} shown?",
        "At what time is the picture of {} in the video?",
    ),
    "after": ("Which picture is shown after that of {}?", "Which picture comes right after that of {}?"),
    "before": ("Which picture is shown before that of {}?", "Which picture comes right before that of {}?"),
    "between": (
        "How many pictures are shown between {}?",
        "How many pictures are there between {}?",
        "Count the pictures between {}.",
    ),
    "timeline": ("Which pictures are shown when?", "List the pictures with the times.", "Tell pictures and times."),
}


@dataclass(frozen=True)
class FootageNeedles:
    """How to make the videos of one side; plain data, so that it travels to another process."""

    parts: int
    """Equal parts of a video; each holds one needle, in training each with some chance."""
    fps: float
    """Frames a second that the model is shown: needles begin and end between two of them."""
    seed: int
    clips: tuple[Clip, ...]
    pictures: tuple[Picture, ...]
    shown: tuple[int, int]
    """Fewest and most frames that show a needle, of those that the model is shown."""
    layout: Layout
    training: bool = False

    @cached_property
    def by_caption(self) -> dict[str, list[Picture]]:
        found: dict[str, list[Picture]] = {}
        for picture in sorted(self.pictures, key=lambda p: (p.caption, p.file)):
            found.setdefault(picture.caption, []).append(picture)
        return found

    def check(self, frames: int) -> None:
        """ValueError where the needles do not fit into a video of so many frames, or pictures are too few."""
        most, each = self.shown[1], frames // self.parts
        if most + 1 > each:
            fits = max(frames // (most + 1), 1)
            raise ValueError(
                f"a video of {frames:,} frames in {self.parts} parts has {each} frames a part, but a needle takes up "
                f"to {most} and one without it: take longer videos, --depths {fits} or a shorter --shown"
            )
        if (there := len(self.by_caption)) < self.parts:
            raise ValueError(
                f"{self.parts} needles of a video must differ in their captions, but the "
                f"{'training' if self.training else 'held-out'} pictures have {there} different ones: bring more, or "
                f"--depths {there}"
            )

    def notes(self, frames: int) -> list[str]:
        """What was decided because the clips are as they are."""
        seconds, longest = frames / self.fps, max(clip.seconds for clip in self.clips)
        if seconds <= longest:
            return []
        how = "it is repeated" if len(self.clips) == 1 else "several are shown one after the other"
        return [f"{frames:,} frames last {seconds:g} s, but the longest clip {longest:.0f} s: {how}"]

    def samples(self, frames: int, video: int, folder: Path) -> Iterator[Sample]:
        """The needles of one video, whose file is written to `folder`: a sample each, in order of depth; of training
        one sample with a question of each type, and the list of all needles with their times."""
        rng = np.random.default_rng((self.seed, frames, self.parts, video, self.training))
        shown = self.needles(rng, frames)
        file = folder / f"f{frames}-v{video:05d}.mp4"
        cuts = list(self.background(rng, frames / self.fps))
        media = write_haystack(file, cuts, [one for one in shown if one], frames / self.fps, self.fps, self.layout)
        there = [one for one in shown if one]
        record = {
            "media": [{"type": "video", "member": "mp4", **media}],
            "segments": [{"start": one.start, "end": one.end, "text": one.picture.caption} for one in there],
            "source": "needles",
            "layout": self.layout,
            "background": [{"file": c.clip.file.name, "start": c.start, "seconds": c.seconds} for c in cuts],
        }
        if self.training:
            asked = [ask(rng, kind, there, int(rng.integers(len(there)))) for kind in QUESTIONS if len(there) > 1]
            talks = [timeline(rng, there), *asked]
            yield {"__key__": f"f{frames}-v{video:05d}", "json": record | {"conversations": talks}, "mp4": file}
            return
        for part in range(self.parts):
            talks = [ask(rng, kind, there, part) for kind in QUESTIONS if self.parts > 1 or kind in ("at", "when")]
            place = Place(frames, part, self.parts, video)
            yield {"__key__": place.key, "json": record | {"conversations": talks}, "mp4": file}

    def needles(self, rng: Generator, frames: int) -> list[Shown | None]:
        """One of each part, in order of time: all captions differ. In training a number of parts is left without,
        every number alike, but two at least have one."""
        captions = list(self.by_caption)
        chosen = rng.permutation(len(captions))[: self.parts]
        filled = np.ones(self.parts, bool)
        if self.training and self.parts > 2:
            filled[rng.permutation(self.parts)[: rng.integers(self.parts - 1)]] = False
        edges = [ceil(i * frames / self.parts) for i in range(self.parts + 1)]
        found: list[Shown | None] = []
        for part, (number, first, end) in enumerate(zip(chosen.tolist(), edges, edges[1:])):
            alike = self.by_caption[captions[number]]
            picture = alike[rng.integers(len(alike))]
            lasts = int(rng.integers(self.shown[0], self.shown[1] + 1))
            start = first + int(rng.integers(end - first - lasts))  # a frame at least from the next part's
            at = (float(rng.random()), float(rng.random()))
            shown = Shown(picture, start / self.fps, (start + lasts) / self.fps, at)
            found.append(shown if filled[part] else None)
        return found

    def background(self, rng: Generator, seconds: float) -> Iterator[Cut]:
        """Clips that fill a video: of one that is long enough a piece that begins anywhere; of shorter ones all, in an
        order that is drawn, again and again."""
        left = seconds
        while left > 1e-9:
            for number in rng.permutation(len(self.clips)):
                clip = self.clips[number]
                lasts = min(clip.seconds, left)
                spare = clip.seconds - lasts
                start = round(float(rng.uniform(0, spare)), 1) if spare > 0.1 else 0.0
                yield Cut(clip, min(start, spare), lasts)
                left -= lasts
                if left <= 1e-9:
                    return


# ---- questions --------------------------------------------------------------------------------------------


def ask(rng: Generator, kind: str, shown: list[Shown], at: int) -> dict[str, Any]:
    """A question of a type about the needle number `at`, or about its neighbours."""
    return QUESTIONS[kind](rng, shown, at)


def timeline(rng: Generator, shown: list[Shown]) -> dict[str, Any]:
    """All needles with their times, in order: every label of it needs another one."""
    told = ", then ".join(f"{bounds(one.start, one.end)} {one.picture.caption}" for one in shown)
    return _talk(rng, "timeline", "timeline", f"{told}.")


def _at(rng: Generator, shown: list[Shown], at: int) -> dict[str, Any]:
    one = shown[at]
    spare = (one.end - one.start) / 4  # a time well within
    time = float(rng.uniform(one.start + spare, one.end - spare))
    return _talk(rng, "at", "at", one.picture.caption, f"{time:.1f} seconds")


def _when(rng: Generator, shown: list[Shown], at: int) -> dict[str, Any]:
    caption = shown[at].picture.caption
    return _talk(rng, "when", "when", f"{caption} {bounds(shown[at].start, shown[at].end)}", caption)


def _order(rng: Generator, shown: list[Shown], at: int) -> dict[str, Any]:
    """The needle, asked by one of its neighbours."""
    ways = [("after", at - 1)] * (at > 0) + [("before", at + 1)] * (at + 1 < len(shown))
    way, beside = ways[rng.integers(len(ways))]
    return _talk(rng, "order", way, shown[at].picture.caption, shown[beside].picture.caption)


def _between(rng: Generator, shown: list[Shown], at: int) -> dict[str, Any]:
    """How many pictures stand between the needle and another: a number drawn first, so that no other is likelier."""
    number = int(rng.integers(min(len(NUMBERS), len(shown) - 1)))
    ends = [other for other in (at - number - 1, at + number + 1) if 0 <= other < len(shown)]
    while not ends:
        number -= 1
        ends = [other for other in (at - number - 1, at + number + 1) if 0 <= other < len(shown)]
    first, last = sorted((at, ends[rng.integers(len(ends))]))
    answer = "no picture" if number == 0 else "one picture" if number == 1 else f"{NUMBERS[number - 1]} pictures"
    about = f"{shown[first].picture.caption} and {shown[last].picture.caption}"
    return _talk(rng, "between", "between", answer, about)


QUESTIONS = {"at": _at, "when": _when, "order": _order, "between": _between}


def _talk(rng: Generator, kind: str, prompt: str, answer: str, about: str = "") -> dict[str, Any]:
    question = PROMPTS[prompt][rng.integers(len(PROMPTS[prompt]))].format(about)
    messages = [{"role": "user", "content": f"<video>\n{question}"}, {"role": "assistant", "content": answer}]
    return {"type": kind, "messages": messages}
