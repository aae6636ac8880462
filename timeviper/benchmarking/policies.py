"""By which rules the answers to a set are scored: those of its own scorer first, those of others, then plain ones.

A set names how its scorers count (`TestSet.policies`); which extractor or reader of windows each of them has is known
here. The plain rules, ours, show what one choice alone is worth: what becomes of a reply that cannot be read, how
means are taken, and whether a threshold that is just reached counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from timeviper.benchmarking.item import Item

OFFICIAL = "official"
CAREFUL = "careful"
EXACT, CIDER = "exact words", "CIDEr"

# Extractor or agreement of choices by set and policy; of a set that is not named, by policy.
_CHOICE: dict[str, dict[str, str]] = {
    "videomme": {"official": "videomme", "lmms": "lmms-eval", "vlmeval": "videomme", "timeviper": "timeviper"},
    "videomme_v2": {"official": "lmms-eval-v2", "lmms": "lmms-eval-v2", "vlmeval": "vlmeval-v2"},
    "lvbench": {"official": "lvbench"},
    "mlvu": {"official": "mlvu", "vlmeval": "mlvu-vlmeval"},
    "mvbench": {"official": "mvbench", "vlmeval": "mvbench-vlmeval", "lmms": "mvbench-lmms"},
    "vnbench": {"official": "vnbench"},
    "tempcompass": {"official": "tempcompass", "lmms": "tempcompass"},
    "longvideobench": {"vlmeval": "videomme"},
    "": {"lmms": "lmms-eval", "vlmeval": "videomme", "timeviper": "timeviper"},
}
_WINDOWS: dict[str, dict[str, str]] = {
    "timelens": {"official": "timelens"},
    "": {"lmms": "lmms-eval", "timeviper": "timeviper", "held-out": "last-numbers"},
}


@dataclass(frozen=True)
class Rule:
    """One way to score the answers of one kind."""

    name: str
    said: str
    """In words."""
    reads: str = CAREFUL
    """Extractor or reader."""
    unparsed: str = "wrong"
    average: str = "question"
    by: str = ""
    strict: bool = False
    as_published: bool = False
    """Groups with the fault of their published scorer."""
    official: bool = False

    @property
    def does(self) -> tuple[object, ...]:
        """What makes it another rule."""
        return self.reads, self.unparsed, self.average, self.by, self.strict, self.as_published


def choice_rules(header: Mapping[str, Any], items: Sequence[Item]) -> list[Rule]:
    """Of questions with options, by the header of a capsule. The set's own is first, as official.

    Where the prompt showed no options (`bare`) letters are not to be found, so that words are held against the options
    in its place.
    """
    set_name, policies = str(header["set"]["name"]), header["set"].get("policies", {})
    rules = [_of_set(set_name, name, dict(policy), _CHOICE) for name, policy in policies.items()]
    rules = rules or [Rule(OFFICIAL, "")]
    rules = [replace(rules[0], official=True, as_published=rules[0].average == "group"), *rules[1:]]
    first = rules[0]
    if not letters_were_asked(header):
        words = replace(first, name="words", reads=CAREFUL, unparsed="wrong", as_published=False)
        rules = [words, *(replace(rule, official=False) for rule in rules)]
    plain = replace(Rule("strict", ""), average=first.average, by=first.by)
    rules += [plain, replace(plain, name="dropped", unparsed="dropped")]
    rules += [replace(plain, name="random", unparsed="random"), Rule("pooled", "")]
    by = first.by or next((n for n in ("task", "question_type", "duration") if any(i.label(n) for i in items)), "")
    if by:
        rules += [Rule("macro", "", average="macro", by=by), Rule("label", "", average="label", by=by)]
    if any(item.group for item in items):
        rules.append(Rule("groups", "", average="group"))
    return _distinct([replace(rule, said=_choice_words(rule)) for rule in rules])


def letters_were_asked(header: Mapping[str, Any]) -> bool:
    """Whether the prompt of a capsule showed the options."""
    return "{options}" in header.get("template", {}).get("text", "{options}")


def window_rules(set_name: str, policies: Mapping[str, Mapping[str, Any]]) -> list[Rule]:
    """Of questions about when."""
    rules = [_of_set(set_name, name, dict(policy), _WINDOWS) for name, policy in policies.items()]
    rules = rules or [Rule(OFFICIAL, "")]
    rules = [replace(rules[0], official=True), *rules[1:], Rule(">=", ""), Rule(">", "", strict=True)]
    kept = {"macro": "macro"}  # the other averages are those of choices
    rules = [replace(r, unparsed="wrong", average=kept.get(r.average, "question")) for r in rules]
    rules = [r if r.average == "macro" else replace(r, by="") for r in rules]
    return _distinct([replace(rule, said=_window_words(rule)) for rule in rules])


def _of_set(set_name: str, name: str, policy: dict[str, Any], known: Mapping[str, Mapping[str, str]]) -> Rule:
    reads = known.get(set_name, {}).get(name) or known[""].get(name, CAREFUL)
    fields = {n: policy[n] for n in ("unparsed", "average", "by", "strict") if n in policy}
    return Rule(name, "", reads, **fields)


def _distinct(rules: Sequence[Rule]) -> list[Rule]:
    """Without those that do the same as one before."""
    found: dict[tuple[object, ...], Rule] = {}
    for rule in rules:
        found.setdefault(rule.does, rule)
    return list(found.values())


def _choice_words(rule: Rule) -> str:
    unread = {"wrong": "wrong", "dropped": "left out", "random": "a guess, expected", "right": "right"}[rule.unparsed]
    means = {
        "question": "all questions",
        "macro": f"mean over {rule.by}",
        "label": f"once for each {rule.by}",
        "group": "groups" + (", no answer as -1" if rule.as_published else ""),
        "video": "mean over videos",
    }[rule.average]
    return f"letters as {_reader(rule.reads)}; unread: {unread}; {means}"


def _window_words(rule: Rule) -> str:
    means = f"; mean over {rule.by}" if rule.average == "macro" else ""
    return f"IoU {'>' if rule.strict else '>='}, windows as {_reader(rule.reads)}{means}"


def _reader(name: str) -> str:
    return "ours" if name == CAREFUL else name
