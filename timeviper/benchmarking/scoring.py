"""Replies of a capsule into tallies: what each counts under a rule, in which stratum, of which video."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from timeviper.benchmarking.agree import AGREEMENTS
from timeviper.benchmarking.extract import EXTRACTORS, LETTERS, ScorerCrash
from timeviper.benchmarking.groups import group_score, group_score_as_published
from timeviper.benchmarking.intervals import Tally, macro, tally
from timeviper.benchmarking.item import Item
from timeviper.benchmarking.policies import CAREFUL, Rule
from timeviper.benchmarking.windows import (
    READERS,
    THRESHOLDS,
    all_pairs,
    best_iou,
    mean_average_precision,
    meets,
)


@dataclass(frozen=True)
class Judged:
    """A reply under a rule."""

    item: Item
    found: str
    """What was read; "" nothing."""
    right: bool | None
    """None: it cannot be read."""
    asked: bool
    """Whether there is a reply at all."""


@dataclass
class Unscored:
    """What could not be scored and why, in numbers."""

    hidden: int = 0
    crashed: Counter[str] = field(default_factory=Counter)
    """Replies by rule at which the evaluator itself ends."""


def judge(rule: Rule, items: Iterable[Item], replies: Mapping[str, str | None], unscored: Unscored) -> list[Judged]:
    """Choices under a rule. replies: by key, None where there is none (a missing video): that counts as wrong.

    Items whose truth is hidden are left out; those whose truth is no option are asked and never right.
    """
    found = []
    for item in items:
        if item.right is None and not item.answers:
            continue
        reply = replies.get(item.key)
        if reply is None:
            found.append(Judged(item, "", False, False))
        elif rule.reads in AGREEMENTS:
            found.append(Judged(item, reply.split(" ")[0], AGREEMENTS[rule.reads](reply, item), True))
        else:
            found.append(_lettered(rule, item, reply, unscored))
    return found


def _lettered(rule: Rule, item: Item, reply: str, unscored: Unscored) -> Judged:
    try:
        letter = EXTRACTORS[rule.reads](reply, item.options)
    except ScorerCrash:
        unscored.crashed[rule.name] += 1
        letter = ""
    right = None if not letter else item.right is not None and letter.upper() == item.letter
    return Judged(item, letter, right, True)


def choice_tally(rule: Rule, judged: Sequence[Judged], clusters: Mapping[str, int]) -> Tally:
    """Values 0 to 1."""
    if rule.average == "group" or any(one.item.group_rule == "all" for one in judged):
        return _groups(rule, judged, clusters)
    values, weights, strata, videos = [], [], [], []
    for one in judged:
        value, weight = _worth(rule, one)
        for label in one.item.label(rule.by) if rule.average in ("macro", "label") else ("",):
            values.append(value)
            weights.append(weight)
            strata.append(label if rule.average == "macro" else "")
            videos.append(clusters[one.item.video.name])
    if rule.average == "video":
        return _by_video(values, weights, videos)
    return tally(values, np.array(videos, int), strata, weights, macro)


def _worth(rule: Rule, one: Judged) -> tuple[float, float]:
    """Value and weight."""
    if one.right is not None:
        return float(one.right), 1.0
    chance = 1 / max(len(one.item.options), 1)
    return {"wrong": (0.0, 1.0), "dropped": (0.0, 0.0), "random": (chance, 1.0), "right": (1.0, 1.0)}[rule.unparsed]


def _groups(rule: Rule, judged: Sequence[Judged], clusters: Mapping[str, int]) -> Tally:
    """A group that lacks questions counts these as wrong. VNBench: right if all are, then the mean over tasks."""
    groups: dict[str, list[Judged]] = defaultdict(list)
    for one in judged:
        groups[one.item.group or one.item.key].append(one)
    score = group_score_as_published if rule.as_published else group_score
    values, videos, strata = [], [], []
    for members in groups.values():
        members.sort(key=lambda one: one.item.place)
        first = members[0].item
        right = [one.right for one in members]
        if first.group_rule and first.group_rule != "all":
            right += [False] * (4 - len(right))
        values.append(score(first.group_rule or "all", right) / 100)
        videos.append(clusters[first.video.name])
        strata.append(first.label(rule.by)[:1] if rule.average == "macro" else "")
    return tally(values, np.array(videos, int), strata)


def _by_video(values: Sequence[float], weights: Sequence[float], videos: Sequence[int]) -> Tally:
    total, size = np.bincount(videos, np.multiply(values, weights)), np.bincount(videos, weights)
    there = np.flatnonzero(size)
    return tally(list(total[there] / size[there]), there)


# ---- windows ---------------------------------------------------------------------------------------------


def window_ious(rule: Rule, items: Sequence[Item], replies: Mapping[str, str | None]) -> list[float]:
    """IoU of each reply with the true window that it meets best; 0 where there is none to be read."""
    read = READERS[rule.reads]
    return [best_iou(None if (r := replies.get(i.key)) is None else read(r), i.windows) for i in items]


def window_tallies(
    rule: Rule, items: Sequence[Item], replies: Mapping[str, str | None], clusters: Mapping[str, int]
) -> dict[str, Tally]:
    """mIoU, and recall of the first window at each threshold; where questions have several true windows (QVHighlights)
    also mAP over all windows of a reply, in their order."""
    values = window_ious(rule, items, replies)
    videos = np.array([clusters[item.video.name] for item in items], int)
    strata = [one for i in items for one in (i.label(rule.by) or ("",))[:1]] if rule.average == "macro" else None
    found = {"mIoU": tally(values, videos, strata)}
    for threshold in THRESHOLDS:
        hits = [float(meets(value, threshold, rule.strict)) for value in values]
        found[f"R1@{threshold:g}"] = tally(hits, videos, strata)
    if rule.reads == CAREFUL and not rule.strict and any(len(item.windows) > 1 for item in items):
        ranked = [mean_average_precision(all_pairs(replies.get(item.key) or ""), item.windows) for item in items]
        found["mAP"] = tally(ranked, videos, strata)
    return found


# ---- letters ---------------------------------------------------------------------------------------------


def constant_letter(items: Sequence[Item], rule: Rule, clusters: Mapping[str, int]) -> tuple[str, Tally] | None:
    """The letter that scores most if it is always said, and what it scores."""
    offered = LETTERS[: max((len(item.options) for item in items), default=0)]
    best: tuple[str, Tally] | None = None
    for letter in offered:
        said = [Judged(i, letter, i.letter == letter, True) for i in items if i.right is not None or i.answers]
        found = choice_tally(rule, said, clusters)
        if best is None or found.value > best[1].value:
            best = letter, found
    return best


def guessing(items: Sequence[Item], rule: Rule, clusters: Mapping[str, int]) -> Tally | None:
    """What random letters are expected to score; None for groups."""
    if rule.average == "group":
        return None
    guess = Rule("guess", "", unparsed="random", average=rule.average, by=rule.by)
    return choice_tally(guess, [Judged(i, "", None, True) for i in items if i.right is not None or i.answers], clusters)


def histogram(judged: Sequence[Judged]) -> dict[str, tuple[int, int]]:
    """How often each letter was said, and how often it is right; "" for what cannot be read."""
    said = Counter(one.found.upper() if one.right is not None else "" for one in judged if one.asked)
    true = Counter(one.item.letter for one in judged if one.item.letter)
    return {letter: (said[letter], true[letter]) for letter in sorted({*said, *true})}
