"""Two runs on the same held-out questions: what differs between them, and by how much one is better.

A question is the same when its key is, and the bytes of its sample (`lineage.question_digest`). Only such pairs are
compared; how many others each run answered is said. `compare_table` prints all of it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from timeviper.config.fields import differing
from timeviper.config.load import load_recipe
from timeviper.datamodules.when import WHEN
from timeviper.inference.eval_report import read_answers, read_report
from timeviper.inference.evaluate import evaluate
from timeviper.inference.metrics import Answered
from timeviper.inference.paired import FEW, LEVEL, RESAMPLES, SEED, Difference, Flips, compare_scores
from timeviper.weights.export import CONFIG, check_export, find_export
from timeviper.weights.lineage import generations, read_lineage

OVERALL = "overall"


@dataclass(frozen=True)
class Side:
    """One of the two runs."""

    run: str
    lineage: list[dict[str, Any]]
    """Its stage, then the stages before it: see `weights.lineage.describe`."""


@dataclass(frozen=True)
class LeftOut:
    """Questions that are not compared, because they are not the same on both sides."""

    a: dict[str, int]
    """By type, of those that A answered."""
    b: dict[str, int]
    other_bytes: int
    """Of the same key on both sides, but of another sample, or with another right answer."""


@dataclass(frozen=True)
class Row:
    """A score of both runs on the same questions."""

    question: str
    """Their type, or `overall`."""
    score: str
    """accuracy, or iou: of intervals."""
    found: Difference
    flips: Flips | None = None
    """Of accuracy; None for iou."""

    def as_dict(self) -> dict[str, Any]:
        flips = {} if self.flips is None else {**asdict(self.flips), "p": self.flips.p}
        return {
            "question": self.question,
            "score": self.score,
            **asdict(self.found),
            "difference": self.found.difference,
            **flips,
        }


@dataclass(frozen=True)
class Interval:
    """How the intervals were found."""

    level: float = LEVEL
    resamples: int = RESAMPLES
    seed: int = SEED
    resampled: str = "videos"


@dataclass(frozen=True)
class Comparison:
    """Run B against run A on the questions that both have answered."""

    a: Side
    b: Side
    overrides: list[str]
    """Settings of both evaluations that differ from the recipes."""
    recipes: dict[str, list[Any]]
    """Settings in which the recipes differ: the value of A, then that of B."""
    left_out: LeftOut
    other_prompts: int
    """Compared questions whose prompts differ in words or frame times."""
    rows: list[Row]
    interval: Interval
    verdict: list[str]
    """What the intervals of `overall` and of iou say, in words."""
    notes: list[str]
    """What makes the figures worth less."""

    def as_dict(self) -> dict[str, Any]:
        """What `timeviper compare --json` prints."""
        return asdict(self) | {"rows": [row.as_dict() for row in self.rows]}


def compare(a: str | Path, b: str | Path, overrides: Sequence[str] = ()) -> Comparison:
    """B against A; what a run has not answered yet, with these overrides, it answers now.

    Raises FileNotFoundError without an export, NotComparableError for the same run twice
    or no question in common, ValueError for a damaged file.
    """
    sides = {"a": Path(a), "b": Path(b)}
    exports = {side: find_export(run) for side, run in sides.items()}
    for export in exports.values():
        check_export(export)
    if exports["a"].resolve() == exports["b"].resolve():
        raise NotComparableError(f"{a} and {b} are the same export; name two runs")
    one, other = (Side(str(run), generations(read_lineage(exports[side]))) for side, run in sides.items())
    ours, theirs = (asdict(load_recipe(export / CONFIG, overrides, to_train=False)) for export in exports.values())
    answers = [_answers(run, overrides) for run in sides.values()]
    pairs = pair(*answers)
    if not pairs.both:
        raise NotComparableError(_nothing_common(sides, *answers))
    rows = score_pairs(pairs.both)
    return Comparison(
        a=one,
        b=other,
        overrides=list(overrides),
        recipes={key: list(values) for key, *values in differing(ours, theirs) if key not in ("out", "about")},
        left_out=pairs.left_out,
        other_prompts=sum(x.question != y.question for x, y in pairs.both),
        rows=rows,
        interval=Interval(),
        verdict=[verdict(row) for row in rows if row.question == OVERALL or row.score == "iou"],
        notes=_notes(rows, one, other),
    )


def _answers(run: Path, overrides: Sequence[str]) -> list[Answered]:
    """Those on disk if they are of this export and these overrides, else new ones."""
    if (report := read_report(run, overrides)) and (found := read_answers(run, report)) is not None:
        return found
    print(f"{run}: has not answered yet with these settings; now", file=sys.stderr, flush=True)
    found = read_answers(run, evaluate(run, overrides))
    assert found is not None
    return found


class NotComparableError(ValueError):
    """Two runs that have nothing to be compared on."""


@dataclass(frozen=True)
class Pairs:
    """Questions that both runs answered, and how many only one did."""

    both: list[tuple[Answered, Answered]]
    left_out: LeftOut


def pair(a: Sequence[Answered], b: Sequence[Answered]) -> Pairs:
    """Pairs of the same key, sample, type and right answer, in the order of A."""
    theirs = {answer.key: answer for answer in b}
    both = [(x, y) for x in a if (y := theirs.get(x.key)) and _asked(x) == _asked(y)]
    paired = {x.key for x, _ in both}
    alone_a, alone_b = ([answer for answer in side if answer.key not in paired] for side in (a, b))
    left_out = LeftOut(
        dict(Counter(answer.type for answer in alone_a)),
        dict(Counter(answer.type for answer in alone_b)),
        len({x.key for x in alone_a} & {y.key for y in alone_b}),
    )
    return Pairs(both, left_out)


def _asked(answer: Answered) -> tuple[str, str, str]:
    return answer.sample, answer.type, answer.right


def _nothing_common(sides: dict[str, Path], a: list[Answered], b: list[Answered]) -> str:
    same_keys = len({x.key for x in a} & {y.key for y in b})
    why = f"{same_keys} have the same names, but other contents" if same_keys else "they are of other sources or types"
    example = next((f" (first: {side[0].key})" for side in (a, b) if side), "")
    return (
        f"{sides['a']} answered {len(a)} held-out questions and {sides['b']} {len(b)}, none of them in common: "
        f"{why}{example}. Ask both the same: timeviper compare {sides['a']} {sides['b']} data.val.NAME.shards=FOLDER"
    )


def score_pairs(pairs: Sequence[tuple[Answered, Answered]]) -> list[Row]:
    """One row for all questions, one for each type, and the IoU of intervals."""
    types = sorted({x.type for x, _ in pairs})
    rows = [_accuracy(OVERALL, pairs), *(_accuracy(t, [p for p in pairs if p[0].type == t]) for t in types)]
    if timed := [p for p in pairs if p[0].type == WHEN]:
        rows.append(Row(WHEN, "iou", _difference(timed, [(x.iou or 0.0, y.iou or 0.0) for x, y in timed])))
    return rows


def _accuracy(question: str, pairs: Sequence[tuple[Answered, Answered]]) -> Row:
    right = [(x.correct, y.correct) for x, y in pairs]
    flips = Flips(sum(a > b for a, b in right), sum(b > a for a, b in right))
    return Row(question, "accuracy", _difference(pairs, right), flips)


def _difference(pairs: Sequence[tuple[Answered, Answered]], scores: Sequence[tuple[float, float]]) -> Difference:
    return compare_scores([a for a, _ in scores], [b for _, b in scores], [x.video for x, _ in pairs])


def verdict(row: Row) -> str:
    """What an interval says, in words; a point is a hundredth."""
    low, high = 100 * row.found.low, 100 * row.found.high
    what = "accuracy over all questions" if row.score == "accuracy" else f'mean IoU of "{row.question}"'
    if low > 0 or high < 0:
        better, ends = ("B", (low, high)) if low > 0 else ("A", (-high, -low))
        return f"{better} is better by {ends[0]:.1f} to {ends[1]:.1f} points in {what}."
    if low == high == 0:
        return f"No difference at all in {what}: every question has the same score in both."
    sides = [f"up to {size:.1f} points better" for size in (-low, high)]
    return f"No difference is shown in {what}: A may be {sides[0]}, or B {sides[1]}."


def _notes(rows: Sequence[Row], a: Side, b: Side) -> list[str]:
    notes = []
    if (videos := rows[0].found.clusters) < FEW:
        notes.append(f"Only {videos} videos: with fewer than {FEW} the intervals are too narrow.")
    weights = [side.lineage[0].get("weights") for side in (a, b)]
    if weights[0] and weights[0] == weights[1]:
        notes.append("Both exports hold the same weights, bit for bit.")
    return notes
