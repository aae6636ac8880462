"""RMS normalisation, plain and gated by groups (Mamba-2's output norm)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from timeviper.kernels import dispatch, limits


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype that statistics are taken in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` for x `[..., D]`, weight `[D]`; in float32, cast back to x's dtype."""
    form = {"reference": rms_norm_reference, "torch": rms_norm_torch, "vendor": rms_norm_vendor}
    return form[dispatch.choose("norm", x)](x, weight, eps)


def gated_rms_norm(y: Tensor, gate: Tensor, weight: Tensor, groups: int, eps: float) -> Tensor:
    """Normalise `y * silu(gate)` over each of `groups` equal slices of the width: `[L, D]`, weight `[D]`.

    The gate comes BEFORE the norm; all in float32, cast back to y's dtype.
    """
    if y.shape[-1] % groups:
        raise ValueError(f"gated_rms_norm: a width of {y.shape[-1]} cannot be cut into {groups} equal groups")
    form = {"reference": gated_reference, "torch": gated_torch, "vendor": gated_vendor}
    return form[dispatch.choose("norm", y)](y, gate, weight, groups, eps)


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.to(_wide(x.dtype))
    rms = torch.sqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (wide / rms * weight.to(wide.dtype)).to(x.dtype)


def rms_norm_torch(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = _wide(x.dtype)
    return F.rms_norm(x.to(wide), weight.shape, weight.to(wide), eps).to(x.dtype)


def rms_norm_vendor(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _by_rows(x, None, weight, 1, eps)


def _by_rows(x: Tensor, gate: Tensor | None, weight: Tensor, groups: int, eps: float) -> Tensor:
    """mamba_ssm's rmsnorm_fn of `[..., D]`, as many rows at a time as its offsets reach."""
    kernel, D = dispatch.kernel("norm", x), x.shape[-1]
    limit = kernel.index_limit
    rows = [limits.slim(t.reshape(-1, D), limit) for t in (x, gate) if t is not None]
    most = min(limits.rows_within(limit, *rows), limit // D)
    if not x.numel() or not most:
        if not most:
            reason = f"one row spans more than the {limit:,} elements that {kernel.name} can address"
            dispatch.decline("norm", x, reason, "too long")
        return rms_norm_torch(x, weight, eps) if gate is None else gated_torch(x, gate, weight, groups, eps)
    options: dict[str, Any] = {"eps": eps, "group_size": D // groups, "norm_before_gate": False}

    def run(x: Tensor, z: Tensor | None = None) -> Tensor:
        return kernel.function(x, weight, None, z=z, **options)

    pieces = zip(*(t.split(most) for t in rows)) if len(rows[0]) > most else [rows]
    parts = [run(*piece) for piece in pieces]
    y = parts[0] if len(parts) == 1 else torch.cat(parts)
    return limits.check_gradient(y.view(x.shape), limit)


def gated_reference(y: Tensor, gate: Tensor, weight: Tensor, groups: int, eps: float) -> Tensor:
    wide = _wide(y.dtype)
    h = y.to(wide) * gate.to(wide) * torch.sigmoid(gate.to(wide))
    slices = [s / torch.sqrt(s.pow(2).mean(-1, keepdim=True) + eps) for s in h.split(y.shape[-1] // groups, -1)]
    return (torch.cat(slices, -1) * weight.to(wide)).to(y.dtype)


def gated_torch(y: Tensor, gate: Tensor, weight: Tensor, groups: int, eps: float) -> Tensor:
    wide = _wide(y.dtype)
    h = y.to(wide) * F.silu(gate.to(wide))
    size = y.shape[-1] // groups
    normed = F.rms_norm(h.view(*y.shape[:-1], groups, size), (size,), None, eps)  # [..., G, D / G]
    return (normed.flatten(-2) * weight.to(wide)).to(y.dtype)  # [..., D]


def gated_vendor(y: Tensor, gate: Tensor, weight: Tensor, groups: int, eps: float) -> Tensor:
    return _by_rows(y, gate, weight, groups, eps)
