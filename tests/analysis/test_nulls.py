"""Shares of attention that know no content: the values of the paper's layout, and maps against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from timeviper.analysis.nulls import kernel, mean_distance, normalised, same_reach, shares, sink, to_part, uniform

# 8 frames of 16 tokens, 22 of the prompt, of which 8 before the video, 25 of the answer: the notebook's sample.
LAYOUT = "i" * 8 + "v" * 128 + "i" * 14 + "r" * 25


def parts(layout: str = LAYOUT) -> dict[str, Tensor]:
    return {letter: torch.tensor([c == letter for c in layout]) for letter in "vir"}


@pytest.mark.parametrize(
    ("null", "wanted"),
    [
        (uniform(175), (0.84, 0.25, 0.08)),
        (kernel(175, 8), (0.54, 0.33, 0.61)),
        (kernel(175, 16), (0.66, 0.30, 0.40)),
        (sink(175, 0.5), (0.42, 0.62, 0.04)),
    ],
    ids=["uniform", "h=8", "h=16", "sink"],
)
def test_the_null_lines_of_the_papers_layout(null: Tensor, wanted: tuple[float, float, float]) -> None:
    torch.testing.assert_close(null.sum(1), torch.ones(175, dtype=torch.float64))
    found = shares(null, parts())
    assert [to_part(found, p) for p in "vir"] == pytest.approx(wanted, abs=0.0055)
    assert set(found["r"]) == {"v", "i", "r"}
    assert set(found["v"]) == {"v", "i"}  # no frame sees the answer


def test_shares_are_sums_over_rows_with_weight() -> None:
    g = torch.Generator().manual_seed(0)
    a, layout = normalised(torch.randn(12, 12, generator=g, dtype=torch.float64)), "iivvviivvirr"
    a[3] = 0  # a row that reads nothing
    found = shares(a, parts(layout))
    for source in "vir":
        for target in "vir":
            total = rows = 0.0
            for i in range(12):
                weight = sum(float(a[i, j]) for j in range(12) if layout[j] == target)
                if layout[i] == source and weight > 0:
                    total, rows = total + weight, rows + 1
            if rows:
                assert found[source][target] == pytest.approx(total / rows, rel=1e-12)
            else:
                assert target not in found[source]
    assert math.isnan(to_part({}, "v"))


@pytest.mark.parametrize("half", [0.5, 3.0, 20.0, 400.0])
def test_a_kernel_is_found_again_by_its_reach(half: float) -> None:
    assert same_reach(64, mean_distance(kernel(64, half))) == pytest.approx(half, rel=1e-6)


def test_nothing_reaches_farther_than_uniform_rows_but_a_sink() -> None:
    assert mean_distance(uniform(64)) == pytest.approx(63 / 4)
    assert same_reach(64, mean_distance(sink(64, 0.5))) == math.inf
