"""Ways to call the kernels on one wide tensor, as the blocks of a decoder do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from timeviper.kernels import dispatch
from timeviper.kernels.attention import attention
from timeviper.kernels.bounds import Bounds
from timeviper.kernels.conv1d import causal_conv1d
from timeviper.kernels.norm import gated_rms_norm, rms_norm
from timeviper.kernels.ssd import ssd

H, P, G, N, K, HKV = 4, 8, 2, 8, 4, 2
INNER, BC = H * P, G * N
CHANNELS = INNER + 2 * BC
WIDE = INNER + CHANNELS + H + 4  # a row as the projection leaves it: z, (x, B, C), dt; and 4 that make it even
LENGTHS = (19, 1, 0, 40, 23)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """One way to call an operation, as a function of wide rows, parameters and states of sequences."""

    name: str
    op: str
    call: Callable[[Tensor, list[Tensor], list[Tensor], Bounds], Sequence[Tensor]]
    states: tuple[tuple[int, ...], ...] = ()
    """Shapes of a sequence's; with `carry` those of one."""
    carry: bool = False


def split(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return rows[:, :-4].split([INNER, CHANNELS, H], -1)[0:3]  # pyright: ignore[reportReturnType]


def _ssd(need_state: bool, carry: bool = False) -> Callable:
    def call(rows: Tensor, shared: list[Tensor], states: list[Tensor], bounds: Bounds) -> Sequence[Tensor]:
        _, xBC, dt = split(rows)
        x, B, C = (xBC * 1).split([INNER, BC, BC], -1)
        A, D, bias = (t[:H] for t in shared[:3])
        parts = x.unflatten(1, (H, P)), dt, -A.exp(), B.unflatten(1, (G, N)), C.unflatten(1, (G, N)), D, bias
        y, final = ssd(*parts, bounds, states[0] if states else None, 16, need_state, carry)
        return (y, final) if need_state else (y,)

    return call


def _conv(carry: bool = False) -> Callable:
    def call(rows: Tensor, shared: list[Tensor], states: list[Tensor], bounds: Bounds) -> Sequence[Tensor]:
        weight, bias = shared[3].unflatten(0, (CHANNELS, K)), shared[4]
        return causal_conv1d(split(rows)[1], weight, bias, bounds, states[0] if states else None, carry=carry)

    return call


def _attention(rows: Tensor, shared: list[Tensor], states: list[Tensor], bounds: Bounds) -> Sequence[Tensor]:
    q, k, v = rows[:, : INNER + 2 * HKV * P].split([INNER, HKV * P, HKV * P], -1)
    q, k, v = (t.unflatten(1, (-1, P)) for t in (q, k, v))
    return (attention(q, k, v, bounds, bounds, causal=True),)


def _norms(rows: Tensor, shared: list[Tensor], states: list[Tensor], bounds: Bounds) -> Sequence[Tensor]:
    gate, xBC, _ = split(rows)
    weight = shared[5]
    return gated_rms_norm(xBC[:, :INNER], gate, weight, 2, 1e-5), rms_norm(xBC[:, :INNER], weight, 1e-5)


CASES = [
    Case("scan of training packs", "ssd", _ssd(False)),
    Case("scan from nothing", "ssd", _ssd(True)),
    Case("scan with states", "ssd", _ssd(True), ((H, P, N),)),
    Case("scan of a piece", "ssd", _ssd(True, True), ((H, P, N),), True),
    Case("convolution", "conv1d", _conv()),
    Case("convolution with states", "conv1d", _conv(), ((CHANNELS, K - 1),)),
    Case("convolution of a piece", "conv1d", _conv(True), ((CHANNELS, K - 1),), True),
    Case("attention", "attention", _attention),
    Case("norms", "norm", _norms),
]


def inputs(case: Case, lengths: Sequence[int]) -> list[Tensor]:
    """Wide rows, parameters, states, in float64."""
    shared = [normal(i, size) * 0.5 for i, size in enumerate([H, H, H, CHANNELS * K, CHANNELS, INNER])]
    count = 1 if case.carry else len(lengths)
    return [normal(9, sum(lengths), WIDE), *shared, *(normal(10, count, *shape) for shape in case.states)]


def compute(case: Case, leaves: list[Tensor], lengths: Sequence[int], form: str = "") -> list[Tensor]:
    """Outputs and gradients of everything under random weights of every output."""
    leaves = [t.detach().clone().requires_grad_() for t in leaves]
    with dispatch.use(**{case.op: form}) if form else nullcontext():
        outputs = case.call(leaves[0], leaves[1:7], leaves[7:], Bounds(lengths, leaves[0].device))
    weights = (normal(99, *o.shape).to(o) for o in outputs)
    total = torch.stack([(o * w).sum() for o, w in zip(outputs, weights)]).sum()
    grads = torch.autograd.grad(total, leaves, allow_unused=True)
    return [*(o.detach() for o in outputs), *(torch.zeros_like(t) if g is None else g for t, g in zip(leaves, grads))]


def assert_near(got: Sequence[Tensor], wanted: Sequence[Tensor], tolerance: float) -> None:
    assert [t.shape for t in got] == [t.shape for t in wanted]
    for i, (a, b) in enumerate(zip(got, wanted)):
        a, b = a.cpu().double(), b.cpu().double()
        assert a.isfinite().all()
        assert b.numel() == 0 or (a - b).abs().max() <= tolerance * b.abs().max(), (i, a.shape)
