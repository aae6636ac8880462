"""What a map of attention looks like where no token means anything: the lines to hold every curve against.

Shares between parts of a sequence are mostly geometry: how long the parts are, where they stand, how far a row reaches.
So each curve stands beside rows that know nothing of content:

    uniform   every token that is seen counts alike
    reach     2^(-distance / h), with the h that gives the mean distance that was measured
    sink      the measured share on the first token, the rest alike

and means something only by how far it is from them. Shares are those of the paper (arXiv 2511.16595, eq. 9, 10):

    share(A -> B) = sum of a[i,j] over i in A, j in B / number of rows of A with any weight on B
    to B          = mean of share(A -> B) over the parts A that have such rows

Letters: L tokens of one sequence.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

STEPS = 60  # halvings in search of a reach


def shares(a: Tensor, parts: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """share(A -> B) by A and B; a `[L, L]` of rows that are queries; parts: which tokens belong to each, `[L]` bool.

    What no row of a part can see is left out.
    """
    found: dict[str, dict[str, float]] = {}
    for source, rows in parts.items():
        for target, columns in parts.items():
            weight = (a[rows][:, columns] if rows.any() and columns.any() else a.new_zeros(1, 1)).sum(1)
            if seen := int((weight > 0).sum()):
                found.setdefault(source, {})[target] = float(weight.sum()) / seen
    return found


def to_part(found: Mapping[str, Mapping[str, float]], part: str) -> float:
    """The mean over the parts that see `part`; NaN if none does."""
    values = [row[part] for row in found.values() if part in row]
    return sum(values) / len(values) if values else float("nan")


def normalised(a: Tensor) -> Tensor:
    """`[..., L, L]` with the upper triangle gone and each row of sum 1; rows of nothing stay 0."""
    size = a.tril().abs()
    return size / size.sum(-1, keepdim=True).clamp(min=1e-300)


def uniform(length: int) -> Tensor:
    """float64 `[L, L]`"""
    return normalised(torch.ones(length, length, dtype=torch.float64))


def kernel(length: int, half: float) -> Tensor:
    """Rows 2^(-distance / half), float64 `[L, L]`."""
    place = torch.arange(length, dtype=torch.float64)
    return normalised(torch.exp2(-(place[:, None] - place).clamp(min=0) / half))


def sink(length: int, share: float) -> Tensor:
    """`share` of each row on the first token, the rest uniform, float64 `[L, L]`."""
    rows = uniform(length) * (1 - share)
    rows[:, 0] += share
    return rows


def mean_distance(a: Tensor) -> float:
    """How far rows of sum 1 `[L, L]` lie back on the mean, in tokens."""
    place = torch.arange(len(a), dtype=a.dtype, device=a.device)
    return float((a * (place[:, None] - place)).sum() / len(a))


def same_reach(length: int, distance: float) -> float:
    """The half distance of the kernel whose mean distance is `distance` tokens; infinite beyond that of uniform
    rows."""
    if distance >= (length - 1) / 4:
        return float("inf")
    low, high = 1e-3, 100.0 * length
    for _ in range(STEPS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if _distance_of(length, middle) < distance else (low, middle)
    return (low * high) ** 0.5


def _distance_of(length: int, half: float) -> float:
    """`mean_distance(kernel(length, half))`, without the matrix."""
    back = torch.arange(length, dtype=torch.float64)
    weight = torch.exp2(-back / half)
    return float(((back * weight).cumsum(0) / weight.cumsum(0)).mean())
