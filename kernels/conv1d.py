"""Causal depthwise convolution over a packed stream, with state.

Only the first K-1 tokens of a sequence have a window that reaches out of it. So the stream is convolved as if it
were one sequence, and those few tokens are computed from their own windows: the initial state, or zeros, and
what the sequence has so far.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from timeviper.kernels import dispatch, limits
from timeviper.kernels.bounds import Bounds, of_first
from timeviper.kernels.host import on_device

TILE = 1 << 17  # elements that are convolved at a time on a CPU: 512 KiB of float32, to stay in the cache


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bounds: Bounds,
    initial_state: Tensor | None = None,
    silu: bool = True,
    carry: bool = False,
) -> tuple[Tensor, Tensor]:
    """`y[t] = act(bias + sum_k weight[:, k] * x[t - K + 1 + k])` within each sequence.

    Shapes: x `[L, C]`, weight `[C, K]`, bias `[C]`, initial_state `[S, C, K-1]` (the inputs before each
    sequence, oldest first; None: zeros). Returns y `[L, C]` and the final state `[S, C, K-1]`, both in x's dtype.
    carry=True: the stream is a piece of a longer one, and both states are `[1, C, K-1]`, as in `ssd`.
    """
    (L, C), K = x.shape, weight.shape[1]
    assert bounds.num_tokens == L, (bounds, x.shape)
    assert weight.shape[0] == C, (weight.shape, x.shape)
    if initial_state is None:
        initial_state = x.new_zeros(bounds.num_sequences, C, K - 1)
    elif carry:
        initial_state = of_first(initial_state, bounds)
    expected = (bounds.num_sequences, C, K - 1)
    assert initial_state.shape == expected, f"conv state {tuple(initial_state.shape)} is not {expected}"
    unsupported = ""
    if K not in (2, 3, 4) or C % 8:
        unsupported = f"causal_conv1d has no kernel for width {K} and {C} channels"
    form = {"reference": conv1d_reference, "torch": conv1d_torch, "vendor": conv1d_vendor}
    chosen = form[dispatch.choose("conv1d", x, unsupported)]
    y, final = chosen(x, weight, bias, bounds, initial_state.to(x.dtype), silu)
    return y, final[-1:] if carry else final


def conv1d_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, bounds: Bounds, state: Tensor, silu: bool
) -> tuple[Tensor, Tensor]:
    """The definition, token by token."""
    outputs, finals = [], []
    for window, tokens in zip(state, x.split(bounds.lengths)):
        for token in tokens:
            window = torch.cat([window, token[:, None]], dim=1)  # [C, K]
            y = (window * weight).sum(1) + (0 if bias is None else bias)
            outputs.append(F.silu(y) if silu else y)
            window = window[:, 1:]
        finals.append(window)
    return (torch.stack(outputs) if outputs else x * 1), torch.stack(finals)


def conv1d_torch(
    x: Tensor, weight: Tensor, bias: Tensor | None, bounds: Bounds, state: Tensor, silu: bool
) -> tuple[Tensor, Tensor]:
    """Shifted multiply-adds over the stream, block by block in the cache."""
    edges = _Edges.of(bounds, weight.shape[1])
    if edges.first.shape[0] == x.shape[0]:  # decode, and packs of very short sequences
        return edges.compute(x[edges.near], weight, bias, state, silu)
    return _Convolve.apply(x, weight, bias, state, edges, silu)  # pyright: ignore[reportReturnType]


def conv1d_vendor(
    x: Tensor, weight: Tensor, bias: Tensor | None, bounds: Bounds, state: Tensor, silu: bool
) -> tuple[Tensor, Tensor]:
    """causal_conv1d, in pieces where the stream is too long for its offsets."""
    kernel = dispatch.kernel("conv1d", x)
    rows = limits.slim(x, kernel.index_limit)
    if rows.stride(0) % 8 or rows.stride(1) != 1 or rows.data_ptr() % 16:
        rows = rows.contiguous()  # its kernels load 16 bytes of channels at a time
    most = min(limits.rows_within(kernel.index_limit, rows), kernel.index_limit // x.shape[1], 64 * limits.GRID)
    if not most:
        reason = f"one row spans more than the {kernel.index_limit:,} elements that {kernel.name} can address"
        dispatch.decline("conv1d", x, reason, "too long")
        return conv1d_torch(x, weight, bias, bounds, state, silu)

    def run(tensors: Sequence[Tensor], bounds: Bounds, state: Tensor) -> tuple[Tensor, Tensor]:
        return _vendor_call(kernel, tensors[0], weight, bias, bounds, state, silu)

    if x.shape[0] <= most:
        return run([rows], bounds, state)
    return limits.with_states(run, [rows], limits.cut(bounds, most), state)


def _vendor_call(
    kernel: dispatch.Kernel,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bounds: Bounds,
    state: Tensor,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """It keeps sequences apart, but not with initial states: edges as in the torch form."""
    edges = _Edges.of(bounds, weight.shape[1])
    first, final = edges.compute(x[edges.near], weight, bias, state, silu)
    if first.shape[0] == x.shape[0]:
        return first, final
    activation, seq_idx = "silu" if silu else None, bounds.seq_idx.int()[None]
    y = kernel.function(x.T[None], weight, bias, seq_idx=seq_idx, activation=activation)[0].T  # [1, C, L] -> [L, C]
    return y.index_copy(0, edges.first, first), final


@dataclass(frozen=True)
class _Edges:
    """Where sequences begin and end: E first tokens (at most K-1 of each sequence) and their K-1 last inputs."""

    first: Tensor  # [E] the first tokens, as rows of the stream
    inner: Tensor  # [L, 1] bool: not a first token
    near: Tensor  # [E + E] rows of the stream: the first tokens, and at most K-1 last tokens of each sequence
    windows: Tensor  # [E, K] inputs of the first tokens, as rows of the states (S * (K-1)) and then of `near`
    tails: Tensor  # [S, K-1] last inputs of the sequences, likewise

    @classmethod
    def of(cls, bounds: Bounds, K: int) -> _Edges:
        edges = bounds.cache.get(("conv1d", K))
        if edges is None:
            edges = bounds.cache["conv1d", K] = cls._build(bounds, K)
        return edges

    @classmethod
    def _build(cls, bounds: Bounds, K: int) -> _Edges:
        pre = K - 1
        few = [min(n, pre) for n in bounds.lengths]
        states, E = bounds.num_sequences * pre, sum(few)
        # Windows and tails count rows as `compute` has them: all states, all first tokens, all last tokens.
        first, last, windows, tails = ([] for _ in range(4))
        for s, count in enumerate(few):
            state = list(range(s * pre, (s + 1) * pre))
            known = state + list(range(states + len(first), states + len(first) + count))
            windows += [row for p in range(count) for row in known[p : p + K]]
            # A sequence shorter than K-1 leaves some of its initial state in the final one.
            tails += (state + list(range(states + E + len(last), states + E + len(last) + count)))[count:]
            first += range(bounds.offsets[s], bounds.offsets[s] + count)
            last += range(bounds.offsets[s + 1] - count, bounds.offsets[s + 1])

        rows = on_device([*first, *last, *windows, *tails], bounds.device)  # one copy for all
        near, inside, ends = rows.split([2 * E, E * K, states])
        inner = torch.ones(bounds.num_tokens, 1, dtype=torch.bool, device=bounds.device).index_fill_(0, near[:E], False)
        return cls(near[:E], inner, near, inside.view(E, K), ends.view(bounds.num_sequences, pre))

    def compute(
        self, near: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, silu: bool
    ) -> tuple[Tensor, Tensor]:
        """Outputs of the first tokens `[E, C]` and final states `[S, C, K-1]`, from the rows `near` of x."""
        known = torch.cat([state.transpose(1, 2).flatten(0, 1), near])  # [S * (K-1) + 2 E, C]
        taps, wide_bias = _taps(near, weight, bias)
        y = (known[self.windows] * taps).sum(1) + wide_bias  # [E, K, C] -> [E, C]
        return (F.silu(y) if silu else y).to(near.dtype), known[self.tails].transpose(1, 2)


class _Convolve(torch.autograd.Function):
    """The stream as one sequence that starts from nothing, then its edges put right.

    The backward pass computes the convolution again instead of keeping what SiLU was applied to.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        x, weight, bias, state, edges, silu = inputs
        taps, wide_bias = _taps(x, weight, bias)
        y = x.new_empty(x.shape)
        for rows, window in _blocks(x, taps):
            out = _convolve(window, taps, wide_bias)
            y[rows] = F.silu(out, inplace=True) if silu else out
        first, final = edges.compute(x[edges.near], weight, bias, state, silu)
        y.index_copy_(0, edges.first, first)
        ctx.edges, ctx.silu = edges, silu
        ctx.save_for_backward(x, weight, bias, state)
        return y, final

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        edges: _Edges = ctx.edges
        x, weight, bias, state = ctx.saved_tensors
        dy, d_final = grads
        dx, d_taps, d_bias = _convolve_backward(x, weight, bias, dy, edges.inner, ctx.silu)
        with torch.enable_grad():  # the edges are few: autograd does them
            leaves = [t.detach().requires_grad_() for t in (x[edges.near], weight, state)]
            offset = None if bias is None else bias.detach().requires_grad_()
            outputs = edges.compute(leaves[0], leaves[1], offset, leaves[2], ctx.silu)
            leaves += [] if offset is None else [offset]
            few = torch.autograd.grad(outputs, leaves, (dy[edges.first], d_final))
        dx.index_add_(0, edges.near, few[0])  # a row may be among the first tokens and among the last
        d_weight = (d_taps.T + few[1]).to(weight.dtype)
        return dx, d_weight, None if bias is None else (d_bias + few[3]).to(bias.dtype), few[2], None, None


