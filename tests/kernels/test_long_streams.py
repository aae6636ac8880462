"""Streams as long as those of 10,000 frames in the shapes of nano9b: on a GPU (`-m gpu`) with the vendors' kernels and
30 GB of memory, on a CPU with twins and everything, the limit of offsets too, a thousandth as large."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
import vendor_twins
from torch import Tensor

from timeviper.kernels import dispatch
from timeviper.kernels.bounds import Bounds
from timeviper.kernels.conv1d import causal_conv1d
from timeviper.kernels.limits import extent
from timeviper.kernels.norm import gated_rms_norm
from timeviper.kernels.ssd import ssd


@dataclass(frozen=True)
class Scale:
    """A decoder's Mamba-2 block, and what its kernels can address."""

    device: str
    heads: int
    head_dim: int
    groups: int
    state: int
    chunk: int
    safe: int
    """Tokens of a call that fits for certain, a multiple of the chunk."""
    limit: int

    @property
    def widths(self) -> list[int]:
        inner = self.heads * self.head_dim
        return [inner, inner + 2 * self.groups * self.state, self.heads]


NANO = Scale("cuda", 128, 80, 8, 128, 128, 32_000, 1 << 31)
SMALL = Scale("cpu", 16, 10, 1, 16, 16, 32, 34_600)  # 94 rows of 368, as int32 ends at 94,786 of 22,656
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


class LongStream:
    """What the projection leaves for a long stream, and the operations on it as a whole and in parts."""

    def __init__(self, scale: Scale, tokens: int) -> None:
        self.scale = scale
        inner, channels, heads = widths = scale.widths
        dtype = torch.bfloat16 if scale.device == "cuda" else torch.float64
        options = {"device": scale.device, "dtype": dtype}
        torch.manual_seed(0)
        self.rows = torch.randn(tokens, sum(widths), **options)
        self.z, self.xBC, self.dt = self.rows.split(widths, -1)
        self.weight, self.shift = torch.randn(channels, 4, **options), torch.randn(channels, **options)
        self.gain = torch.rand(inner, **options)
        self.A, self.D, self.bias = torch.rand(3, heads, device=scale.device).to(
            torch.promote_types(dtype, torch.float32)
        )

    def normalise(self, y: Tensor, gate: Tensor, state: None) -> tuple[Tensor, None]:
        return gated_rms_norm(y, gate, self.gain, self.scale.groups, 1e-5), None

    def convolve(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        return causal_conv1d(x, self.weight, self.shift, Bounds([len(x)], x.device), state, carry=True)

    def scan(self, xBC: Tensor, dt: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        inner, BC, G = self.scale.widths[0], self.scale.groups * self.scale.state, self.scale.groups
        x, B, C = xBC.split([inner, BC, BC], -1)
        x, B, C = (t.unflatten(1, (n, -1)) for t, n in ((x, self.scale.heads), (B, G), (C, G)))
        bounds = Bounds([len(x)], x.device)
        return ssd(x, dt, -self.A, B, C, self.D, self.bias, bounds, state, self.scale.chunk, True, carry=True)

    def in_parts(self, run: Callable[..., tuple[Tensor, Tensor | None]], *streams: Tensor) -> Tensor:
        """Contiguous parts, with the state carried along."""
        outputs, state = [], None
        for part in zip(*(t.split(self.scale.safe) for t in streams)):
            y, state = run(*(t.contiguous() for t in part), state)
            outputs.append(y)
        return torch.cat(outputs)


def assert_near(a: Tensor, b: Tensor) -> None:
    """At both ends."""
    for x, y in ((a[:1000], b[:1000]), (a[-1000:], b[-1000:])):
        assert x.isfinite().all()
        tolerance = 1e-10 if x.dtype == torch.float64 else 2e-2
        assert (x.double() - y.double()).abs().max() <= tolerance * y.double().abs().max()


@pytest.mark.parametrize("tokens", [94_000, 95_000, 131_072, 182_000])
@pytest.mark.parametrize("scale", [SMALL, pytest.param(NANO, marks=needs_gpu)], ids=lambda scale: scale.device)
@pytest.mark.parametrize("op", ["ssd", "conv1d", "norm"])
def test_no_offset_overflows(op: str, scale: Scale, tokens: int) -> None:
    on_cpu = scale.device == "cpu"
    if not on_cpu and (why := dispatch.obstacle(op, torch.device(scale.device), torch.bfloat16)):
        pytest.skip(why)
    stream = LongStream(scale, tokens // 1000 if on_cpu else tokens)
    assert (extent(stream.dt) > scale.limit) == (tokens > 94_000)
    with dispatch.stand_in(vendor_twins.twins(scale.limit), scale.limit) if on_cpu else nullcontext():
        if op == "norm":
            streams = stream.xBC[:, : scale.widths[0]], stream.z
            assert_near(stream.normalise(*streams, None)[0], stream.in_parts(stream.normalise, *streams))
        elif op == "conv1d":
            assert_near(stream.convolve(stream.xBC, None)[0], stream.in_parts(stream.convolve, stream.xBC))
        else:
            # x, B and C as the convolution leaves them, dt as the projection does.
            leaves = stream.xBC.contiguous().requires_grad_(), stream.rows.requires_grad_()
            streams = leaves[0], leaves[1][:, -scale.heads :]
            results = stream.scan(*streams, None)[0], stream.in_parts(stream.scan, *streams)
            assert_near(*results)
            weight = torch.randn_like(results[0][-1000:])
            grads = [torch.autograd.grad((y[-1000:] * weight).sum(), leaves) for y in results]
            for whole, parts in zip(*grads):
                assert_near(whole, parts)
