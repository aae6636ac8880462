"""Questions that count together: the groups of Video-MME-v2, and samples that are right only as a whole.

A group of four is worth less than the sum of its questions, so that guessing one of four is worth little.
"""

from __future__ import annotations

from collections.abc import Sequence

RELEVANCE = "relevance"
ALL = "all"

# What 0, 1, 2 ... right answers are worth, of 100.
_SQUARES = (0.0, 100 / 16, 400 / 16, 900 / 16, 100.0)
_VALUES = {
    RELEVANCE: _SQUARES,
    "[1,2,3,4]": _SQUARES,
    "[1,[2,3],4]": (0.0, 100 / 12, 400 / 12, 700 / 12, 100.0),
    "[[1,2],3,4]": (0.0, 100 / 10, 200 / 10, 500 / 10, 100.0),
}
RULES = (*_VALUES, ALL)


def group_score(rule: str, right: Sequence[bool | int | None]) -> float:
    """What a group is worth, 0 to 100; `right` in the order of its questions, None for a reply that is no answer.

    relevance: by the number of right ones. A structure such as "[1,[2,3],4]": by how far the chain is unbroken from the
    first; of two in inner brackets either one leads on. all: 100 or 0.
    Raises ValueError for another rule, or a group of Video-MME-v2 that has not four questions.
    """
    rule = rule.replace(" ", "")
    values = [bool(one) for one in right]
    if rule == ALL:
        return 100.0 * (bool(values) and all(values))
    if rule not in _VALUES:
        raise ValueError(f"group rule {rule!r}: it is {', '.join(RULES[:-1])} or {ALL}")
    if len(values) != 4:
        raise ValueError(f"a group of rule {rule} has 4 questions, this one {len(values)}")
    return _VALUES[rule][sum(values) if rule == RELEVANCE else _chain(rule, values)]


def group_score_as_published(rule: str, right: Sequence[bool | int | None]) -> float:
    """The same as Video-MME-v2's own scorer computes it, where a reply that is no answer is -1: that is true in a
    chain, so that four empty replies score 100, and is subtracted where right answers are counted."""
    rule = rule.replace(" ", "")
    if rule == RELEVANCE and len(right) == 4:
        count = sum(-1 if one is None else int(one) for one in right)
        return _VALUES[rule][count] if count >= 0 else 0.0
    return group_score(rule, [True if one is None else one for one in right])


def _chain(rule: str, values: Sequence[bool]) -> int:
    """Links of a chain that hold from the first on."""
    links = values.index(False) if False in values else 4
    if rule == "[1,[2,3],4]" and links == 1 and values[2]:
        return 2
    if rule == "[[1,2],3,4]" and links == 0 and values[1]:
        return 1
    return links