def _convolve_backward(
    x: Tensor, weight: Tensor, bias: Tensor | None, dy: Tensor, inner: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, taps and bias through the rows `inner`."""
    taps, wide_bias = _taps(x, weight, bias)
    K = taps.shape[0]
    dx, d_taps, d_bias = x.new_empty(x.shape), torch.zeros_like(taps), torch.zeros_like(wide_bias)
    carry = taps.new_zeros(K - 1, x.shape[1])  # of inputs that windows of the next block reach back to
    for rows, window in _blocks(x, taps):
        g = dy[rows] * inner[rows].to(taps.dtype)  # [rows, C]; first tokens have their gradient from the edges
        if silu:
            g = torch.ops.aten.silu_backward(g, _convolve(window, taps, wide_bias))
        d_bias += g.sum(0)
        n = g.shape[0]
        d_window = torch.zeros_like(window)
        d_window[: K - 1] = carry
        for k in range(K):
            d_window[k : k + n].addcmul_(g, taps[k])
            d_taps[k] += (g * window[k : k + n]).sum(0)
        before = rows.start - (K - 1)  # the input that d_window starts with
        dx[max(before, 0) : before + n] = d_window[max(-before, 0) : n]
        carry = d_window[n:]
    dx[x.shape[0] - (K - 1) :] = carry
    return dx, d_taps, d_bias


def _taps(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weight as `[K, C]` and bias `[C]` in the dtype of accumulation."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    taps = weight.T.to(wide).contiguous()  # a tap's channels side by side: rows are multiplied by it
    return taps, torch.zeros_like(taps[0]) if bias is None else bias.to(wide)


def _blocks(x: Tensor, taps: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the output and the `[rows + K - 1, C]` inputs that they see, zeros before the first."""
    (L, C), pre = x.shape, taps.shape[0] - 1
    step = max(pre + 1, TILE // C) if x.device.type == "cpu" else L
    for start in range(0, L, step):
        rows = slice(start, min(start + step, L))
        window = x[max(start - pre, 0) : rows.stop].to(taps.dtype)
        yield rows, window if start else F.pad(window, (0, 0, pre, 0))


def _convolve(window: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
    """`[rows + K - 1, C]` to `[rows, C]`, before the activation."""
    n = window.shape[0] - taps.shape[0] + 1
    y = torch.addcmul(bias, window[:n], taps[0])
    for k in range(1, taps.shape[0]):
        y.addcmul_(window[k : k + n], taps[k])
    return y
