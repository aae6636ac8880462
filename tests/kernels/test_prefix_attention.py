"""Queries that see a prefix of their keys: flash kernels in a few calls against the definition."""

from __future__ import annotations

import pytest
import torch
import vendor_twins
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from timeviper.kernels import dispatch, prefix_attention
from timeviper.kernels.attention import attention
from timeviper.kernels.bounds import Bounds
from timeviper.kernels.prefix_attention import Runs, part_of

H, HKV, P = 4, 2, 8
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
# (queries, further keys that they see, keys between that nobody was known to drop); no further key: they see none.
sequences = st.lists(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 2)), max_size=9), max_size=5
)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lay_out(plan: list[list[tuple[int, int, int]]], spare: int) -> tuple[Bounds, Bounds, Tensor, Runs]:
    """Queries, keys (`spare` of each sequence behind the last limit), `visible` and runs with loose bounds."""
    visible, runs, keys = [], [], []
    for row in plan:
        seen = bound = 0
        runs.append([])
        for n, more, loose in row:
            seen, bound = seen + more, bound + more + loose
            blind = more == 5  # such as answers among instructions
            visible += [0 if blind else seen] * n
            runs[-1].append((n, 0 if blind else bound))
        keys.append(seen + spare)
    return Bounds(sum(n for n, *_ in row) for row in plan), Bounds(keys), torch.tensor(visible, dtype=torch.int64), runs


def compute(form: str, tensors: list[Tensor], bounds: tuple[Bounds, Bounds], visible: Tensor, runs: Runs | None):
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    twins = vendor_twins.with_torch_attention() if tensors[0].device.type == "cpu" else {}
    with dispatch.use(attention=form), dispatch.stand_in(twins):
        y = attention(leaves[0], leaves[1], leaves[2], *bounds, visible=visible, runs=runs)
    grads = torch.autograd.grad((y * normal(9, *y.shape).to(y)).sum(), leaves, allow_unused=True)
    return [y.detach(), *(torch.zeros_like(t) if g is None else g for t, g in zip(leaves, grads))]


@given(plan=sequences, spare=st.integers(0, 3), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_prefixes_are_the_definition(plan: list[list[tuple[int, int, int]]], spare: int, seed: int) -> None:
    bounds_q, bounds_k, visible, runs = lay_out(plan, spare)
    counts = bounds_q.num_tokens, bounds_k.num_tokens, bounds_k.num_tokens
    tensors = [normal(seed + i, n, heads, P) for i, (n, heads) in enumerate(zip(counts, (H, HKV, HKV)))]
    got = compute("vendor", tensors, (bounds_q, bounds_k), visible, runs)
    wanted = compute("reference", tensors, (bounds_q, bounds_k), visible, None)
    for a, b in zip(got, wanted):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * max(1.0, float(b.abs().max()) if b.numel() else 1.0))
    assert (got[0][visible == 0] == 0).all()


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (64, 7), (65, 8)])
def test_calls_grow_as_the_logarithm_of_the_runs(count: int, expected: int) -> None:
    plan = [[(2, 3, 0)] * count, [(1, 1, 0)]]
    bounds_q, bounds_k, visible, runs = lay_out(plan, 0)
    tensors = [
        normal(i, n.num_tokens, h, P) for i, (n, h) in enumerate([(bounds_q, H), (bounds_k, HKV), (bounds_k, HKV)])
    ]
    vendor_twins.calls.clear()
    for a, b in zip(*(compute(f, tensors, (bounds_q, bounds_k), visible, runs) for f in ("vendor", "reference"))):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
    assert vendor_twins.calls == {"_flash_attention_forward": expected, "_flash_attention_backward": expected}


def test_many_runs_take_more_calls_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_attention, "MOST_NODES", 3)
    bounds_q, bounds_k, visible, runs = lay_out([[(1, 2, 1)] * 7, [(2, 0, 0)], [(1, 3, 0)] * 5], 1)
    shapes = ((bounds_q, H), (bounds_k, HKV), (bounds_k, HKV))
    tensors = [normal(i, n.num_tokens, h, P) for i, (n, h) in enumerate(shapes)]
    vendor_twins.calls.clear()
    for a, b in zip(*(compute(f, tensors, (bounds_q, bounds_k), visible, runs) for f in ("vendor", "reference"))):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
    assert vendor_twins.calls["_flash_attention_forward"] == 4 + 2 + 1 + 1  # of 12, 5, 3 and 2 nodes


@given(runs=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=6), cut=st.integers(0, 30))
def test_runs_of_a_part(runs: list[tuple[int, int]], cut: int) -> None:
    spread = [most for n, most in runs for _ in range(n)]
    parts = [part_of(runs, 0, cut), part_of(runs, cut, 99)]
    assert [most for part in parts for n, most in part for _ in range(n)] == spread
    assert sum(n for n, _ in parts[0]) == min(cut, len(spread))


@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=gpu)])
def test_bfloat16(where: str) -> None:
    """Joined in float32: no worse than one call, 2 rounded digits more at most. On a GPU with torch's own kernels."""
    bounds_q, bounds_k, visible, runs = lay_out([[(5, 4, 0)] * 20, [(30, 3, 0)]], 1)
    shapes = ((bounds_q, H), (bounds_k, HKV), (bounds_k, HKV))
    tensors = [normal(i, n.num_tokens, h, P).bfloat16() for i, (n, h) in enumerate(shapes)]
    there = [t.to(where) for t in tensors], (bounds_q.to(where), bounds_k.to(where)), visible.to(where)
    if why := dispatch.obstacle("attention", torch.device(where), torch.bfloat16) if where == "cuda" else "":
        pytest.skip(why)
    got = [t.cpu() for t in compute("vendor", *there, runs)]
    wanted = compute("reference", [t.double() for t in tensors], (bounds_q, bounds_k), visible, None)
    for a, b in zip(got, wanted):
        assert a.dtype == torch.bfloat16
        assert (a.double() - b).abs().max() <= 1e-2 * b.abs().max()


def test_decode_needs_no_runs() -> None:
    """One query a sequence, in a cache with unused room behind the keys."""
    bounds_q, bounds_k, visible = Bounds([1, 1, 1]), Bounds([7, 3, 9]), torch.tensor([4, 3, 1])
    tensors = [normal(i, n, h, P) for i, (n, h) in enumerate([(3, H), (19, HKV), (19, HKV)])]
    for a, b in zip(*(compute(f, tensors, (bounds_q, bounds_k), visible, None) for f in ("vendor", "reference"))):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_without_runs_the_torch_form_says_why(caplog: pytest.LogCaptureFixture) -> None:
    bounds, visible = Bounds([3]), torch.tensor([1, 2, 3])
    q, k = normal(0, 3, H, P), normal(1, 3, HKV, P)
    dispatch.reset_log()
    with caplog.at_level("INFO", "timeviper"), dispatch.stand_in(vendor_twins.twins()):
        attention(q, k, k, bounds, bounds, visible=visible)
    assert "needs to know beforehand which queries see equally many keys" in caplog.text
