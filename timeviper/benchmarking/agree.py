"""Evaluators that read no letter from a reply: they hold the whole of it against the right option."""

from __future__ import annotations

from collections.abc import Callable

from timeviper.benchmarking.extract import vlmeval_inferred
from timeviper.benchmarking.item import Item

Agreement = Callable[[str, Item], bool | None]
"""(reply, item) -> whether it is right; None: nothing can be read."""


def first_words_agree(reply: str, right: str) -> bool:
    """MVBench's: whether the first word of the reply is part of that of the right option, written "(A) Its text", or
    holds it. An empty reply is part of everything, so it is right."""
    said, first = reply.lower().split(" ")[0], right.lower().split(" ")[0]
    return said.replace(".", "") in first or first in said


def mvbench(reply: str, item: Item) -> bool:
    return first_words_agree(reply, _marked(item))


def mvbench_lmms(reply: str, item: Item) -> bool | None:
    """lmms-eval's: the same in lower case, so that the article of "A man" is option A; empty replies are dropped."""
    return mvbench(reply, item) if reply.strip() else None


def mvbench_vlmeval(reply: str, item: Item) -> bool | None:
    """VLMEvalKit's: the same, and else what it infers from the words of the reply."""
    return first_words_agree(reply.strip(), _marked(item)) or _inferred(reply, item)


def mlvu_vlmeval(reply: str, item: Item) -> bool | None:
    """VLMEvalKit's of MLVU: the reply, or what stands before its first ")", is the right letter; else as inferred."""
    said = reply[reply.index(")") - 1 : reply.index(")")] if ")" in reply else reply
    return (said == item.letter != "") or _inferred(reply, item)


def _inferred(reply: str, item: Item) -> bool | None:
    letter = vlmeval_inferred(reply, item.options)
    return letter == item.letter if letter else None


def _marked(item: Item) -> str:
    """The right option as the evaluators write it."""
    return item.answers[0] if item.right is None else f"({item.letter}) {item.options[item.right]}"


AGREEMENTS: dict[str, Agreement] = {
    "mvbench": mvbench,
    "mvbench-lmms": mvbench_lmms,
    "mvbench-vlmeval": mvbench_vlmeval,
    "mlvu-vlmeval": mlvu_vlmeval,
}
