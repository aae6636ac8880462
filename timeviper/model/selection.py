"""Which vision tokens a TransV stage keeps: an entry of `SELECTIONS` for every name that `select` takes.

Each chooses within the media of one turn (a group, see `timeviper.pack.vision_groups`), and how many of them stay is
counted from them alone: what comes later in a conversation changes nothing before it.
Training, prefill in pieces, the probe and the planner ask the entry alone. So a new selection is a class here and what
checks must know of it in `config.model.SELECTION_FACTS`.
Letters: L tokens, S sequences, D width, V vision tokens of the stream, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor, nn

from timeviper.config import DecoderConfig, ModelConfig
from timeviper.kernels.bounds import Bounds
from timeviper.kernels.host import on_device
from timeviper.model.attention import Ranker, segment_softmax_mean
from timeviper.model.gradients import Gradients, maps_of
from timeviper.model.state import Span
from timeviper.model.transv import Stream
from timeviper.pack import Kind


class View:
    """What a selection may look at: the stream where its stage stands, and the block behind it.

    `pieces` are one stream with all sequences of a pack, or the pieces of one long prompt. Nothing here has a gradient.
    """

    def __init__(
        self,
        pieces: Sequence[Stream],
        block: nn.Module,
        with_rope: Callable[[Span], Span],
        groups: list[list[int]] | None = None,
    ) -> None:
        """groups: as in a `Stream`, of all pieces together; those of a stream that is whole are known."""
        self.pieces, self.block, self.with_rope = pieces, block, with_rope
        self.groups = pieces[0].groups if groups is None else groups

    @property
    def vision(self) -> list[int]:
        """Vision tokens of each group of media, one sequence after the other."""
        return [*chain(*self.groups)]

    @cached_property
    def kind(self) -> Tensor:
        """`[L]` uint8, values of `Kind`."""
        return _joined([piece.kind for piece in self.pieces])

    @cached_property
    def bounds(self) -> Bounds:
        """The sequences, whole."""
        if len(self.pieces) == 1:
            return self.pieces[0].bounds
        return Bounds([len(self.kind)], self.kind.device)

    def residuals(self) -> Iterator[tuple[Tensor, Span]]:
        """The tokens' residuals `[n, D]`, piece by piece, with their places."""
        start = 0
        for piece in self.pieces:
            past = on_device([start], piece.x.device) if start else None
            yield piece.x.detach(), self.with_rope(Span(piece.bounds, piece.bounds, past=past))
            start += len(piece.x)

    @cached_property
    @torch.no_grad()
    def attention(self) -> Tensor:
        """`[L]`: what the last prompt token of each sequence pays to its tokens in the block behind the stage, an
        attention block; mean over heads, 0 for later tokens."""
        query = last_prompt_token(self.kind, self.bounds)
        one_each = Bounds([1] * self.bounds.num_sequences, query.device)
        rope = self.with_rope(Span(one_each, one_each, past=self.bounds.position[query])).rope
        ranker = Ranker(self._rows(query), rope)
        # A forward of the block: sharded weights exist in full only inside the forward of the module that owns them.
        logits = [self.block(x, span, ranker=ranker) for x, span in self.residuals()]  # [n, H] each
        return attention_scores(_joined(logits), query, self.bounds)

    def _rows(self, where: Tensor) -> Tensor:
        """Residuals `[S, D]` of the tokens at `where [S]`."""
        if len(self.pieces) == 1:
            return self.pieces[0].x.detach()[where]
        place = int(where)  # pieces are of one sequence
        for piece in self.pieces:
            if place < len(piece.x):
                break
            place -= len(piece.x)
        return piece.x.detach()[place : place + 1]


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)  # a long pack is not copied


# ---- selections -----------------------------------------------------------------------------------------


class Selection:
    """How a stage chooses; without a state."""

    def choose(self, view: View, kept: Sequence[int]) -> Tensor:
        """`[V]` bool: which vision tokens stay, `kept` of each group of `view.vision`. Index arithmetic, without
        waiting for the device where the view is of one piece."""
        raise NotImplementedError

    def flops(self, model: ModelConfig, grads: Gradients, sequences: int, tokens: int) -> float:
        """Products of matrices, in FLOP, that the choice takes in a pack of so many sequences and tokens."""
        return 0.0


class ByCount(Selection):
    """Numbers alone decide. So a long prompt never waits: each of its pieces loses its tokens as it comes."""

    def mask(self, current: Sequence[int], kept: Sequence[int], device: torch.device) -> Tensor:
        """`[V]` bool: `kept` out of the `current` vision tokens of each group."""
        raise NotImplementedError

    def choose(self, view: View, kept: Sequence[int]) -> Tensor:
        return self.mask(view.vision, kept, view.kind.device)


