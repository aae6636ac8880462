"""Whether a TransV stage that ranks tokens chooses well: beside the question's own rows, and beside no ranking at all.

For a stage s and a group of n vision tokens of which it keeps k, 0 < k < n, let r be the k that the question's tokens
look at most in the next attention block (mean over them and over heads):

    agreement  = (|kept and r| / k - k / n) / (1 - k / n)      1: the same tokens; 0: as many as by chance; < 0: fewer

Answers, at every label position, with p without any stage and q with all of them, the same weights in all:

    kl_uniform = KL(p || q) with evenly spaced tokens in place of ranked ones, at the same keep       nats a token
    kl_random  = the same with random ones, the same at every look                                    nats a token

A ranking whose KL lies above that of random tokens costs work and loses what matters: the last prompt token of a model
that was not trained for it can do that. Costs two forward passes a pack.

Letters: L tokens, S sequences, V vision tokens of the stream, M labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from timeviper.config import TransVConfig
from timeviper.config.shape import Segment
from timeviper.errors import one_of
from timeviper.kernels.bounds import Bounds
from timeviper.model.selection import SELECTIONS, Selection, View, select_ranked
from timeviper.model.transv_stages import other_stages
from timeviper.model.viper import TimeViper
from timeviper.pack import Kind, Pack

AT_A_TIME = 64  # label positions whose two distributions are compared at once, in float64
ERRORS = 2.0  # standard errors by which random tokens must be better before anybody is warned
FEW = 4  # sequences, below which nobody is


@dataclass
class RankingSums:
    """Over sequences with labels and vision; adds up over packs and ranks."""

    ranked: float = 0.0
    """Sums of each sequence's mean KL, of the stages as they are;"""
    uniform: float = 0.0
    random: float = 0.0
    worse: float = 0.0
    """of the difference `ranked - random`;"""
    squares: float = 0.0
    """and of its square."""
    sequences: float = 0.0

    SIZE: ClassVar[int] = 6

    def numbers(self) -> list[float]:
        return [float(getattr(self, f.name)) for f in fields(self)]

    @classmethod
    def of(cls, numbers: Sequence[float]) -> RankingSums:
        """From `numbers()`, behind which others may stand."""
        return cls(*numbers[: cls.SIZE])

    def figures(self) -> dict[str, float]:
        """Means; nothing where nothing was ranked."""
        if not self.sequences:
            return {}
        means = {"kl_ranked": self.ranked, "kl_uniform": self.uniform, "kl_random": self.random}
        return {name: value / self.sequences for name, value in means.items()}

    def worse_than_random(self) -> bool:
        """Whether random tokens change the answers less, beyond what the few sequences would show by chance."""
        n = self.sequences
        if n < FEW:
            return False
        mean = self.worse / n
        spread = max(self.squares / n - mean**2, 0.0) * n / (n - 1)
        return mean > ERRORS * math.sqrt(spread / n)


def ranks(segment: Segment) -> bool:
    """Whether a stage chooses by a ranking at the moment: one that keeps all has no choice."""
    return segment.stage is not None and segment.stage.keep < 1 and segment.stage.select != "uniform"


def agreement(mask: Tensor, asked: View, kept: Sequence[int]) -> tuple[float, int]:
    """Sum of the agreement over the groups that have a choice, and their number.

    mask `[V]` bool: what a stage keeps. asked: the stream before the next attention block, ranked by the question.
    kept: how many of each group.
    """
    counts = asked.vision
    scores = asked.attention[asked.kind == Kind.VISION]
    both = mask & select_ranked(scores, counts, kept)
    total, compared = 0.0, 0
    for part, n, k in zip(both.cpu().split(counts), counts, kept):
        if 0 < k < n:
            total += (int(part.sum()) / k - k / n) / (1 - k / n)
            compared += 1
    return total, compared


def judge(model: TimeViper, pack: Pack, sums: RankingSums, without: Tensor, whole: Tensor) -> None:
    """Add one pack: two forward passes with other choices at the same keep.

    without, whole `[M, V]`: logits at the labels without any stage and with all of them. Sharded: every rank calls it.
    """
    kls = [_kl(without, whole)]
    for select in ("uniform", "random"):
        with _instead(model, select):
            out = model(pack, label_logits=True)
        kls.append(_kl(without, out.label_logits))
    index, bounds = out.label_index.cpu(), Bounds(pack.lengths)
    sequence = bounds.seq_idx[index]
    seen = torch.zeros(len(pack.lengths)).index_add(0, bounds.seq_idx, (pack.kind.cpu() == Kind.VISION).float()) > 0
    for s in sequence.unique().tolist():
        if seen[s]:
            ranked, uniform, random = (float(kl[sequence == s].mean()) for kl in kls)
            sums.ranked, sums.uniform, sums.random = sums.ranked + ranked, sums.uniform + uniform, sums.random + random
            sums.worse, sums.squares = sums.worse + ranked - random, sums.squares + (ranked - random) ** 2
            sums.sequences += 1


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) `[M]` of the distributions with logits `[M, V]`, in nats, float64."""
    p, q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def told(sums: RankingSums, stages: Sequence[Segment], figures: dict[str, float]) -> str:
    """What a person should know of a ranking that is worse than none, and what to try."""
    kl = sums.figures()
    agree = [f"{s.name} {figures[key]:+.2f}" for s in stages if (key := f"agreement/{s.name}") in figures]
    near = f" Agreement with what the question looks at (1: the same, 0: chance): {', '.join(agree)}." if agree else ""
    advice = [
        f"model.transv.stages.{s.name}.{'query=question' if s.stage and s.stage.query == 'last' else 'select=uniform'}"
        for s in stages
    ]
    return (
        "TransV keeps tokens that are worth less than random ones: answers change by "
        f"{kl['kl_ranked']:.3g} nats a token, by {kl['kl_random']:.3g} with random tokens and {kl['kl_uniform']:.3g} "
        f"with even ones (KL, {sums.sequences:.0f} held-out samples).{near} If it stays so, try {one_of(advice)}. "
        "Said once; transv/kl_ranked and transv/kl_random go on."
    )


def _kl(p: Tensor, q: Tensor | None) -> Tensor:
    assert q is not None
    return torch.cat([divergence(a, b).cpu() for a, b in zip(p.split(AT_A_TIME), q.split(AT_A_TIME))])


class _Random(Selection):
    """Any tokens; of as many always the same, whatever else is in the pack."""

    def choose(self, view: View, kept: Sequence[int]) -> Tensor:
        drawn = [torch.rand(n, generator=torch.Generator().manual_seed(n)) for n in view.vision]
        return select_ranked(torch.cat(drawn).to(view.kind.device), view.vision, kept)


@contextmanager
def _instead(model: TimeViper, select: str) -> Iterator[None]:
    """Within it every stage that ranks chooses by `select`, at the same keep; `random` exists here alone."""
    chosen = cast(Any, select)
    stages = {
        s.name: replace(s.stage, select=chosen) if ranks(s) else s.stage for s in model.decoder.segments if s.stage
    }
    SELECTIONS["random"] = _Random()
    try:
        with other_stages(model, TransVConfig(stages=stages)):
            yield
    finally:
        del SELECTIONS["random"]
