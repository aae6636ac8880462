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

from timeviper.config import DecoderConfig, ModelConfig, TransVStage
from timeviper.kernels.bounds import Bounds
from timeviper.kernels.host import on_device
from timeviper.model.gradients import Gradients, maps_of
from timeviper.model.ranking import ROWS, Ranker, Rows, attention_scores, last_row, question_rows, weighted
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
        query: str = "last",
    ) -> None:
        """groups: as in a `Stream`, of all pieces together; those of a stream that is whole are known. query: who
        ranks, as in a `TransVStage`."""
        self.pieces, self.block, self.with_rope, self.query = pieces, block, with_rope, query
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
    def rows(self) -> Rows:
        """Who ranks."""
        if self.query == "last":
            return last_row(self.kind, self.bounds)
        text = self.pieces[0].text if len(self.pieces) == 1 else None
        return question_rows(self.kind, self.bounds, _joined([piece.index for piece in self.pieces]), text)

    @cached_property
    @torch.no_grad()
    def attention(self) -> Tensor:
        """`[L]`: what the ranking tokens of each sequence pay to its tokens in the block behind the stage, an
        attention block; mean over heads, 0 for later tokens."""
        places = self.rows.place.flatten()
        one_each = Bounds([1] * len(places), places.device)
        rope = self.with_rope(Span(one_each, one_each, past=self.bounds.position[places])).rope
        ranker = Ranker(self._windows(1), self.rows.weight, rope)
        # A forward of the block: sharded weights exist in full only inside the forward of the module that owns them.
        logits = [self.block(x, span, ranker=ranker) for x, span in self.residuals()]  # [n, R, H] each
        return attention_scores(_joined(logits), self.rows, self.bounds)

    @torch.no_grad()
    def state_space(self, conv_kernel: int) -> Tensor:
        """`[L]`: what the ranking tokens of each sequence would read of its tokens in the Mamba-2 block behind the
        stage if nothing decayed."""
        ranker = Ranker(self._windows(conv_kernel), self.rows.weight)
        before, found = conv_kernel - 1, []
        halo: Tensor | None = None
        for x, span in self.residuals():
            if halo is not None:  # the convolution of a piece begins in the one before
                x = torch.cat([halo, x])
                span = Span.fresh(Bounds([len(x)], x.device))
            found.append(self.block(x, span, ranker=ranker)[0 if halo is None else len(halo) :])  # [n, R]
            halo = x[len(x) - min(before, len(x)) :]
        return weighted(_joined(found), self.rows.weight, self.bounds)

    def _windows(self, width: int) -> Tensor:
        """Residuals `[S, R, width, D]` of the ranking tokens, each behind those of the tokens before it; 0 where its
        sequence has not begun."""
        back = torch.arange(width - 1, -1, -1, device=self.rows.place.device)
        places = self.rows.place[..., None] - back  # [S, R, width]
        first = self.bounds.cu_seqlens[:-1].long().view(-1, 1, 1)
        x = self._at(places.clamp(min=0).flatten()).unflatten(0, places.shape)
        return x * (places >= first)[..., None]

    def _at(self, where: Tensor) -> Tensor:
        """Residuals `[n, D]` of the tokens at `where [n]`."""
        if len(self.pieces) == 1:
            return self.pieces[0].x.detach()[where]
        rows, start = self.pieces[0].x.new_empty(len(where), self.pieces[0].x.shape[1]), 0
        for piece in self.pieces:
            inside = torch.nonzero((where >= start) & (where < start + len(piece.x))).squeeze(1)
            rows[inside] = piece.x.detach()[where[inside] - start]
            start += len(piece.x)
        return rows


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)  # a long pack is not copied


# ---- selections -----------------------------------------------------------------------------------------


class Selection:
    """How a stage chooses; without a state."""

    def choose(self, view: View, kept: Sequence[int]) -> Tensor:
        """`[V]` bool: which vision tokens stay, `kept` of each group of `view.vision`. Index arithmetic, without
        waiting for the device where the view is of one piece."""
        raise NotImplementedError

    def flops(
        self, model: ModelConfig, grads: Gradients, stage: TransVStage, text: Sequence[int], tokens: int
    ) -> float:
        """Products of matrices, in FLOP, that the choice takes in a pack of so many tokens; text: those of text of
        each sequence."""
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

    def bytes_per_token(self, cfg: DecoderConfig, stage: TransVStage) -> int:
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

    def flops(
        self, model: ModelConfig, grads: Gradients, stage: TransVStage, text: Sequence[int], tokens: int
    ) -> float:
        """Queries of the ranking tokens, keys of all tokens, and their products."""
        width, rows = model.decoder.width, most_rows(stage, text)
        (q, q_rank), (k, k_rank), _ = maps_of("*", model, grads).first
        query = len(text) * rows * (width * q + q_rank * (width + q))
        keys = tokens * (width * k + k_rank * (width + k))
        return 2.0 * (query + keys + tokens * q * rows)

    def bytes_per_token(self, cfg: DecoderConfig, stage: TransVStage) -> int:
        return 16 * cfg.heads * most_rows(stage)  # float32 logits: in pieces, together, masked, and their exponentials


class ByStateSpace(ByScore):
    """What the question would read of each token in the Mamba-2 block behind the stage, if nothing decayed."""

    def scores(self, view: View) -> Tensor:
        return view.state_space(view.block.mixer.conv_kernel)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]

    def flops(
        self, model: ModelConfig, grads: Gradients, stage: TransVStage, text: Sequence[int], tokens: int
    ) -> float:
        """The projection of all tokens and of those around the ranking ones, and the products of B and C."""
        cfg, rows = model.decoder, most_rows(stage, text)
        ((inner, rank),) = maps_of("M", model, grads).first
        projected = tokens + len(text) * rows * cfg.conv_kernel
        read = tokens * rows * cfg.ssm_groups * cfg.ssm_state
        return 2.0 * (projected * (cfg.width * inner + rank * (cfg.width + inner)) + read)

    def bytes_per_token(self, cfg: DecoderConfig, stage: TransVStage) -> int:
        return 8 * most_rows(stage)  # what is read, in pieces and together


SELECTIONS: dict[str, Selection] = {"uniform": Uniform(), "attention": ByAttention(), "mamba": ByStateSpace()}


def most_rows(stage: TransVStage, text: Sequence[int] = (ROWS,)) -> int:
    """Ranking tokens of a sequence, at most, with these many tokens of text each."""
    return 1 if stage.query == "last" else min(ROWS, max(text, default=1))


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
