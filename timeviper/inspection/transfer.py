"""What TransV does to one pack: the attention that each stage moves, entropy and worth of its choice, the change of
answers.

Letters: L tokens, S sequences, V vision tokens of the stream, M labels.

For a stage s let a_j be the attention (softmax over all positions up to its own, mean over heads) that the last prompt
token of a sequence pays to token j in the next attention block, the first one at or after the stage, had s and the
stages behind it dropped nothing; those before s are at work.

    moved    = sum of a_j over the vision tokens that s drops                                     in [0, 1]
    vision   = sum of a_j over all vision tokens that s meets, the largest that `moved` can be    in [0, 1]
    entropy  = -sum of p_j ln p_j / ln n, p_j = a_j / vision over these n vision tokens,          in [0, 1]
               for stages that choose by attention; 1: no token is preferred

Answers, at every label position t, with p without any stage and q with all of them, the same weights in both:

    kl       = mean over t of sum over the vocabulary of p ln(p / q)                              nats a token

Where a stage ranks, `ranking.py` measures whether its choice is worth more than another of as many tokens.

And how much of the stream no stage can take out, because text stands between the frames (`chat.time: frames`):

    text_between      = such tokens / tokens that enter the decoder                               in [0, 1]
    text_between_left = such tokens / tokens that leave it                                        in [0, 1]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from itertools import chain
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from timeviper.config import TransVConfig
from timeviper.config.shape import Segment, kept_counts
from timeviper.inspection.ranking import AT_A_TIME, RankingSums, agreement, divergence, judge, ranks
from timeviper.kernels.bounds import Bounds
from timeviper.model.decoder import Decoder, DecoderOutput
from timeviper.model.hooks import hooked
from timeviper.model.selection import SELECTIONS, View
from timeviper.model.transv import Stream
from timeviper.model.transv_stages import other_stages
from timeviper.model.viper import TimeViper, ViperOutput
from timeviper.pack import Kind, Pack, all_vision_groups, text_runs


@dataclass
class StageSums:
    """Of one stage, summed over sequences; adds up over packs and ranks."""

    moved: float = 0.0
    vision: float = 0.0
    sequences: int = 0
    """Sequences that had vision tokens to drop."""
    entropy: float = 0.0
    ranked: int = 0
    """Sequences whose tokens were ranked, two or more."""
    agreement: float = 0.0
    compared: int = 0
    """Groups of vision tokens of which some were chosen, and compared with what the question's rows would choose."""


STAGE = len(fields(StageSums))


@dataclass
class Transferred:
    """Sums over the packs that were looked at."""

    stages: dict[str, StageSums] = field(default_factory=dict)
    kl: float = 0.0
    labels: int = 0
    between: int = 0
    """Tokens of text between vision tokens, which no stage takes out."""
    entered: int = 0
    left: int = 0
    """Tokens of sequences with vision, before the first block and behind the last."""
    ranking: RankingSums = field(default_factory=RankingSums)

    BEFORE: ClassVar[int] = 5
    """Numbers before those of `ranking`."""

    def numbers(self) -> list[float]:
        """Everything as a list, the same order on all ranks."""
        counts = (self.labels, self.between, self.entered, self.left)
        stages = (float(v) for s in self.stages.values() for v in vars(s).values())
        return [self.kl, *counts, *self.ranking.numbers(), *stages]

    def figures(self, numbers: list[float]) -> dict[str, float]:
        """Means from `numbers()`, perhaps summed over ranks; what no sequence had is left out."""
        kl, labels, between, entered, left, *rest = numbers
        found = {"kl": kl / labels} if labels else {}
        found |= RankingSums.of(rest).figures()
        rest = rest[RankingSums.SIZE :]
        if left:
            found |= {"text_between": between / entered, "text_between_left": between / left}
        for i, name in enumerate(self.stages):
            sums = StageSums(*rest[STAGE * i : STAGE * (i + 1)])  # type: ignore[arg-type]
            if sums.sequences:
                found[f"moved/{name}"] = sums.moved / sums.sequences
                found[f"vision_attention/{name}"] = sums.vision / sums.sequences
            if sums.ranked:
                found[f"entropy/{name}"] = sums.entropy / sums.ranked
            if sums.compared:
                found[f"agreement/{name}"] = sums.agreement / sums.compared
        return found


def stages_of(decoder: Decoder) -> list[Segment]:
    """The stages at work, first to last, those that keep everything at the moment among them."""
    return [segment for segment in decoder.segments if segment.stage is not None]


