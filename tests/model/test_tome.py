"""Token merging: counts, order, weighted means, and a per-frame loop as the reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from timeviper.model.vision.tome import METRIC_HEADS, merge, rounds


def merge_one_frame(x: Tensor, tokens: int) -> Tensor:
    """`[N, C]` -> `[tokens, C]`, with a list of patch indices for every token."""
    groups = [[i] for i in range(len(x))]
    while len(groups) > tokens:
        means = torch.stack([x[g].mean(0) for g in groups])
        heads = METRIC_HEADS if x.shape[1] % METRIC_HEADS == 0 else 1
        metric = means.view(len(groups), heads, -1).mean(1)
        metric = metric / metric.norm(dim=1, keepdim=True)
        best = []  # (score, even token, odd token)
        for a in range(0, len(groups), 2):
            scores = [float(metric[a] @ metric[b]) for b in range(1, len(groups), 2)]
            top = max(range(len(scores)), key=scores.__getitem__)
            best.append((scores[top], a, 2 * top + 1))
        best.sort(key=lambda match: -match[0])
        for _, a, b in best[: min(len(groups) // 2, len(groups) - tokens)]:
            groups[b] += groups[a]
            groups[a] = []
        groups = sorted((sorted(g) for g in groups if g), key=lambda g: g[0])
    return torch.stack([x[g].mean(0) for g in groups])


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([3, 16, 32]), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_agrees_with_one_frame_at_a_time(n: int, tokens: int, channels: int, seed: int) -> None:
    x = torch.randn(3, n, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    if tokens > n:
        with pytest.raises(ValueError, match=f"merge {n} tokens a frame into {tokens}"):
            merge(x, tokens)
        return
    merged = merge(x, tokens)
    assert merged.shape == (3, tokens, channels)
    for frame, got in zip(x, merged):
        torch.testing.assert_close(got, merge_one_frame(frame, tokens))


def test_rounds_halve_until_the_last() -> None:
    assert rounds(729, 16) == [364, 182, 91, 46, 23, 7]
    assert rounds(256, 16) == [128, 64, 32, 16]
    assert rounds(16, 4) == [8, 4]
    assert rounds(16, 16) == []


def test_the_published_size() -> None:
    # In float64: among so many pairs two are often as alike as float32 can tell.
    x = torch.randn(2, 729, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    merged = merge(x, 16)
    assert merged.shape == (2, 16, 32)
    # The reference loop on one frame of full size.
    torch.testing.assert_close(merged[:1], merge_one_frame(x[0], 16)[None])


@pytest.mark.parametrize("n", [9, 16])
def test_one_token_is_the_mean_of_all_patches(n: int) -> None:
    """Whatever was merged with what before: means are weighted by the patches that they stand for."""
    x = torch.randn(2, n, 5, dtype=torch.float64)
    torch.testing.assert_close(merge(x, 1)[:, 0], x.mean(1))


def test_tokens_stay_in_raster_order() -> None:
    """Four pairs of equal patches become four tokens in the order of the frame, whatever their similarity."""
    x = torch.eye(4, dtype=torch.float64).repeat_interleave(2, dim=0)
    x[:2] += 0.3  # the first pair is not the best match
    x[1] += 0.1
    merged = merge(x[None], 4)[0]
    torch.testing.assert_close(merged, x.view(4, 2, 4).mean(1))


def test_all_patches_is_the_identity() -> None:
    x = torch.randn(2, 9, 8)
    assert merge(x, 9) is x


def test_dtype_and_gradients() -> None:
    x = torch.randn(2, 16, 32, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: merge(t, 4), x)
    assert merge(x.to(torch.bfloat16), 4).dtype == torch.bfloat16
    assert merge(torch.zeros(0, 16, 32), 4).shape == (0, 4, 32)
