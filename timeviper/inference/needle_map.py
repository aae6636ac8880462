"""What became of needles, by the length of the video and how deep they lay: scores with intervals, as data.

A needle of one video is one draw of a cell, however many questions are about it: its share of right answers counts,
and the interval of a cell is Wilson's for that many draws. Over all depths of a length whole videos are drawn again,
because the needles of one are not independent (`paired.bootstrap_interval`); where all videos have the same score, each
video is a draw of Wilson's.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import numpy as np

from timeviper.datamodules.needles.place import Place, place_of
from timeviper.inference.journal import Entry
from timeviper.inference.metrics import Answered
from timeviper.inference.needles import Asked, Haystacks
from timeviper.inference.paired import FEW, LEVEL, RESAMPLES, SEED, bootstrap_interval, compare_scores

Z = 1.959964  # of a normal distribution: LEVEL of it lies within


@dataclass(frozen=True)
class Score:
    """A mean with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Cell:
    """The needles at one depth of videos of one length."""

    frames: int
    depth: tuple[float, float]
    """Shares of the length between which the needles' middles lie."""
    needles: int
    questions: int
    accuracy: Score | None
    """Right answers (of "when": an overlap of one half at least); None where nothing could be asked."""
    types: dict[str, float]
    """Accuracy by type of question."""
    miou: float | None
    """Mean IoU of the intervals that "when" is answered by; None without such questions."""


@dataclass(frozen=True)
class Row:
    """All depths of one length."""

    frames: int
    videos: int
    questions: int
    accuracy: Score | None
    types: dict[str, float]
    miou: Score | None
    skipped: dict[str, int]
    """Questions that could not be asked, by the reason."""
    cells: list[Cell]


@dataclass(frozen=True)
class Map:
    """One model under one setting."""

    run: str
    setting: str
    overrides: list[str]
    checkpoint: str
    weights: str | None
    dtype: str
    notes: list[str]
    rows: list[Row]

    @property
    def title(self) -> str:
        return f"{self.run}, {self.setting}"


@dataclass(frozen=True)
class Change:
    """A map against the first one, on the questions of one length that both have answered."""

    map: int
    """Its number; that of the first is 0."""
    frames: int
    score: str
    """accuracy or miou."""
    difference: Score


@dataclass(frozen=True)
class Comparison:
    """Maps of the same needles."""

    needles: str
    """Where they lie."""
    depths: int
    types: list[str]
    maps: list[Map]
    changes: list[Change]

    @property
    def notes(self) -> list[str]:
        """What the figures do not show by themselves."""
        of_all = set.intersection(*(set(one.notes) for one in self.maps))
        found = dict.fromkeys(
            note if note in of_all else f"{one.title}: {note}" for one in self.maps for note in one.notes
        )
        for one in self.maps:
            for row in one.rows:
                for reason, count in row.skipped.items():
                    found[f"{one.title}: {count} questions at {row.frames:,} frames were not asked: {reason}"] = None
        videos = min((row.videos for one in self.maps for row in one.rows), default=0)
        if 0 < videos < FEW:
            found[f"{videos} videos a length: with fewer than {FEW} the intervals are too narrow"] = None
        return list(found)

    def as_dict(self) -> dict[str, Any]:
        """The content of map.json."""
        method = {
            "level": LEVEL,
            "resamples": RESAMPLES,
            "seed": SEED,
            "cells": "Wilson",
            "rows": "bootstrap of videos",
        }
        return asdict(self) | {"notes": self.notes, "intervals": method}


def compare_maps(haystacks: Haystacks, asked: Iterable[Asked]) -> Comparison:
    """The maps, and how each differs from the first."""
    held = list(asked)
    changes = [change for number, one in enumerate(held) if number for change in _changes(number, held[0], one)]
    return Comparison(haystacks.where, haystacks.parts, list(haystacks.types), [draw_map(a) for a in held], changes)


