"""How long a Mamba-2 head remembers: rates of forgetting, half-lives and survival, from its steps alone.

    rate_t   = softplus(dt_t + dt_bias) |A|                       per head and token, nats
    survival = exp(-sum of the rates behind a token)              what is left of what it wrote
    n_j      = the smallest n with rate_{j+1} + ... + rate_{j+n} >= ln 2

One number for a head is ln 2 / (mean rate), not the mean of ln 2 / rate: rates are heavy-tailed, and most tokens hardly
forget while a few forget much. Which tokens these are differs by kind, so rates are kept by kind.

Sums are float64: over 160,000 tokens float32 would lose the third digit.
Letters: L tokens, S sequences, H heads, K kinds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from timeviper.kernels.bounds import Bounds
from timeviper.pack import Kind, Pack

LN2 = math.log(2)
ROUNDING = 1e-9  # of ln 2: a sum that should be ln 2 is
NAMES = ("context", "vision", "instruction", "answer", "time text")
TIME_TEXT = 4  # beside the values of `Kind`


def rates(dt: Tensor, dt_bias: Tensor, A_log: Tensor) -> Tensor:
    """Nats that each head forgets at each token, float64 `[L, H]`; dt `[L, H]` raw, dt_bias and A_log `[H]`."""
    return F.softplus(dt.double() + dt_bias.double()) * A_log.double().exp()


def half_lives(rate: Tensor, bounds: Bounds) -> Tensor:
    """Tokens until half of what each token wrote is forgotten, int64 `[L, H]`; 0 where its sequence ends before that
    (censored)."""
    found = []
    for part in rate.split(bounds.lengths):
        gone = part.cumsum(0).T.contiguous()  # [H, n]
        reached = torch.searchsorted(gone, gone + LN2 * (1 - ROUNDING))
        places = torch.arange(len(part), device=rate.device)
        found.append((reached - places).masked_fill(reached == len(part), 0).T)
    return torch.cat(found)


def survival(rate: Tensor, bounds: Bounds) -> Tensor:
    """What is left, at the end of its sequence, of what each token wrote: float64 `[L, H]` in (0, 1]."""
    parts = []
    for part in rate.split(bounds.lengths):
        gone = part.cumsum(0)
        parts.append((gone - gone[-1:]).exp())
    return torch.cat(parts)


def kinds(pack: Pack) -> Tensor:
    """The kind of each token, int64 `[L]`: values of `Kind`, and TIME_TEXT for text between the frames of a turn."""
    kind = pack.kind.long()
    start = 0
    for runs, length in zip(pack.text_runs, pack.lengths):
        total = length - sum(n for n, *_ in runs)
        answered = {seen for _, k, seen in runs if k == Kind.ANSWER}
        place = seen_before = 0
        for n, k, seen in runs:
            place += seen - seen_before
            if k == Kind.INSTRUCTION and 0 < seen < total and seen not in answered:
                kind[start + place : start + place + n] = TIME_TEXT
            place, seen_before = place + n, seen
        start += length
    return kind


def by_kind(rate: Tensor, kind: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of the rates over the tokens of each kind, float64 `[K, H]`, and their number `[K]`."""
    total = rate.new_zeros(len(NAMES), rate.shape[1]).index_add(0, kind, rate)
    return total, torch.bincount(kind, minlength=len(NAMES))


def rate_a_second(mean: Tensor, tokens: Sequence[float], frames_a_second: float) -> Tensor:
    """Nats a head forgets in a second of video `[H]`, from its mean rate by kind `[K, H]` (NaN: no such token) and the
    tokens of each kind that a frame brings."""
    weights = mean.new_tensor(tokens)[:, None]
    return frames_a_second * (torch.nan_to_num(mean) * weights).sum(0)


def median(lives: Tensor) -> Tensor:
    """Of half-lives `[n, H]`: the middle one, infinite where that is censored, float64 `[H]`."""
    values = torch.where(lives > 0, lives.double(), torch.inf)
    return values.sort(0).values[(len(values) - 1) // 2]
