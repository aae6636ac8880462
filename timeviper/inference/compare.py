"""Two runs on the same held-out questions: what differs between them, and by how much one is better.

A question is the same when its key is, and the bytes of its sample (`lineage.question_digest`). Only such pairs are
compared; how many others each run answered is said. Everything is in the report, whose table `compare_table` prints.
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
from timeviper.inference.evaluate import evaluate, read_answers, read_report
from timeviper.inference.metrics import Answered
from timeviper.inference.paired import FEW, LEVEL, RESAMPLES, SEED, compare_scores, mcnemar_p
from timeviper.weights.export import CONFIG, check_export, find_export
from timeviper.weights.lineage import generations, read_lineage

OVERALL = "overall"


def compare(a: str | Path, b: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The report of B against A; what a run has not answered yet, with these overrides, it answers now.

    Raises FileNotFoundError without an export, NotComparableError for the same run twice
    or no question in common, ValueError for a damaged file.
    """
    sides = {"a": Path(a), "b": Path(b)}
    exports = {side: find_export(run) for side, run in sides.items()}
    for export in exports.values():
        check_export(export)
    if exports["a"].resolve() == exports["b"].resolve():
        raise NotComparableError(f"{a} and {b} are the same export; name two runs")
    lineages = {side: generations(read_lineage(export)) for side, export in exports.items()}
    ours, theirs = (asdict(load_recipe(export / CONFIG, overrides)) for export in exports.values())
    answers = [_answers(run, overrides) for run in sides.values()]
    pairs = pair(*answers)
    if not pairs.both:
        raise NotComparableError(_nothing_common(sides, *answers))
    rows = score_pairs(pairs.both)
    return {
        **{side: {"run": str(run), "lineage": lineages[side]} for side, run in sides.items()},
        "overrides": list(overrides),
        "recipes": {key: list(values) for key, *values in differing(ours, theirs) if key not in ("out", "about")},
        "left_out": {"a": dict(pairs.only_a), "b": dict(pairs.only_b), "other_bytes": pairs.other_bytes},
        "other_prompts": sum(x.question != y.question for x, y in pairs.both),
        "rows": rows,
        "interval": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED, "resampled": "videos"},
        "verdict": [verdict(row) for row in rows if row["question"] == OVERALL or row["score"] == "iou"],
        "notes": _notes(rows, lineages),
    }


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
    """Questions that both runs answered, and by type how many only one did."""

    both: list[tuple[Answered, Answered]]
    only_a: Counter[str]
    only_b: Counter[str]
    other_bytes: int
    """Left out on both sides: of the same key, but of another sample, or with another right answer."""


def pair(a: Sequence[Answered], b: Sequence[Answered]) -> Pairs:
    """Pairs of the same key, sample, type and right answer, in the order of A."""
    theirs = {answer.key: answer for answer in b}
    both = [(x, y) for x in a if (y := theirs.get(x.key)) and _asked(x) == _asked(y)]
    paired = {x.key for x, _ in both}
    alone_a, alone_b = ([answer for answer in side if answer.key not in paired] for side in (a, b))
    return Pairs(
        both,
        Counter(answer.type for answer in alone_a),
        Counter(answer.type for answer in alone_b),
        len({x.key for x in alone_a} & {y.key for y in alone_b}),
    )


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


def score_pairs(pairs: Sequence[tuple[Answered, Answered]]) -> list[dict[str, Any]]:
    """One row for all questions, one for each type, and the IoU of intervals.

    A row: `question`, `score` (accuracy or iou), `n`, `clusters` (videos), `a`, `b`, `difference`, `low`, `high`,
    and for accuracy `only_a` and `only_b` (questions that one alone answers right) with McNemar's exact `p`.
    """
    types = sorted({x.type for x, _ in pairs})
    rows = [_accuracy(OVERALL, pairs), *(_accuracy(t, [p for p in pairs if p[0].type == t]) for t in types)]
    if timed := [p for p in pairs if p[0].type == WHEN]:
        rows.append(_row(WHEN, "iou", timed, [x.iou or 0.0 for x, _ in timed], [y.iou or 0.0 for _, y in timed]))
    return rows


def _accuracy(question: str, pairs: Sequence[tuple[Answered, Answered]]) -> dict[str, Any]:
    a, b = [x.correct for x, _ in pairs], [y.correct for _, y in pairs]
    only_a, only_b = sum(x > y for x, y in zip(a, b)), sum(y > x for x, y in zip(a, b))
    row = _row(question, "accuracy", pairs, a, b)
    return row | {"only_a": only_a, "only_b": only_b, "p": mcnemar_p(only_a, only_b)}


def _row(
    question: str, score: str, pairs: Sequence[tuple[Answered, Answered]], a: Sequence[float], b: Sequence[float]
) -> dict[str, Any]:
    found = compare_scores(a, b, [x.video for x, _ in pairs])
    return {"question": question, "score": score, **asdict(found), "difference": found.difference}


def verdict(row: dict[str, Any]) -> str:
    """What an interval says, in words; a point is a hundredth."""
    low, high = 100 * row["low"], 100 * row["high"]
    what = "accuracy over all questions" if row["score"] == "accuracy" else f'mean IoU of "{row["question"]}"'
    if low > 0 or high < 0:
        better, ends = ("B", (low, high)) if low > 0 else ("A", (-high, -low))
        return f"{better} is better by {ends[0]:.1f} to {ends[1]:.1f} points in {what}."
    if low == high == 0:
        return f"No difference at all in {what}: every question has the same score in both."
    sides = [f"up to {size:.1f} points better" for size in (-low, high)]
    return f"No difference is shown in {what}: A may be {sides[0]}, or B {sides[1]}."


def _notes(rows: list[dict[str, Any]], lineages: dict[str, list[dict[str, Any]]]) -> list[str]:
    notes = []
    if rows[0]["clusters"] < FEW:
        notes.append(f"Only {rows[0]['clusters']} videos: with fewer than {FEW} the intervals are too narrow.")
    weights = [lineages[side][0].get("weights") for side in ("a", "b")]
    if weights[0] and weights[0] == weights[1]:
        notes.append("Both exports hold the same weights, bit for bit.")
    return notes