def draw_map(asked: Asked) -> Map:
    return Map(
        run=asked.run,
        setting=asked.setting.name,
        overrides=[*asked.overrides, *asked.setting.overrides],
        checkpoint=asked.checkpoint,
        weights=asked.weights,
        dtype=asked.dtype,
        notes=asked.notes,
        rows=[_row(frames, entries) for frames, entries in asked.entries.items()],
    )


def _place(answer: Answered) -> Place:
    place = place_of(answer.key)
    assert place is not None
    return place


def _row(frames: int, entries: Sequence[Entry]) -> Row:
    answers = [entry.answered for entry in entries if not entry.reason]
    by_part: dict[int, list[Answered]] = defaultdict(list)
    places = [_place(entry.answered) for entry in entries]
    for answer in answers:
        by_part[_place(answer).part].append(answer)
    timed = [(answer, iou) for answer in answers if (iou := answer.iou) is not None]
    return Row(
        frames=frames,
        videos=len({place.video for place in places}),
        questions=len(answers),
        accuracy=_over_videos(answers, [float(a.correct) for a in answers]),
        types=_by_type(answers),
        miou=_over_videos([a for a, _ in timed], [iou for _, iou in timed]),
        skipped=dict(Counter(entry.reason for entry in entries if entry.reason)),
        cells=[_cell(frames, part, places[0].parts, by_part[part]) for part in range(places[0].parts)],
    )


def _cell(frames: int, part: int, parts: int, answers: Sequence[Answered]) -> Cell:
    needles = len({_place(answer) for answer in answers})
    ious = [iou for a in answers if (iou := a.iou) is not None]
    return Cell(
        frames=frames,
        depth=(part / parts, (part + 1) / parts),
        needles=needles,
        questions=len(answers),
        accuracy=wilson(sum(a.correct for a in answers) / len(answers), needles) if answers else None,
        types=_by_type(answers),
        miou=sum(ious) / len(ious) if ious else None,
    )


def _by_type(answers: Sequence[Answered]) -> dict[str, float]:
    right: dict[str, list[bool]] = defaultdict(list)
    for answer in answers:
        right[answer.type].append(answer.correct)
    return {kind: sum(found) / len(found) for kind, found in sorted(right.items())}


def _over_videos(answers: Sequence[Answered], scores: Sequence[float]) -> Score | None:
    if not answers:
        return None
    _, index = np.unique([_place(answer).haystack for answer in answers], return_inverse=True)
    mean, (low, high) = float(np.mean(scores)), bootstrap_interval(np.asarray(scores), index)
    # Videos that are all alike, such as all right, do not tell that no other could differ.
    return wilson(mean, int(index.max()) + 1) if high - low < 1e-9 else Score(mean, low, high)


def wilson(share: float, n: int) -> Score:
    """The interval of a share of `n` independent draws (Wilson, JASA 22, 1927); it never leaves 0 to 1, and is not
    empty where all or none are right."""
    middle, spread = share + Z**2 / (2 * n), Z * sqrt(share * (1 - share) / n + (Z / (2 * n)) ** 2)
    low, high = ((middle + side * spread) / (1 + Z**2 / n) for side in (-1, 1))
    return Score(share, max(min(low, share), 0.0), min(max(high, share), 1.0))


def _changes(number: int, first: Asked, other: Asked) -> Iterable[Change]:
    for frames, entries in first.entries.items():
        theirs: Mapping[str, Answered] = {e.answered.key: e.answered for e in other.entries[frames] if not e.reason}
        pairs = [(e.answered, theirs[e.answered.key]) for e in entries if not e.reason and e.answered.key in theirs]
        timed = [(x, y) for x, y in pairs if x.iou is not None]
        for score, of, chosen in (
            ("accuracy", lambda a: float(a.correct), pairs),
            ("miou", lambda a: a.iou or 0.0, timed),
        ):
            if chosen:
                videos = [_place(x).haystack for x, _ in chosen]
                found = compare_scores([of(x) for x, _ in chosen], [of(y) for _, y in chosen], videos)
                yield Change(number, frames, score, Score(found.difference, found.low, found.high))
