"""Who ranks the vision tokens of a stream by what it sees in the block behind a stage: the last prompt token, or the
question, all of whose tokens count alike.

Letters: L tokens, S sequences, R ranking tokens of a sequence, H heads, G groups of them, P size of a head, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from timeviper.kernels.bounds import Bounds
from timeviper.pack import Kind, TextRun

ROWS = 32  # tokens that rank for a question, evenly spaced in a longer one: scores are of L x ROWS x heads
AT_A_TIME = 1 << 24  # elements of queries that are laid beside the tokens of several sequences: 64 MB in float32


@dataclass(frozen=True)
class Rows:
    """Ranking tokens of each sequence."""

    place: Tensor
    """`[S, R]` int64, in the stream."""
    weight: Tensor
    """`[S, R]` float32: one over the number of those that are there, 0 for the others. Sums to 1."""


@dataclass(frozen=True)
class Ranker:
    """The ranking tokens as a block needs them."""

    x: Tensor
    """`[S, R, K, D]` residuals, each behind those of the K - 1 tokens before it (0 before a sequence begins): attention
    takes K = 1, a convolution its width."""
    weight: Tensor
    """As in `Rows`."""
    rope: tuple[Tensor, Tensor] | None = None
    """Rotary cosines and sines of S * R tokens, in families that have them."""


def last_prompt_token(kind: Tensor, bounds: Bounds) -> Tensor:
    """`[S]`: the position of each sequence's last token that is no answer (with several turns, of the last
    turn's prompt): what comes after the question is not known when it is asked."""
    place = torch.arange(len(kind), device=kind.device)
    place = place.masked_fill(kind == Kind.ANSWER, -1)  # so that no answer token is the largest place
    none = place.new_full((bounds.num_sequences,), -1)
    return none.scatter_reduce(0, bounds.seq_idx, place, "amax").clamp(min=0)


def last_row(kind: Tensor, bounds: Bounds) -> Rows:
    """The last prompt token alone (paper 3.3)."""
    place = last_prompt_token(kind, bounds)[:, None]
    return Rows(place, torch.ones(place.shape, device=place.device))


def question_rows(kind: Tensor, bounds: Bounds, index: Tensor, text: Sequence[Sequence[TextRun]] | None = None) -> Rows:
    """The tokens of the last turn's prompt behind all media: the text that runs up to the last prompt token, as it
    stood in the stream that entered the decoder (index `[L]`), so that nothing that was dropped joins it to text
    between frames. text: what the host knows of it; without, the device is waited for."""
    end = last_prompt_token(kind, bounds)  # [S]
    place = torch.arange(len(kind), device=kind.device)
    begins = (kind != Kind.INSTRUCTION) | (bounds.position == 0)
    begins[1:] |= (kind[:-1] != Kind.INSTRUCTION) | (index[1:] != index[:-1] + 1)
    start = place.where(begins, 0).cummax(0).values[end]
    count = end - start + 1
    if text is None:
        longest = int(count.max())
    else:
        longest = max((next((n for n, k, _ in reversed(row) if k == Kind.INSTRUCTION), 1) for row in text), default=1)
    rank = torch.arange(min(longest, ROWS), device=kind.device)
    chosen = count.clamp(max=ROWS)[:, None]
    rows = start[:, None] + rank * (count[:, None] - 1) // (chosen - 1).clamp(min=1)
    there = rank < chosen
    return Rows(rows.where(there, end[:, None]), there / chosen)


def dots(k: Tensor, q: Tensor, bounds: Bounds) -> Tensor:
    """Products of each token's `k [L, G, P]` with the queries `q [S, R, G, H/G, P]` of its sequence: `[L, R, H]`,
    float32 or wider."""
    k = k if k.dtype == torch.float64 else k.float()
    q = q.to(k.dtype)
    if len(q) == 1:  # a long video: no copy of the queries for each token
        return torch.einsum("lgp,rghp->lrgh", k, q[0]).flatten(2)
    size = max(AT_A_TIME // q[0].numel(), 1)
    # [n, R, G, H/G, P] @ [n, 1, G, P, 1]
    parts = zip(k.split(size), bounds.seq_idx.split(size))
    return torch.cat([(q[seq] @ rows[:, None, :, :, None]).squeeze(-1).flatten(2) for rows, seq in parts])


def attention_scores(logits: Tensor, rows: Rows, bounds: Bounds) -> Tensor:
    """Attention `[L]` that the ranking tokens pay to each token of their sequence, mean over them and over heads,
    from logits `[L, R, H]`; tokens behind a row get 0 from it."""
    place = torch.arange(len(logits), device=logits.device)
    later = place[:, None] > rows.place[bounds.seq_idx]  # [L, R]
    shares = segment_softmax(logits.masked_fill(later[..., None], -torch.inf).flatten(1), bounds)
    return weighted(shares.view(logits.shape).mean(2), rows.weight, bounds)


def weighted(scores: Tensor, weight: Tensor, bounds: Bounds) -> Tensor:
    """`[L, R]` -> `[L]`: the mean over the ranking tokens that are there, of `weight [S, R]`."""
    return (scores * weight.to(scores.dtype)[bounds.seq_idx]).sum(1)


def segment_softmax(logits: Tensor, bounds: Bounds) -> Tensor:
    """Softmax of each column of `[L, C]` over each sequence's tokens; -inf gives exactly 0."""
    S, seq = bounds.num_sequences, bounds.seq_idx
    rows = seq[:, None].expand_as(logits)  # [L, C]: the sequence of each logit
    top = logits.new_full((S, logits.shape[1]), -torch.inf).scatter_reduce(0, rows, logits, "amax")
    weight = (logits - top[seq]).exp()  # the largest is 1: nothing overflows
    total = logits.new_zeros(top.shape).index_add(0, seq, weight)  # [S, C]
    return weight / total[seq]