def look_at(model: TimeViper, pack: Pack, found: Transferred) -> None:
    """Add one pack to `found`: a forward pass without TransV, one behind each stage but the last, and one as it is.

    The model is in eval mode and no gradient is asked for. Sharded: every rank must call this, with any pack.
    """
    decoder = model.decoder
    stages = stages_of(decoder)
    without: ViperOutput | None = None
    for i, segment in enumerate(stages):
        block = next_attention(decoder, segment)
        sums = found.stages.setdefault(segment.name, StageSums())
        if block is None:
            continue
        before = TransVConfig(stages={s.name: s.stage for s in stages[:i] if s.stage})
        with other_stages(model, before), _entering(decoder, {segment.blocks.start, block}) as entered:
            out = model(pack, label_logits=i == 0)
        without = out if i == 0 else without
        assert segment.stage is not None
        here = _view(decoder, pack, out.decoder, entered, segment.blocks.start, segment.stage.query)
        there = _view(decoder, pack, out.decoder, entered, block)
        mask = _add(pack, segment, here, there, sums)
        if ranks(segment):
            asked = _view(decoder, pack, out.decoder, entered, block, "question")
            kept = kept_counts(segment.stage.keep, [*chain(*pack.vision_groups)], here.vision)
            total, count = agreement(mask, asked, kept)
            sums.agreement, sums.compared = sums.agreement + total, sums.compared + count
    if without is None:
        with other_stages(model, TransVConfig()):
            without = cast(ViperOutput, model(pack, label_logits=True))
    whole = model(pack, label_logits=True)
    assert torch.equal(without.label_index, whole.label_index)
    assert without.label_logits is not None
    assert whole.label_logits is not None
    for p, q in zip(without.label_logits.split(AT_A_TIME), whole.label_logits.split(AT_A_TIME)):
        found.kl += float(divergence(p, q).sum())
    if any(map(ranks, stages)):
        judge(model, pack, found.ranking, without.label_logits, whole.label_logits)
    found.labels += whole.num_labels
    assert whole.decoder is not None
    for runs, length, left in zip(pack.text_runs, pack.lengths, whole.decoder.bounds.lengths):
        if vision := length - sum(n for n, *_ in runs):
            found.between += sum(n for n, _, seen in runs if 0 < seen < vision)
            found.entered += length
            found.left += left


def next_attention(decoder: Decoder, segment: Segment) -> int | None:
    """The first attention block at or after a stage; None: there is none."""
    layout = decoder.cfg.layout
    place = layout.find("*", segment.blocks.start)
    return None if place < 0 else place


@contextmanager
def _entering(decoder: Decoder, blocks: set[int]) -> Iterator[dict[int, Tensor]]:
    """Catches the stream `[L, D]` that enters each of some blocks."""
    entered: dict[int, Tensor] = {}

    def catch(block: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, args: entered.update({block: args[0]})

    with hooked([decoder.blocks[block].register_forward_pre_hook(catch(block)) for block in blocks]):
        yield entered


def _view(
    decoder: Decoder,
    pack: Pack,
    out: DecoderOutput | None,
    entered: dict[int, Tensor],
    block: int,
    query: str = "last",
) -> View:
    """The stream as a selection sees it before a block that it was caught at."""
    assert out is not None
    kind = pack.kind[out.index]
    groups = all_vision_groups(text_runs(kind, out.bounds.lengths), out.bounds.lengths)
    return decoder.view([Stream(entered[block], out.bounds, kind, groups, out.index)], block, query=query)


def _add(pack: Pack, segment: Segment, here: View, there: View, sums: StageSums) -> Tensor:
    """Add what the last prompt tokens attend to in the next attention block, before which the stream is `there`, and
    what of it the stage, which sees the stream `here`, drops; returns which vision tokens it keeps, `[V]` bool."""
    assert segment.stage is not None
    scores, current = there.attention[there.kind == Kind.VISION], [sum(group) for group in here.groups]
    original = [*chain(*pack.vision_groups)]
    kept = kept_counts(segment.stage.keep, original, here.vision)
    mask = SELECTIONS[segment.stage.select].choose(here, kept)
    vision = Bounds(current, scores.device)

    def by_sequence(values: Tensor) -> Tensor:
        return torch.zeros(len(current), dtype=torch.float64).index_add(0, vision.seq_idx.cpu(), values.cpu().double())

    seen, moved = by_sequence(scores), by_sequence(scores.masked_fill(mask, 0.0))
    drops = by_sequence((~mask).double()) > 0
    sums.moved += float(moved[drops].sum())
    sums.vision += float(seen[drops].sum())
    sums.sequences += int(drops.sum())
    if segment.stage.select == "attention":
        share = scores.cpu().double() / seen.clamp(min=1e-300)[vision.seq_idx.cpu()]
        entropy = -by_sequence(torch.special.xlogy(share, share))
        count = torch.tensor(current, dtype=torch.float64)
        ranked = count > 1
        sums.entropy += float((entropy[ranked] / count[ranked].log()).sum())
        sums.ranked += int(ranked.sum())
    return mask
