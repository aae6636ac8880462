"""Cross-entropy of a linear head, without ever holding the logits of all tokens."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from timeviper.kernels import dispatch

IGNORE = -100  # what torch ignores by default, and `pack.IGNORE`


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Summed loss of `hidden [M, D]` under the head `weight [V, D]` and `labels [M]` (-100: ignored).

    Returns the loss sum (a float32 scalar; float64 for float64 inputs) and `correct [M]` bool (argmax equals
    label). Products are in the dtype of the inputs, softmax and sums in float32. Memory: the logits of `chunk`
    tokens.
    """
    assert hidden.shape[0] == labels.shape[0], (hidden.shape, labels.shape)
    if dispatch.choose("cross_entropy", hidden) == "reference":
        return linear_cross_entropy_reference(hidden, weight, labels, chunk)
    return linear_cross_entropy_torch(hidden, weight, labels, chunk)


def linear_cross_entropy_reference(
    hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int = 0
) -> tuple[Tensor, Tensor]:
    logits = hidden @ weight.T
    logits = logits if logits.dtype == torch.float64 else logits.float()
    loss = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    return loss, logits.argmax(-1) == labels


def linear_cross_entropy_torch(
    hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int = 1024
) -> tuple[Tensor, Tensor]:
    wanted = [torch.is_grad_enabled() and t.requires_grad for t in (hidden, weight)]  # inside, grad mode is off
    loss, correct = _LinearCrossEntropy.apply(hidden, weight, labels, chunk, *wanted)  # pyright: ignore[reportGeneralTypeIssues]
    return loss, correct


def scaled(t: Tensor, scale: Tensor, rows: int) -> Tensor:
    """`t * scale` in t's dtype, multiplied in the scale's: rounded to bfloat16 it would be up to 0.4 % off, everywhere
    alike. A scale with a dimension is not rounded; rows by rows, because a CPU makes a wide copy of what it takes."""
    out = torch.empty_like(t)
    for whole, part in zip(t.split(rows), out.split(rows)):
        torch.mul(whole, scale.view(1), out=part)
    return out


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients are made in the forward pass, while a chunk's logits exist; the backward pass scales them."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        hidden, weight, labels, chunk, need_hidden, need_weight = inputs
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        d_hidden = torch.empty_like(hidden) if need_hidden else None
        d_weight = torch.zeros_like(weight, dtype=wide) if need_weight else None
        loss = hidden.new_zeros((), dtype=wide)
        correct = torch.empty_like(labels, dtype=torch.bool)
        for rows in (slice(i, i + chunk) for i in range(0, hidden.shape[0], chunk)):
            h, label = hidden[rows], labels[rows]
            logits = (h @ weight.T).to(wide)  # [chunk, V], the only ones at a time
            correct[rows] = logits.argmax(-1) == label
            counted = (label != IGNORE)[:, None]  # [chunk, 1]
            at = label.clamp_min(0)[:, None]  # any word where there is none to count: masked below
            lse = logits.logsumexp(-1, keepdim=True)
            loss += (lse - logits.gather(1, at)).masked_fill(~counted, 0).sum()
            if d_hidden is None and d_weight is None:
                continue
            p = logits.sub_(lse).exp_().scatter_add_(1, at, -torch.ones_like(lse))  # softmax - onehot
            d_logits = p.masked_fill_(~counted, 0).to(h.dtype)
            if d_hidden is not None:
                torch.mm(d_logits, weight, out=d_hidden[rows])
            if d_weight is not None:
                d_weight += d_logits.T @ h  # summed over chunks in float32
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.mark_non_differentiable(correct)
        ctx.weight_dtype, ctx.chunk = weight.dtype, chunk
        return loss, correct

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        scale = grads[0]
        if d_hidden is not None:
            d_hidden = scaled(d_hidden, scale, ctx.chunk)
        if d_weight is not None:
            d_weight = (d_weight * scale).to(ctx.weight_dtype)
        return d_hidden, d_weight, None, None, None, None
