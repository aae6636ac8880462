"""Somebody else's GPU kernels: where each comes from, what it computes with, and how it is imported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec, module_from_spec
from typing import Any

import torch

INT32 = 1 << 31
"""Offsets below this: what is computed in int32 (Triton does, as long as strides themselves fit)."""


@dataclass(frozen=True)
class Vendor:
    """A function of an optional package (all of them need a CUDA device)."""

    module: str
    function: str
    install: str
    brings: str
    """What one gains by it, for `timeviper doctor`."""
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float16, torch.bfloat16)
    index_limit: int = INT32
    """Elements that a tensor may span, from the first to the last one addressed (see `kernels.limits`)."""
    capability: tuple[int, int] = (0, 0)
    """The least compute capability that its kernels are built for."""
    uncompiled: str = ""
    """How to install it without nvcc: its module works without the package's `__init__`, which wants an extension."""

    @property
    def name(self) -> str:
        """Of the package, or of the part of torch."""
        return self.module.rpartition(".")[0] if self.module.startswith("torch.") else self.module.partition(".")[0]


_MAMBA = 'pip install --no-build-isolation "mamba-ssm>=2.3"'
_TRITON = (
    "MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE pip install --no-build-isolation --no-deps mamba-ssm einops"
)
_CONV = 'pip install --no-build-isolation "causal-conv1d>=1.6"'
_FLASH = 'pip install --no-build-isolation "flash-attn>=2.8"'
_HALF = (torch.float16, torch.bfloat16)

# Triton kernels multiply rows by strides in int32. causal_conv1d's `index_t` is uint32. flash attention's is int64
# (both in flash-attn and in torch, whose kernels are the same): no tensor in memory reaches its limit.
VENDORS: dict[str, tuple[Vendor, ...]] = {
    "ssd": (
        Vendor(
            "mamba_ssm.ops.triton.ssd_combined",
            "mamba_chunk_scan_combined",
            _MAMBA,
            "the fused scan: chunk by chunk in the cache of the GPU instead of through its memory",
            uncompiled=_TRITON,
        ),
    ),
    "conv1d": (
        Vendor(
            "causal_conv1d",
            "causal_conv1d_fn",
            _CONV,
            "the convolution and SiLU in one pass over the tokens instead of several",
            index_limit=2 * INT32,
        ),
    ),
    "attention": (
        Vendor(
            "flash_attn",
            "flash_attn_varlen_func",
            _FLASH,
            "flash attention as its authors release it; where it is missing, torch's own serves",
            _HALF,
            1 << 63,
            (8, 0),
        ),
        Vendor(
            "torch.nn.attention.varlen",
            "varlen_attn",
            'pip install "torch>=2.11"',
            "flash attention over a pack in one call, without padding",
            _HALF,
            1 << 63,
            (8, 0),
        ),
    ),
    "norm": (
        Vendor(
            "mamba_ssm.ops.triton.layernorm_gated",
            "rmsnorm_fn",
            _MAMBA,
            "gate and norm in one pass, without a float32 copy",
            uncompiled=_TRITON,
        ),
    ),
    "cross_entropy": (),
}


PARTS = ("_flash_attention_forward", "_flash_attention_backward")
"""Functions of torch that every build with flash attention has, and for which a stand-in may be given, too."""


@dataclass(frozen=True)
class Loaded:
    """What an import gave."""

    function: Callable[..., Any] | None
    problem: str = ""
    """Why there is no function; beside a function: what of its package does not work."""


@cache
def load(vendor: Vendor) -> Loaded:
    """The function, or why it cannot be imported: an extension built for another torch fails in many ways."""
    package, _, inside = vendor.module.partition(".")
    before = set(sys.modules)
    try:
        return Loaded(_import(vendor))
    except Exception as error:  # ImportError, OSError (missing symbols), RuntimeError (no driver) ...
        problem = f"import of {vendor.module} failed ({type(error).__name__}: {error})"
    _forget(package, before)
    spec = find_spec(package) if vendor.uncompiled and inside else None
    if spec is None or not spec.submodule_search_locations:
        return Loaded(None, problem)
    sys.modules[package] = module_from_spec(spec)  # never executed: its submodules only look for their path here
    try:
        return Loaded(_import(vendor), f"without the compiled extension of {package}: {problem}")
    except Exception:
        _forget(package, before)
        return Loaded(None, problem)


def _import(vendor: Vendor) -> Callable[..., Any]:
    return getattr(importlib.import_module(vendor.module), vendor.function)


def _forget(package: str, before: set[str]) -> None:
    """Remove what a failed import has left of the package."""
    for name in set(sys.modules) - before:
        if name == package or name.startswith(f"{package}."):
            del sys.modules[name]
