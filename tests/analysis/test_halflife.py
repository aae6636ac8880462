"""Half-lives against closed forms: one rate, a pause, packs, kinds of tokens, seconds."""

from __future__ import annotations

import math

import pytest
import torch
from viper_helpers import sample

from timeviper.analysis.halflife import (
    LN2,
    NAMES,
    TIME_TEXT,
    by_kind,
    half_lives,
    kinds,
    median,
    rate_a_second,
    rates,
    survival,
)
from timeviper.kernels.bounds import Bounds
from timeviper.pack import Kind, Pack


def raw(step: torch.Tensor) -> torch.Tensor:
    """The dt whose softplus is `step`."""
    return torch.log(torch.expm1(step))


def test_one_rate_gives_ln2_over_rate() -> None:
    """step 1/4, A = -4 ln 2: half of everything is gone one token later."""
    dt = raw(torch.full((64, 1), 0.25, dtype=torch.float64))
    rate = rates(dt, torch.zeros(1), torch.tensor([4 * LN2], dtype=torch.float64).log())
    torch.testing.assert_close(rate, torch.full_like(rate, LN2), rtol=1e-14, atol=0)
    lives = half_lives(rate, Bounds([64]))
    assert lives[:-1].eq(1).all()
    assert lives[-1] == 0  # censored
    torch.testing.assert_close(survival(rate, Bounds([64]))[:, 0], 2.0 ** -torch.arange(63.0, -1, -1).double())


def test_a_bias_shifts_the_step_of_every_head() -> None:
    bias, A_log = torch.tensor([0.3, -2.0]), torch.tensor([1.0, -1.0])
    dt = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    wanted = torch.log1p((dt.double() + bias.double()).exp()) * A_log.double().exp()
    torch.testing.assert_close(rates(dt, bias, A_log), wanted, rtol=1e-12, atol=0)


def test_a_pause_forgets_nothing() -> None:
    """A = -1, step 0.1 but 0 at 10 to 59: of token 9, exp(-0.4) is left at 63."""
    rate = torch.full((64, 1), 0.1, dtype=torch.float64)
    rate[10:60] = 0
    assert survival(rate, Bounds([64]))[9, 0].item() == pytest.approx(math.exp(-0.4), abs=1e-14)
    lives = half_lives(rate, Bounds([64]))[:, 0]
    assert lives[:3].tolist() == [7, 7, 7]
    assert lives[4] == 6 + 51  # five tokens before the pause, and 0.7 is reached at the second behind it
    assert lives[9] == 0


@pytest.mark.parametrize("lengths", [[64], [1, 0, 40], [30, 34], [5, 120, 3]])
def test_half_lives_are_those_of_a_loop_over_every_token(lengths: list[int]) -> None:
    g = torch.Generator().manual_seed(len(lengths))
    rate = torch.rand(sum(lengths), 3, generator=g, dtype=torch.float64) ** 4
    lives, left, start = half_lives(rate, Bounds(lengths)), survival(rate, Bounds(lengths)), 0
    for n in lengths:
        for h in range(3):
            for j in range(n):
                behind = rate[start + j + 1 : start + n, h]
                reached = (behind.cumsum(0) >= LN2).nonzero()
                wanted = int(reached[0]) + 1 if len(reached) else 0
                assert lives[start + j, h] == wanted
                assert left[start + j, h].item() == pytest.approx(math.exp(-behind.sum()), rel=1e-12)
        start += n


def test_a_hundred_sixty_thousand_tokens_keep_their_digits() -> None:
    rate = torch.full((160_000, 1), 0.3, dtype=torch.float64)
    lives = half_lives(rate, Bounds([160_000]))[:, 0]
    assert lives[:-3].eq(3).all()


def test_the_median_of_mostly_censored_lives_is_infinite() -> None:
    lives = torch.tensor([[5, 0], [0, 0], [7, 3]])
    assert median(lives).tolist() == [7, math.inf]


def test_time_text_is_what_stands_between_frames() -> None:
    pack = Pack.join([sample("2c4v2i4v2i4v3i2a", 3), sample("3c2a", 0), sample("2c4v3i2a3i4v2i2a", 2)])
    names = [NAMES[k] for k in kinds(pack).tolist()]
    first = ["context"] * 2 + ["vision"] * 4 + ["time text"] * 2 + ["vision"] * 4 + ["time text"] * 2
    first += ["vision"] * 4 + ["instruction"] * 3 + ["answer"] * 2
    assert names[: len(first)] == first
    assert names[len(first) : len(first) + 5] == ["context"] * 3 + ["answer"] * 2
    third = ["context"] * 2 + ["vision"] * 4 + ["instruction"] * 3 + ["answer"] * 2  # a question is no time text
    assert names[len(first) + 5 :][: len(third)] == third


def test_rates_are_summed_by_kind() -> None:
    rate = torch.tensor([[1.0], [2], [4], [8]], dtype=torch.float64)
    total, count = by_kind(rate, torch.tensor([0, 1, 1, TIME_TEXT]))
    assert total[:, 0].tolist() == [1, 6, 0, 0, 8]
    assert count.tolist() == [1, 2, 0, 0, 1]


@pytest.mark.parametrize(("keep", "seconds"), [(1.0, 4.33), (0.5, 8.66)])
def test_seconds_count_what_a_stage_keeps(keep: float, seconds: float) -> None:
    """Rate 0.01, 16 tokens a frame, 1 frame a second."""
    mean = torch.full((5, 1), torch.nan, dtype=torch.float64)
    mean[Kind.VISION] = 0.01
    a_frame = [0, 16 * keep, 0, 0, 0]
    assert pytest.approx(69.3, abs=0.05) == LN2 / 0.01
    assert LN2 / rate_a_second(mean, a_frame, 1.0).item() == pytest.approx(seconds, abs=0.005)
