"""Token merging: a frame's patch features become a few tokens by joining similar ones, without parameters.

Bipartite soft matching (Bolya et al., "Token Merging", arXiv 2210.09461), as TimeViper uses it before the
projector (paper 3.1). Letters: F frames, n tokens of a frame in this round, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

METRIC_HEADS = 16  # channels are averaged over this many groups before tokens are compared


def merge(features: Tensor, tokens: int) -> Tensor:
    """Merge the N tokens of each frame down to `tokens`: `[F, N, C]` -> `[F, tokens, C]`.

    Each round at most halves the count (729 -> 365 -> 183 -> 92 -> 46 -> 23 -> 16). A token stands for
    all the patches that were merged into it and is their plain mean, whatever the order of the merges.
    The result is ordered by the first patch that each token stands for, so it stays in raster order:
    a decoder without positional encoding knows tokens by their order alone, and neighbours in the frame
    stay candidates for each other, since the two sides of a match are the even and the odd tokens.
    """
    F, N, _ = features.shape
    if not 1 <= tokens <= N:
        raise ValueError(f"cannot merge {N} tokens a frame into {tokens}: allowed are 1 to {N}")
    if tokens == N:
        return features
    x = features if features.dtype == torch.float64 else features.float()
    size = x.new_ones(F, N)
    for r in rounds(N, tokens):
        x, size = _merge_round(x, size, r)
    return x.to(features.dtype)


def rounds(n: int, tokens: int) -> list[int]:
    """Tokens removed in each round from n down to `tokens`; 729 -> 16: 364, 182, 91, 46, 23, 7."""
    removed = []
    while n > tokens:
        removed.append(min(n // 2, n - tokens))
        n -= removed[-1]
    return removed


def _merge_round(x: Tensor, size: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Join the r best matches of an even token with an odd one: `[F, n, C]`, `[F, n]` -> n - r tokens.

    Tokens arrive ordered by the first patch they stand for and leave so: a merged pair takes the place
    of whichever of the two came first.
    """
    F, n, _ = x.shape
    metric = _metric(x)
    score, partner = (metric[:, 0::2] @ metric[:, 1::2].transpose(1, 2)).max(dim=2)  # [F, even]
    # A stable sort: equal scores (blank frames) give the same tokens on every run and device.
    chosen = score.sort(dim=1, descending=True, stable=True).indices[:, :r]
    source = 2 * chosen  # positions in [0, n)
    target = 2 * partner.gather(1, chosen) + 1

    # group[i]: the place, among the n, of the token that i becomes part of.
    place = torch.arange(n, device=x.device).expand(F, n)
    first = place.scatter_reduce(1, target, source, "amin")  # the first member of each odd token
    group = first.scatter(1, source, first.gather(1, target))
    # Places that nobody stands at any more are counted out: the rest get new ones without gaps.
    slot = torch.zeros(F, n, dtype=torch.long, device=x.device).scatter(1, group, 1).cumsum(1) - 1
    slot = slot.gather(1, group)  # [F, n] in [0, n - r)

    # A product with the 0/1 matrix of who goes where, not a scatter: sums in a fixed order on every device,
    # at 0.2% of the encoder's arithmetic.
    weight = nnf.one_hot(slot, n - r).to(x.dtype) * size.unsqueeze(2)  # [F, n, n - r]
    merged = weight.sum(dim=1)  # [F, n - r]: patches that each new token stands for
    return weight.transpose(1, 2) @ x / merged.unsqueeze(2), merged  # [F, n - r, C]


def _metric(x: Tensor) -> Tensor:
    """Unit vectors that tokens are compared by, `[F, n, C / heads]`, without gradient.

    Channels that do not divide into `METRIC_HEADS` are compared as they are.
    """
    x = x.detach()
    if x.shape[2] % METRIC_HEADS == 0:
        x = x.unflatten(2, (METRIC_HEADS, -1)).mean(dim=2)  # [F, n, heads, C / heads] -> [F, n, C / heads]
    return nnf.normalize(x, dim=2)
