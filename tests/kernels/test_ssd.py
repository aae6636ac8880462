"""The chunked scan beyond what holds for every kernel: layouts, extremes, precision, growth."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from timeviper.kernels import dispatch, ssd_chunked
from timeviper.kernels.bounds import Bounds
from timeviper.kernels.ssd import ssd
from timeviper.kernels.ssd_layout import ChunkLayout


def inputs(
    L: int, S: int, H: int = 4, P: int = 3, G: int = 2, N: int = 5, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """x, dt, A, B, C, D, dt_bias, initial_state."""
    g = torch.Generator().manual_seed(L)
    shapes = [(L, H, P), (L, H), (H,), (L, G, N), (L, G, N), (H,), (H,), (S, H, P, N)]
    tensors = [torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes]
    tensors[2] = -tensors[2].exp()
    return tensors


def run(tensors: list[Tensor], bounds: Bounds, chunk_size: int, form: str = "torch") -> list[Tensor]:
    """Output, final state and all gradients under fixed weights."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    with dispatch.use(ssd=form):
        x, dt, A, B, C, D, bias, state = leaves
        y, final = ssd(x, dt, A, B, C, D, bias, bounds, state, chunk_size)
    weights = [torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view_as(t) for t in (y, final)]
    return [y.detach(), final.detach(), *torch.autograd.grad([y, final], leaves, weights)]


def largest_error(got: list[Tensor], wanted: list[Tensor]) -> float:
    """Largest difference relative to the largest value of each tensor."""
    errors = [((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-30)).item() for a, b in zip(got, wanted)]
    return max(errors)


@given(
    lengths=st.lists(st.integers(0, 50), min_size=1, max_size=4).filter(any),
    chunk_size=st.sampled_from([1, 4, 16, 32]),
    groups=st.sampled_from([1, 2, 3, 6]),
    block=st.sampled_from([300, 3000, 1 << 17]),
)
@settings(max_examples=15, deadline=None)
def test_chunks_blocks_and_groups_change_nothing(lengths: list[int], chunk_size: int, groups: int, block: int) -> None:
    tensors, bounds = inputs(sum(lengths), len(lengths), H=6, G=groups), Bounds(lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssd_chunked, "TILE_CPU", block)
        got = run(tensors, bounds, chunk_size)
    assert largest_error(got, run(tensors, bounds, 32)) < 1e-9


@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any), limit=st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_the_plan_places_every_token_once(lengths: list[int], limit: int) -> None:
    plan = ChunkLayout.of(Bounds(lengths), 8)
    rows = sum(lengths) if plan.slots is None else plan.chunks * plan.size
    tiles = plan.tiles(limit, rows)
    assert [b.first for b in tiles[1:]] == [b.last for b in tiles[:-1]]
    assert (tiles[0].first, tiles[-1].last, tiles[-1].rows.stop) == (0, plan.chunks, rows)
    assert all(0 < b.n <= limit for b in tiles)
    marked = plan.restore(plan.align(torch.arange(1, sum(lengths) + 1)))
    assert marked.tolist() == list(range(1, sum(lengths) + 1))


def test_strided_inputs_and_expanded_gradients() -> None:
    """Slices of one projection, as the mixer passes them, and the gradient of a plain sum."""
    H, P, G, N, L = 4, 3, 2, 5, 150
    wide = torch.randn(L, H * P + 2 * G * N, dtype=torch.float64, requires_grad=True)
    _, dt, A, _, _, D, bias, _ = inputs(L, 1)

    def scan(contiguous: bool) -> Tensor:
        parts = wide.split([H * P, G * N, G * N], dim=-1)
        x, B, C = ((p.contiguous() if contiguous else p).unflatten(1, (-1, d)) for p, d in zip(parts, (P, N, N)))
        y, _ = ssd(x, dt, A, B, C, D, bias, Bounds([L]), None, 16)
        return torch.autograd.grad(y.sum(), wide)[0]

    torch.testing.assert_close(scan(False), scan(True), rtol=0, atol=1e-12)