class ByScore(Selection):
    """The vision tokens of a group with the highest scores stay. Its prompt is held until all are known."""

    def scores(self, view: View) -> Tensor:
        """`[L]`: how much each token of the stream is worth; only those of vision are compared."""
        raise NotImplementedError

    @torch.no_grad()
    def choose(self, view: View, kept: Sequence[int]) -> Tensor:
        vision = torch.nonzero_static(view.kind == Kind.VISION, size=sum(view.vision)).squeeze(1)
        return select_ranked(self.scores(view)[vision], view.vision, kept)

    def bytes_per_token(self, cfg: DecoderConfig) -> int:
        """Memory for scoring a prompt in pieces, beyond its residuals."""
        return 4


class Uniform(ByCount):
    """Evenly spaced."""

    def mask(self, current: Sequence[int], kept: Sequence[int], device: torch.device) -> Tensor:
        return select_uniform(current, kept, device)


class ByAttention(ByScore):
    """What the question looks at, in the block behind the stage (paper 3.3)."""

    def scores(self, view: View) -> Tensor:
        return view.attention

    def flops(self, model: ModelConfig, grads: Gradients, sequences: int, tokens: int) -> float:
        """Queries of the last prompt tokens, keys of all tokens, and their products."""
        width = model.decoder.width
        (q, q_rank), (k, k_rank), _ = maps_of("*", model, grads).first
        query = sequences * (width * q + q_rank * (width + q))
        keys = tokens * (width * k + k_rank * (width + k))
        return 2.0 * (query + keys + tokens * q)

    def bytes_per_token(self, cfg: DecoderConfig) -> int:
        return 16 * cfg.heads  # float32 logits: in pieces, together, masked, and their exponentials


SELECTIONS: dict[str, Selection] = {"uniform": Uniform(), "attention": ByAttention()}


# ---- index arithmetic -----------------------------------------------------------------------------------


def select_uniform(current: Sequence[int], kept: Sequence[int], device: torch.device) -> Tensor:
    """`[V]` bool: the `linspace(0, n - 1, k)`-th (rounded down) of each group's n vision tokens stay."""
    chosen, vision = Bounds(kept, device), Bounds(current, device)
    ends = on_device([[max(n - 1, 0), max(k - 1, 1)] for n, k in zip(current, kept)], device)
    last, steps = ends.unbind(1)  # [S] each
    seq = chosen.seq_idx
    rank = chosen.position * last[seq] // steps[seq]  # whole numbers: floats would round 163,840 tokens wrongly
    return _mask(vision, vision.cu_seqlens[seq] + rank)


def select_ranked(scores: Tensor, current: Sequence[int], kept: Sequence[int]) -> Tensor:
    """`[V]` bool: the k vision tokens with the highest `scores [V]` of each group stay; of equals, the first."""
    chosen, vision = Bounds(kept, scores.device), Bounds(current, scores.device)
    # Two stable sorts in place of a loop over groups: by falling score, then by group.
    order = scores.argsort(descending=True, stable=True)
    order = order[vision.seq_idx[order].argsort(stable=True)]
    return _mask(vision, order[vision.cu_seqlens[chosen.seq_idx] + chosen.position])


def _mask(vision: Bounds, chosen: Tensor) -> Tensor:
    mask = torch.zeros(vision.num_tokens, dtype=torch.bool, device=vision.device)
    return mask.index_fill(0, chosen, True)


def last_prompt_token(kind: Tensor, bounds: Bounds) -> Tensor:
    """`[S]`: the position of each sequence's last token that is no answer (with several turns, of the last
    turn's prompt): what comes after the question is not known when it is asked."""
    place = torch.arange(len(kind), device=kind.device)
    place = place.masked_fill(kind == Kind.ANSWER, -1)  # so that no answer token is the largest place
    none = place.new_full((bounds.num_sequences,), -1)
    return none.scatter_reduce(0, bounds.seq_idx, place, "amax").clamp(min=0)


def attention_scores(logits: Tensor, query: Tensor, bounds: Bounds) -> Tensor:
    """Attention `[L]` that the token at `query [S]` pays to each token of its sequence, mean over heads,
    from logits `[L, H]`; later tokens get 0."""
    place = torch.arange(len(logits), device=logits.device)
    later = place > query[bounds.seq_idx]
    return segment_softmax_mean(logits.masked_fill(later[:, None], -torch.inf), bounds)
