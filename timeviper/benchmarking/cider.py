"""CIDEr, as pycocoevalcap computes it (Vedantam et al., CVPR 2015, with the clipping and length penalty of CIDEr-D).

For n of 1 to 4, n-grams weighted by how rare they are among the references (tf-idf), the cosine of candidate and
reference, with each of the candidate's weights cut at the reference's, times exp(-(difference of lengths)^2 / (2
sigma^2)); mean over n and over references, times 10. What makes numbers differ is the corpus whose documents are
counted: with the documents of one video alone, a video with a single caption scores 0 even if it is right.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from math import exp, log, sqrt

N, SIGMA = 4, 6.0
Grams = Counter[tuple[str, ...]]

# What the Penn Treebank tokenizer's list of stop marks takes out. Its names of brackets are upper case and texts lower
# case, so "-lrb-" and its like stay.
_MARKS = {"''", "'", "``", "`", "?", "!", ".", ",", ":", "-", "--", "...", ";"}
_TOKEN = re.compile(r"'(?:s|re|ve|ll|d|m)\b|n't\b|\d+(?:[.,]\d+)*|[^\W\d_]+(?:-[^\W\d_]+)*(?=n't)|\w+(?:[-.]\w+)*|\S")
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}


def words(text: str) -> list[str]:
    """A caption as tokens near enough to the Penn Treebank's: lower case, "'s" and "n't" apart, stop marks left out,
    brackets as "-lrb-". Reports name this tokenizer, because the usual one needs Java."""
    found: list[str] = _TOKEN.findall(text.lower())
    return [_BRACKETS.get(token, token) for token in found if token not in _MARKS]


TOKENIZER = "timeviper-words-1"


def cider_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Of each candidate against its references, 0 to 10; tokens are what spaces separate, so give text through `words`
    first. The documents counted are the references of these candidates.

    Raises ValueError where there are not as many lists of references, or a list is empty.
    """
    if len(candidates) != len(references) or any(not refs for refs in references):
        raise ValueError("each candidate needs a list of at least one reference")
    said = [_grams(text) for text in candidates]
    true = [[_grams(text) for text in refs] for refs in references]
    documents: Counter[tuple[str, ...]] = Counter()
    for refs in true:
        documents.update({gram for ref in refs for gram in ref})
    total = log(len(true)) if true else 0.0
    weigh = _Weights(documents, total)
    return [_score(weigh(one), [weigh(ref) for ref in refs]) for one, refs in zip(said, true)]


def cider(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean of `cider_scores`; 0 without candidates."""
    scores = cider_scores(candidates, references)
    return sum(scores) / len(scores) if scores else 0.0


def cider_by_video(
    candidates: Sequence[str], references: Sequence[Sequence[str]], videos: Sequence[str]
) -> dict[str, float]:
    """CIDEr of each video's captions with the documents of that video alone, as dense captions are scored."""
    places: dict[str, list[int]] = defaultdict(list)
    for i, video in enumerate(videos):
        places[video].append(i)
    return {v: cider([candidates[i] for i in at], [references[i] for i in at]) for v, at in places.items()}


class _Weights:
    """tf-idf of a caption: by n, the weight of each n-gram; the norms; the length in pairs of words."""

    def __init__(self, documents: Counter[tuple[str, ...]], total: float) -> None:
        self.documents, self.total = documents, total

    def __call__(self, grams: Grams) -> tuple[list[dict[tuple[str, ...], float]], list[float], int]:
        weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(N)]
        squares, length = [0.0] * N, 0
        for gram, count in grams.items():
            n = len(gram) - 1
            weights[n][gram] = count * (self.total - log(max(1.0, self.documents[gram])))
            squares[n] += weights[n][gram] ** 2
            length += count if n == 1 else 0  # as the code that everyone runs counts it
        return weights, [sqrt(s) for s in squares], length


def _score(one: tuple[list, list[float], int], refs: Sequence[tuple[list, list[float], int]]) -> float:
    said, norms, length = one
    total = 0.0
    for true, others, long in refs:
        penalty = exp(-((length - long) ** 2) / (2 * SIGMA**2))
        for n in range(N):
            shared = sum(min(w, true[n].get(gram, 0.0)) * true[n].get(gram, 0.0) for gram, w in said[n].items())
            scale = norms[n] * others[n]
            total += penalty * (shared / scale if scale else shared)
    return 10 * total / N / len(refs)


def _grams(text: str) -> Grams:
    tokens = text.split()
    return Counter(tuple(tokens[i : i + n]) for n in range(1, N + 1) for i in range(len(tokens) - n + 1))