# How large the steps are and how they scatter, before softplus; the rate A.
EXTREMES = {
    "steps near zero": (-30.0, 1.0, -1e-3),
    "steps of 1e-7": (-16.1, 0.0, -50.0),
    "no decay to speak of": (3.0, 1.0, -1e-4),
    "trained": (-4.0, 1.0, -16.0),
    "3e-22 a token": (3.0, 0.1, -16.0),
    "underflow within a token": (8.0, 1.0, -50.0),
    "all at once": (0.0, 6.0, -50.0),  # sums of -1e4, between them tokens that hardly decay
}


@pytest.mark.parametrize(("lengths", "form"), [((130, 70), "reference"), ((2000,), "torch")], ids=["packed", "long"])
@pytest.mark.parametrize("extreme", EXTREMES)
def test_extreme_decays_stay_exact(extreme: str, lengths: tuple[int, ...], form: str) -> None:
    """Also the gradients that vanish with the decays: Adam divides by their own size, so an error must be small beside
    the truth, not beside the sums that it is what is left of."""
    step, scatter, rate = EXTREMES[extreme]
    tensors = inputs(sum(lengths), len(lengths), dtype=torch.float32)
    tensors[1], tensors[2] = scatter * tensors[1] + step, torch.full_like(tensors[2], rate)
    tensors[6] = tensors[6] * min(scatter, 1)
    got = run(tensors, Bounds(lengths), 64)
    wanted = run([t.double() for t in tensors], Bounds(lengths), 64, form)
    assert all(t.isfinite().all() for t in got)
    A, bias = 4, 8
    got[A], wanted[A] = got[A] * rate, wanted[A] * rate  # of A_log: A = -exp(A_log)
    for i in (A, bias):
        assert ((got[i] - wanted[i]).abs() <= (1e-4 * wanted[i].abs()).clamp_min(1e-9)).all(), (got[i], wanted[i])
    del got[A], wanted[A]
    assert largest_error(got, wanted) < 1e-5


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-2)])
def test_precision_at_model_size(dtype: torch.dtype, tolerance: float) -> None:
    tensors = inputs(700, 3, H=4, P=64, G=2, N=64)
    tensors[1] = tensors[1] - 3  # steps around 0.05
    rounded = [t.to(dtype) if i in (0, 1, 3, 4) else t.float() for i, t in enumerate(tensors)]
    bounds = Bounds([100, 473, 127])
    got = run(rounded, bounds, 128)
    wanted = run([t.double() for t in rounded], bounds, 128)
    assert got[0].dtype == got[2].dtype == dtype
    assert got[1].dtype == torch.float32
    assert largest_error(got, wanted) < tolerance


def test_decode_is_the_scan_token_by_token() -> None:
    S, n = 3, 5
    tensors = inputs(S * n, S)
    x, dt, A, B, C, D, bias, state = tensors
    whole, final = ssd(x, dt, A, B, C, D, bias, Bounds([n] * S), state, 4)
    steps = []
    for t in range(n):
        now = torch.arange(S) * n + t
        y, state = ssd(x[now], dt[now], A, B[now], C[now], D, bias, Bounds([1] * S), state)
        steps.append(y)
    torch.testing.assert_close(torch.stack(steps, 1).flatten(0, 1), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(state, final, rtol=0, atol=1e-12)


def test_wrong_shapes_are_refused() -> None:
    x, dt, A, B, C, D, bias, state = inputs(10, 1)
    with pytest.raises(AssertionError, match="4 heads cannot share 3 groups"):
        ssd(x, dt, A, torch.ones(10, 3, 5), torch.ones(10, 3, 5), D, bias, Bounds([10]))
    with pytest.raises(AssertionError, match="ssm state"):
        ssd(x, dt, A, B, C, D, bias, Bounds([4, 6]), state)
