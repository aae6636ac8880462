"""What of a mixer's output came from which token, exactly: it is linear in its values once the rest is frozen.

Of Mamba-2, B, C, dt, the gate silu(z), the root mean square of the norm and sigmoid(v), v what leaves the convolution
before its SiLU (silu(v) = v sigmoid(v)), are frozen; of attention, the softmax. The output is then linear in the inputs
of the convolution, or in the values, and what a target `sum_k <out_k, c_k>` owes to a token is input_t . d target /
d input_t. These parts add up to the target, with one more: what the convolution's bias brought (after unified implicit
attention, arXiv 2405.16504, and MambaLRP, arXiv 2406.07592). No backward pass: the rows of M (`hidden.py`) carry the
target to the convolution's outputs, its taps to the tokens.

Letters: L tokens, n of a piece, K queries, F buckets, H heads, P head size, W taps of the convolution, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timeviper.analysis.hidden import BLOCK, Asked, Queries, Scanned, attention_blocks, rows
from timeviper.kernels.bounds import Bounds
from timeviper.model.attention import Attention
from timeviper.model.mamba2 import Mamba2
from timeviper.model.state import Span


@dataclass
class Relevance:
    """Parts of a target, which add up to it."""

    parts: Tensor
    """`[F]`, of buckets; of tokens where each is a bucket of its own."""
    target: float
    bias: float = 0.0
    """The part of the convolution's bias."""

    @property
    def missing(self) -> float:
        """What the parts leave unexplained, as a share of the target: rounding alone."""
        return abs(float(self.parts.sum()) + self.bias - self.target) / max(abs(self.target), 1e-300)


def along_itself(out: Tensor) -> Tensor:
    """Directions `[K, D]` that make the target the length of what the mixer writes into the rows, `[K, D]`."""
    return out / out.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(out.dtype).tiny)


