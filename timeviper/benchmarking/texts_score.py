"""Scores of texts: exact words, and CIDEr of captions, pooled and by video."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from timeviper.benchmarking.cider import TOKENIZER, cider_scores, words
from timeviper.benchmarking.intervals import Tally, tally
from timeviper.benchmarking.item import Item, plain


def same_as_any(reply: str | None, item: Item) -> bool:
    """Whether a reply is one of the item's answers, up to case, spaces and a final full stop, as `timeviper eval`
    compares; or, where the set says so (yes-no of TempCompass), whether it begins with one."""
    if reply is None:
        return False
    said, true = plain(reply), [plain(answer) for answer in item.answers]
    return said.startswith(tuple(true)) if item.extra.get("match") == "prefix" else said in true


def cider_tallies(
    items: Sequence[Item], texts: Mapping[str, str | None], clusters: Mapping[str, int]
) -> dict[str, tuple[str, Tally]]:
    """By rule, in words and as a tally of 0 to 1 (a tenth of CIDEr): over all captions, and mean over videos of what
    each is with its own documents. A draw keeps the documents of the whole."""
    said = [" ".join(words(texts.get(item.key) or "")) for item in items]
    true = [[" ".join(words(text)) for text in item.answers] for item in items]
    videos = [clusters[item.video.name] for item in items]
    found = {"pooled": (f"documents of all captions, {TOKENIZER}", _of(cider_scores(said, true), videos))}
    places: dict[int, list[int]] = defaultdict(list)
    for i, video in enumerate(videos):
        places[video].append(i)
    means, of = [], []
    for video, at in places.items():
        scores = cider_scores([said[i] for i in at], [true[i] for i in at])
        means.append(sum(scores) / len(scores))
        of.append(video)
    if len(places) < len(items):
        found["by video"] = (f"documents of each video alone, {TOKENIZER}", _of(means, of))
    return found


def _of(scores: Sequence[float], videos: Sequence[int]) -> Tally:
    return tally([score / 10 for score in scores], np.array(videos, int))
