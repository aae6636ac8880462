"""All numbers of a capsule, from its files alone: every rule beside the official one, with intervals over videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from timeviper.benchmarking.capsule import BLIND, SCORER, Capsule, Reply
from timeviper.benchmarking.dense import Caption, read_captions, score_dense, soda
from timeviper.benchmarking.intervals import Tally, f1, intervals, tally
from timeviper.benchmarking.item import Item
from timeviper.benchmarking.meteor import Meteor
from timeviper.benchmarking.policies import CIDER, EXACT, Rule, choice_rules, letters_were_asked, window_rules
from timeviper.benchmarking.scores import Rescored, Score
from timeviper.benchmarking.scoring import (
    Judged,
    Unscored,
    choice_tally,
    constant_letter,
    guessing,
    histogram,
    judge,
    window_tallies,
)
from timeviper.benchmarking.texts_score import cider_tallies, same_as_any

RESAMPLES = 4000
FEW = 40  # videos below which intervals are too narrow, as in inference/paired.py


def rescore(capsule: Capsule, meteor: Meteor | None = None) -> Rescored:
    """Everything that the replies of a capsule say; no model and no video is needed."""
    replies = capsule.of("")
    made = Rescored(
        set=capsule.set_name,
        title=str(capsule.header["set"].get("title", capsule.set_name)),
        questions=len(capsule.items),
        asked=sum(not reply.error for reply in replies.values()),
        videos=len({item.video.name for item in capsule.items}),
    )
    names = sorted({item.video.name for item in capsule.items})
    clusters = {name: i for i, name in enumerate(names)}
    tallies = _Tallies(capsule, clusters)
    texts = _texts(replies)
    blind = _texts(capsule.of(BLIND))
    tallies.choices(made, texts, blind)
    tallies.windows(made, texts, blind)
    tallies.words(made, texts, blind)
    tallies.captions(made, texts)
    tallies.dense(made, texts, meteor)
    tallies.write(made, len(names))
    _facts(made, capsule, replies)
    return made


def _texts(replies: Mapping[str, Reply]) -> dict[str, str | None]:
    return {key: None if reply.error else reply.reply for key, reply in replies.items()}


class _Tallies:
    """Tallies of all scores of a capsule, whose intervals come from the same draws."""

    def __init__(self, capsule: Capsule, clusters: Mapping[str, int]) -> None:
        self.capsule, self.clusters = capsule, clusters
        self.policies = dict(capsule.header["set"].get("policies", {}))
        self.held: list[tuple[list[Score], Tally, dict[str, Any]]] = []

    def add(self, to: list[Score], one: Tally, n: int, scale: float = 100.0, **told: Any) -> None:
        self.held.append((to, one, told | {"n": n, "scale": scale}))

    def write(self, made: Rescored, clusters: int) -> None:
        ends = intervals({str(i): one for i, (_, one, _) in enumerate(self.held)}, clusters, resamples=RESAMPLES)
        for i, (to, one, told) in enumerate(self.held):
            low, high = (told["scale"] * end for end in ends[str(i)])
            to.append(Score(value=told["scale"] * one.value, low=low, high=high, **told))

    def choices(self, made: Rescored, texts: Mapping[str, str | None], blind: Mapping[str, str | None]) -> None:
        items = [item for item in self.capsule.items if item.is_choice]
        if not items:
            return
        unscored = Unscored(hidden=sum(item.right is None and not item.answers for item in items))
        rules = choice_rules(self.capsule.header, items)
        if not letters_were_asked(self.capsule.header):
            made.notes.append("no options were shown, so words are held against them; the set's own rule wants letters")
        for rule in rules:
            judged = judge(rule, items, texts, unscored)
            told = _told("choice", "accuracy" if rule.average != "group" else "group score", rule)
            self.add(made.scores, choice_tally(rule, judged, self.clusters), _count(rule, judged), **told)
            if rule.official:
                self._official(made, rule, judged, items, blind)
        ours = judge(Rule("ours", ""), items, texts, Unscored())
        made.letters = histogram(ours)
        made.unparsed = [(one.item.key, texts[one.item.key] or "") for one in ours if one.right is None]
        made.notes += [
            f"{n} replies end the scorer of {name}; here they are unread" for name, n in unscored.crashed.items()
        ]
        if unscored.hidden:
            made.notes.append(f"{unscored.hidden} questions have a hidden answer and are not scored")

    def _official(
        self, made: Rescored, rule: Rule, judged: list[Judged], items: list[Item], blind: Mapping[str, str | None]
    ) -> None:
        measure = "accuracy" if rule.average != "group" else "group score"
        there = [one for one in judged if one.asked]
        if there and len(there) < len(judged):
            self.add(
                made.answered, choice_tally(rule, there, self.clusters), len(there), **_told("choice", measure, rule)
            )
        if best := constant_letter(items, rule, self.clusters):
            told = _named("choice", measure, f"always {best[0]}", "the best constant letter")
            self.add(made.baselines, best[1], len(judged), **told)
        if guess := guessing(items, rule, self.clusters):
            told = _named("choice", measure, "random", "random letters, expected")
            self.add(made.baselines, guess, len(judged), **told)
        if blind:
            without = judge(rule, items, blind, Unscored())
            told = _named("choice", measure)
            self.add(made.baselines, choice_tally(rule, without, self.clusters), len(judged), **told)
        made.by_label |= _by_label(
            [(one.item, one.right) for one in judged if rule.unparsed != "dropped" or one.right is not None]
        )

    def windows(self, made: Rescored, texts: Mapping[str, str | None], blind: Mapping[str, str | None]) -> None:
        items = [item for item in self.capsule.items if item.task == "grounding" and item.windows]
        if not items:
            return
        for rule in window_rules(self.capsule.set_name, self.policies):
            found = window_tallies(rule, items, texts, self.clusters)
            for measure, one in found.items():
                self.add(made.scores, one, len(items), **_told("windows", measure, rule))
            if rule.official:
                there = [item for item in items if texts.get(item.key) is not None]
                if there and len(there) < len(items):
                    part = window_tallies(rule, there, texts, self.clusters)["mIoU"]
                    self.add(made.answered, part, len(there), **_told("windows", "mIoU", rule))
                if blind:
                    part = window_tallies(rule, items, blind, self.clusters)["mIoU"]
                    self.add(made.baselines, part, len(items), **_named("windows", "mIoU"))

    def words(self, made: Rescored, texts: Mapping[str, str | None], blind: Mapping[str, str | None]) -> None:
        """Exact words."""
        items = [item for item in self.capsule.items if item.task == "open" and item.answers]
        if not items:
            return
        told = _named("words", "accuracy", EXACT, "equal up to case and a final full stop")
        videos = np.array([self.clusters[item.video.name] for item in items], int)
        right = [float(same_as_any(texts.get(item.key), item)) for item in items]
        self.add(made.scores, tally(right, videos), len(items), official=True, **told)
        made.by_label |= _by_label(list(zip(items, right)))
        if blind:
            right = [float(same_as_any(blind.get(item.key), item)) for item in items]
            self.add(made.baselines, tally(right, videos), len(items), **_named("words", "accuracy"))

    def captions(self, made: Rescored, texts: Mapping[str, str | None]) -> None:
        items = [item for item in self.capsule.items if item.task == "caption" and item.answers]
        if not items:
            return
        for name, (said, one) in cider_tallies(items, texts, self.clusters).items():
            told = _named("captions", CIDER, name, said) | {"official": name == "pooled"}
            self.add(made.scores, one, len(items), scale=10.0, **told)

    def dense(self, made: Rescored, texts: Mapping[str, str | None], meteor: Meteor | None) -> None:
        items = [item for item in self.capsule.items if item.task == "dense" and item.windows]
        if not items:
            return
        videos = np.array([self.clusters[item.video.name] for item in items], int)
        rows, sodas = [], []
        for item in items:
            said = read_captions(texts.get(item.key) or "")
            true = [Caption(window, text) for window, text in zip(item.windows, item.answers)]
            rows.append(score_dense(said, true, meteor.corpus if meteor else None))
            if meteor:
                pairs = [[meteor.segments([s.text], [[t.text]])[0] for t in true] for s in said]
                sodas.append(soda([s.window for s in said], [t.window for t in true], np.array(pairs))[2])
        p, r = ([float(np.mean(getattr(row, side))) for row in rows] for side in ("precision", "recall"))
        both = tally([*p, *r], np.concatenate([videos, videos]), ["p"] * len(p) + ["r"] * len(r), combine=f1)
        told: dict[str, Any] = {"kind": "dense", "rule": "official", "official": True}
        means = "mean over tIoU .3 .5 .7 .9"
        self.add(made.scores, both, len(items), measure="F1", said=f"of mean P and mean R, {means}", **told)
        each: dict[str, Any] = {"kind": "dense", "rule": "mean of F1", "said": f"F1 of each tIoU, {means}"}
        self.add(made.scores, tally([row.mean_f1 for row in rows], videos), len(items), measure="F1", **each)
        for measure, values in (("precision", p), ("recall", r)):
            self.add(made.scores, tally(values, videos), len(items), measure=measure, said=means, **told)
        words = "by video, tokens of timeviper-words-1, " + means
        self.add(
            made.scores, tally([row.cider for row in rows], videos), len(items), 10.0, measure=CIDER, said=words, **told
        )
        if meteor:
            found = tally([row.meteor or 0.0 for row in rows], videos)
            self.add(made.scores, found, len(items), measure="METEOR", said=f"by video, {meteor.name}", **told)
            self.add(made.scores, tally(sodas, videos), len(items), measure="SODA_c", said=meteor.name, **told)
        else:
            made.notes.append("METEOR and SODA_c: give --meteor meteor-1.5.jar")


def _told(kind: str, measure: str, rule: Rule) -> dict[str, Any]:
    return {"kind": kind, "measure": measure, "rule": rule.name, "said": rule.said, "official": rule.official}


def _named(
    kind: str, measure: str, rule: str = BLIND, said: str = "the same model, every frame grey"
) -> dict[str, Any]:
    return {"kind": kind, "measure": measure, "rule": rule, "said": said}


def _count(rule: Rule, judged: Sequence[Judged]) -> int:
    if rule.average == "group":
        return len({one.item.group or one.item.key for one in judged})
    return sum(one.right is not None or rule.unparsed != "dropped" for one in judged)


def _by_label(rows: Sequence[tuple[Item, float | bool | None]]) -> dict[str, dict[str, tuple[float, int]]]:
    found: dict[str, dict[str, list[float]]] = {}
    for item, right in rows:
        for name in item.labels:
            for value in item.label(name):
                found.setdefault(name, {}).setdefault(value, []).append(float(right or 0.0))
    return {
        name: {value: (100 * sum(v) / len(v), len(v)) for value, v in sorted(values.items())}
        for name, values in found.items()
        if 1 < len(values) <= 40
    }


def _facts(made: Rescored, capsule: Capsule, replies: Mapping[str, Reply]) -> None:
    for reply in replies.values():
        if reply.error:
            made.errors[reply.error] = made.errors.get(reply.error, 0) + 1
        else:
            made.finish[reply.finish] = made.finish.get(reply.finish, 0) + 1
    if capsule.header.get("scorer") != SCORER:
        made.notes.append(
            f"the capsule was first scored by scorer {capsule.header.get('scorer')}; these are the numbers of {SCORER}"
        )
    if missing := capsule.missing():
        made.notes.append(f"the run is not finished: {missing:,} questions have not been asked; they count as wrong")
    if capsule.torn:
        made.notes.append(f"{capsule.torn} lines of answers are cut off; their questions count as not asked")
    if 0 < made.videos < FEW:
        made.notes.append(f"only {made.videos} videos: with fewer than {FEW} the intervals are too narrow")
    repeated = sum("repeated option" in item.notes for item in capsule.items)
    never = sum(item.is_choice and item.right is None and bool(item.answers) for item in capsule.items)
    if repeated:
        made.notes.append(f"{repeated} questions repeat an option")
    if never:
        made.notes.append(f"{never} questions have an answer that is no option: they cannot be right")