class MambaRelevance:
    """Of the rows of K queries of one sequence, gathered over its pieces."""

    def __init__(
        self, mixer: Mamba2, queries: Queries, y: Tensor, z: Tensor, buckets: int, cotangent: Tensor | None = None
    ) -> None:
        """y, z: `[K, H P]` of the queries, what the gated norm takes. cotangent: `[K, D]`; None: `along_itself`."""
        self.mixer, self.queries = mixer, queries
        wide = torch.promote_types(y.dtype, torch.float32)
        y, gate = y.to(wide), F.silu(z.to(wide))
        by_group = (y * gate).unflatten(-1, (mixer.norm.groups, -1))
        rms = (by_group.square().mean(-1, keepdim=True) + mixer.norm.eps).sqrt().expand_as(by_group).flatten(-2)
        scale = gate * mixer.norm.weight.to(wide) / rms
        self.back, target = linear_back(mixer.out_proj, y, scale, cotangent)
        self.back = self.back.unflatten(-1, (mixer.heads, mixer.head_dim))  # [K, H, P]
        self.found = Relevance(torch.zeros(buckets, dtype=torch.float64, device=y.device), target)

    def add(self, tokens: Scanned, inputs: Tensor, bucket: Tensor, first: int = 0) -> None:
        """A piece of the sequence, whose first token is number `first`.

        inputs: `[W - 1 + n, C]`, of the convolution, those of the tokens before the piece at the front (zeros before
        the first); of its channels the first H P are taken. bucket: `[W - 1 + n]`, of the same tokens.
        """
        before, K, H = self.mixer.conv_kernel - 1, *self.back.shape[:2]
        size = max(BLOCK // max(K * H, self.mixer.inner), 1)
        for start in range(0, len(tokens.x), size):
            part = tokens.part(slice(start, start + size))
            window = slice(start, start + len(part.x) + before)
            self._add(part, inputs[window, : self.mixer.inner], bucket[window], first + start)

    def _add(self, tokens: Scanned, inputs: Tensor, bucket: Tensor, first: int) -> None:
        mixer, n, wide = self.mixer, len(tokens.x), self.back.dtype
        weight, bias = (t.detach()[: mixer.inner].to(wide) for t in (mixer.conv.weight, mixer.conv.bias))
        inputs = inputs.to(wide)
        found = rows(self.queries, tokens, first).to(wide)  # [K, H, n]
        at = (torch.arange(first, first + n, device=found.device) == self.queries.place[:, None]).to(wide)  # [K, n]
        found = found + at[:, None] * mixer.ssm.D.detach().to(wide)[:, None]
        d_x = torch.einsum("khn,khp->nhp", found, self.back).flatten(1)  # of the target by what leaves the convolution
        taps = [inputs[k : k + n] * weight[:, k] for k in range(weight.shape[1])]
        frozen = torch.sigmoid(sum(taps, bias)) * d_x  # [n, H P]
        for k, tap in enumerate(taps):
            self.found.parts.index_add_(0, bucket[k : k + n], (tap * frozen).sum(1).double())
        self.found.bias += float((frozen * bias).sum())


def mamba_relevance(
    mixer: Mamba2, x: Tensor, bounds: Bounds, places: Tensor, cotangent: Tensor | None = None
) -> Relevance:
    """Parts of each token of a pack in what a Mamba-2 mixer makes of `x [L, D]` (behind the block's norm) at
    `places [K]`; cotangent `[K, D]`."""
    caught: dict[str, tuple[Tensor, ...]] = {}
    hooks = [
        getattr(mixer, name).register_forward_pre_hook(lambda _, args, name=name: caught.update({name: args}))
        for name in ("conv", "ssm", "norm")
    ]
    try:
        with torch.no_grad():
            mixer.forward(x, Span.fresh(bounds))
    finally:
        for hook in hooks:
            hook.remove()
    total = Relevance(torch.zeros(len(x), dtype=torch.float64, device=x.device), 0.0)
    inputs, scanned, (y, z) = caught["conv"][0], scanned_of(mixer, caught["ssm"]), caught["norm"]
    for start, stop in zip(bounds.offsets, bounds.offsets[1:]):
        mine = (places >= start) & (places < stop)
        if not bool(mine.any()):
            continue
        here, tokens = places[mine], scanned.part(slice(start, stop))
        about = MambaRelevance(
            mixer, tokens.queries(here - start), y[here], z[here], stop - start, _some(cotangent, mine)
        )
        before = mixer.conv_kernel - 1
        bucket = torch.arange(-before, stop - start, device=x.device).clamp(min=0)  # zeros stand before the first
        about.add(tokens, F.pad(inputs[start:stop], (0, 0, before, 0)), bucket)
        total.parts[start:stop] += about.found.parts
        total.target, total.bias = total.target + about.found.target, total.bias + about.found.bias
    return total


def attention_relevance(
    mixer: Attention, asked: Asked, out: Tensor, k: Tensor, v: Tensor, bucket: Tensor, buckets: int
) -> Relevance:
    """Parts of what attention writes into K rows, `out [K, D]`, along itself, by `bucket [L]` of the keys and values
    `[L, Hkv, P]`."""
    wide = torch.promote_types(out.dtype, torch.float32)
    ones = torch.ones_like(asked.q, dtype=wide).flatten(1)
    back, _ = linear_back(mixer.o_proj, ones, ones, along_itself(out.to(wide)))
    back = back.view(asked.q.shape)  # [K, H, P]
    found = Relevance(
        torch.zeros(buckets, dtype=torch.float64, device=out.device), float(out.to(wide).norm(dim=-1).sum())
    )
    repeat = asked.q.shape[1] // k.shape[1]
    for part, shares in attention_blocks(asked, k):
        values = v[part].to(wide).repeat_interleave(repeat, 1)  # [n, H, P]
        d_v = torch.einsum("khn,khp->nhp", shares.to(wide), back)
        found.parts.index_add_(0, bucket[part], (values * d_v).flatten(1).sum(1).double())
    return found


def linear_back(last: nn.Module, y: Tensor, scale: Tensor, cotangent: Tensor | None) -> tuple[Tensor, float]:
    """The gradient `[K, m]` by `y [K, m]` of `<last(y * scale), cotangent>`, and its value; scale is frozen."""
    dtype = next(last.parameters()).dtype
    with torch.inference_mode(False), torch.enable_grad():
        y, scale = y.detach().clone().requires_grad_(), scale.detach().clone()
        out = last((y * scale).to(dtype)).to(y.dtype)
        cotangent = along_itself(out.detach()) if cotangent is None else cotangent.detach().clone().to(y.dtype)
        target = (out * cotangent).sum()
        (back,) = torch.autograd.grad(target, y)
    return back, float(target.detach())


def scanned_of(mixer: Mamba2, args: tuple, before: Tensor | None = None) -> Scanned:
    """From what `mixer.ssm` is called with."""
    x, dt, B, C, span = args[:5]
    ssm = mixer.ssm
    A = -ssm.A_log.detach().to(torch.promote_types(ssm.A_log.dtype, torch.float32)).exp()
    return Scanned.of(x, dt, A, B, C, ssm.dt_bias.detach(), span.bounds, before)


def _some(cotangent: Tensor | None, which: Tensor) -> Tensor | None:
    return None if cotangent is None else cotangent[which]
