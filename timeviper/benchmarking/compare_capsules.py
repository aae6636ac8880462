"""Two capsules of the same questions: refused where more than the model differs, else flips and an interval of the
official score's difference over videos drawn together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from timeviper.benchmarking.capsule import Capsule, CapsuleError, read_capsule
from timeviper.benchmarking.capsule_write import differences
from timeviper.benchmarking.intervals import Tally, difference
from timeviper.benchmarking.item import Item
from timeviper.benchmarking.policies import Rule, choice_rules, window_rules
from timeviper.benchmarking.scoring import Judged, Unscored, choice_tally, judge, window_ious, window_tallies
from timeviper.benchmarking.texts_score import cider_tallies, same_as_any
from timeviper.inference.paired import FEW, mcnemar_p

MUST_AGREE = ("set", "frames", "subtitles", "template", "decoding")


class NotComparable(CapsuleError):
    """Two capsules that differ in more than the model."""


@dataclass(frozen=True)
class Compared:
    """One score of both on the same questions, in its own unit."""

    measure: str
    rule: str
    n: int
    a: float
    b: float
    low: float
    high: float
    """Ends of the interval of b - a."""
    only_a: int | None = None
    """Questions that A alone has right; None where nothing is right or wrong."""
    only_b: int | None = None
    p: float | None = None
    """Exact McNemar's."""

    @property
    def difference(self) -> float:
        return self.b - self.a


@dataclass
class CapsuleComparison:
    """What `timeviper compare` prints of two capsules."""

    a: str
    b: str
    set: str
    videos: int
    rows: list[Compared] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"rows": [asdict(row) | {"difference": row.difference} for row in self.rows]}


def compare_capsules(a: str | Path, b: str | Path) -> CapsuleComparison:
    """B against A. Raises NotComparable, which names the first differences, for other questions, frames or prompts;
    CapsuleError for one that is not whole or was edited."""
    one, other = (read_capsule(folder) for folder in (a, b))
    for capsule in (one, other):
        if capsule.edited:
            raise CapsuleError(f"{capsule.folder} is not as it was written: {capsule.edited[0]}")
    if wrong := [*differences(one.header, other.header, MUST_AGREE), *_contents(one, other)]:
        raise NotComparable(
            f"{a} and {b} cannot be compared, because more than the model differs: {'; '.join(wrong[:4])}. Run both "
            "with the same protocol and prompt, or score each by itself: timeviper bench rescore"
        )
    asked = [item for item in one.items if item.key in one.of("") and item.key in other.of("")]
    if not asked:
        raise NotComparable(f"{a} and {b} have no question in common that both were asked")
    made = CapsuleComparison(str(a), str(b), str(one.header["set"].get("title", one.set_name)), 0)
    clusters = {name: i for i, name in enumerate(sorted({item.video.name for item in asked}))}
    made.videos = len(clusters)
    sides = [_texts(capsule) for capsule in (one, other)]
    policies = dict(one.header["set"].get("policies", {}))
    made.rows += _choices(one.header, asked, sides, clusters)
    made.rows += _windows(one.set_name, policies, asked, sides, clusters)
    made.rows += _words(asked, sides, clusters)
    if len(asked) < len(one.items):
        made.notes.append(
            f"{len(one.items) - len(asked):,} of {len(one.items):,} questions have not been asked of both"
        )
    if made.videos < FEW:
        made.notes.append(f"only {made.videos} videos: with fewer than {FEW} the intervals are too narrow")
    weights = [capsule.header["model"].get("weights") for capsule in (one, other)]
    if weights[0] and weights[0] == weights[1]:
        made.notes.append("both were answered by the same weights")
    return made


