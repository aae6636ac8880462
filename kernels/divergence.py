"""How far a linear head's answers are from those of a teacher with the same head, without the logits of all tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from timeviper.kernels import dispatch
from timeviper.kernels.cross_entropy import scaled


def linear_divergence(hidden: Tensor, taught: Tensor, weight: Tensor, chunk: int = 1024) -> Tensor:
    """Sum over rows of KL(p || q) in nats, a float32 scalar (float64 for float64 inputs): q of `hidden [M, D]`, p of
    `taught [M, D]`, both under the head `weight [V, D]`.

    p is the teacher's and has no gradient, nor has the head through it. Memory: twice the logits of `chunk` rows.
    """
    assert hidden.shape == taught.shape, (hidden.shape, taught.shape)
    if dispatch.choose("cross_entropy", hidden) == "reference":
        return linear_divergence_reference(hidden, taught, weight)
    wanted = [torch.is_grad_enabled() and t.requires_grad for t in (hidden, weight)]  # inside, grad mode is off
    return _LinearDivergence.apply(hidden, taught.detach(), weight, chunk, *wanted)  # pyright: ignore[reportReturnType]


def linear_divergence_reference(hidden: Tensor, taught: Tensor, weight: Tensor) -> Tensor:
    wide = torch.promote_types(hidden.dtype, torch.float32)
    with torch.no_grad():
        p = (taught @ weight.T).to(wide).log_softmax(-1)
    q = (hidden @ weight.T).to(wide).log_softmax(-1)
    return (p.exp() * (p - q)).sum()


class _LinearDivergence(torch.autograd.Function):
    """Gradients are made in the forward pass, while a chunk's logits exist; the backward pass scales them."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        hidden, taught, weight, chunk, need_hidden, need_weight = inputs
        wide = torch.promote_types(hidden.dtype, torch.float32)
        d_hidden = torch.empty_like(hidden) if need_hidden else None
        d_weight = torch.zeros_like(weight, dtype=wide) if need_weight else None
        total = hidden.new_zeros((), dtype=wide)
        for rows in (slice(i, i + chunk) for i in range(0, hidden.shape[0], chunk)):
            h = hidden[rows]
            p, q = ((t @ weight.T).to(wide).log_softmax(-1) for t in (taught[rows], h))  # [chunk, V] each
            share = p.exp()
            total += torch.sum(p.sub_(q).mul_(share))
            if d_hidden is None and d_weight is None:
                continue
            d_logits = q.exp_().sub_(share).to(h.dtype)
            if d_hidden is not None:
                torch.mm(d_logits, weight, out=d_hidden[rows])
            if d_weight is not None:
                d_weight += d_logits.T @ h  # summed over chunks in float32
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.weight_dtype, ctx.chunk = weight.dtype, chunk
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        (scale,) = grads
        d_hidden = None if d_hidden is None else scaled(d_hidden, scale, ctx.chunk)
        d_weight = None if d_weight is None else (d_weight * scale).to(ctx.weight_dtype)
        return d_hidden, None, d_weight, None, None, None