def _contents(a: Capsule, b: Capsule) -> list[str]:
    """Items, frames and prompts that differ, an example of each."""
    found = []
    if a.header["items"]["sha256"] != b.header["items"]["sha256"]:
        ours, theirs = ({item.key for item in c.items} for c in (a, b))
        other = sorted(ours ^ theirs)
        found.append(f"their items differ (first: {other[0]})" if other else "their items differ in content")
    frames = [v for v in a.frames if v in b.frames and a.frames[v].times != b.frames[v].times]
    if frames:
        x, y = a.frames[frames[0]], b.frames[frames[0]]
        told = f"{len(x.times)} and {len(y.times)}" if len(x.times) != len(y.times) else "as many, at other times"
        found.append(f"frames of {len(frames)} videos ({frames[0]}: {told})")
    ours, theirs = a.of(""), b.of("")
    prompts = [k for k in ours if k in theirs and "" not in (p := {ours[k].prompt, theirs[k].prompt}) and len(p) > 1]
    if prompts:
        found.append(f"prompts of {len(prompts)} questions (first: {prompts[0]})")
    return found


def _texts(capsule: Capsule) -> dict[str, str | None]:
    return {key: None if reply.error else reply.reply for key, reply in capsule.of("").items()}


Sides = Sequence[Mapping[str, str | None]]


def _choices(
    header: Mapping[str, Any], items: Sequence[Item], sides: Sides, clusters: Mapping[str, int]
) -> list[Compared]:
    choices = [item for item in items if item.is_choice]
    if not choices:
        return []
    rule = choice_rules(header, choices)[0]
    judged = [judge(rule, choices, texts, Unscored()) for texts in sides]
    tallies = [choice_tally(rule, one, clusters) for one in judged]
    flips = _flips([[bool(one.right) for one in side] for side in judged])
    measure = "group score" if rule.average == "group" else "accuracy"
    return [_row(measure, rule, len(judged[0]), tallies, len(clusters), flips)]


def _windows(
    name: str, policies: Mapping[str, Any], items: Sequence[Item], sides: Sides, clusters: Mapping[str, int]
) -> list[Compared]:
    timed = [item for item in items if item.task == "grounding" and item.windows]
    if not timed:
        return []
    rule = window_rules(name, policies)[0]
    found = [window_tallies(rule, timed, texts, clusters) for texts in sides]
    ious = [window_ious(rule, timed, texts) for texts in sides]
    rows = []
    for measure in found[0]:
        at = measure.removeprefix("R1@")
        flips = None if at == measure else _flips([[_over(v, float(at), rule) for v in side] for side in ious])
        rows.append(_row(measure, rule, len(timed), [side[measure] for side in found], len(clusters), flips))
    return rows


def _over(value: float, threshold: float, rule: Rule) -> bool:
    return value > threshold if rule.strict else value >= threshold


def _words(items: Sequence[Item], sides: Sides, clusters: Mapping[str, int]) -> list[Compared]:
    rows = []
    if opened := [item for item in items if item.task == "open" and item.answers]:
        right = [[same_as_any(texts.get(item.key), item) for item in opened] for texts in sides]
        rule = Rule("exact words", "")
        plain = Rule("", "", average="question")
        tallies = [
            choice_tally(plain, [Judged(i, "", r, True) for i, r in zip(opened, side)], clusters) for side in right
        ]
        rows.append(_row("accuracy", rule, len(opened), tallies, len(clusters), _flips(right)))
    if captions := [item for item in items if item.task == "caption" and item.answers]:
        tallies = [cider_tallies(captions, texts, clusters)["pooled"][1] for texts in sides]
        rows.append(_row("CIDEr", Rule("pooled", ""), len(captions), tallies, len(clusters), None, 10.0))
    return rows


def _flips(right: Sequence[Sequence[bool]]) -> tuple[int, int]:
    return sum(a > b for a, b in zip(*right)), sum(b > a for a, b in zip(*right))


def _row(
    measure: str,
    rule: Rule,
    n: int,
    tallies: Sequence[Tally],
    clusters: int,
    flips: tuple[int, int] | None,
    scale: float = 100.0,
) -> Compared:
    _, low, high = difference(tallies[0], tallies[1], clusters)
    a, b = (scale * one.value for one in tallies)
    ends = scale * low, scale * high
    if flips is None:
        return Compared(measure, rule.name, n, a, b, *ends)
    return Compared(measure, rule.name, n, a, b, *ends, flips[0], flips[1], mcnemar_p(*flips))
