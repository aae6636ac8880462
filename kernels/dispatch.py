"""Which implementation of an operation runs: the only place that decides.

Every operation has up to three forms with one signature: `reference` (the definition, step by step), `torch`
(fast, differentiable, any device) and `vendor` (somebody's GPU kernel, an optional package). `auto` takes the
vendor's where it runs on the tensors at hand and the torch form elsewhere.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger("timeviper")

FORMS = ("reference", "torch", "vendor")


@dataclass(frozen=True)
class Vendor:
    """Where a vendor kernel comes from and what it computes with (all of them need a CUDA device)."""

    module: str
    function: str
    install: str
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float16, torch.bfloat16)


_MAMBA = 'pip install --no-build-isolation "mamba-ssm>=2.3"'
_CONV = 'pip install --no-build-isolation "causal-conv1d>=1.6"'
_FLASH = 'pip install --no-build-isolation "flash-attn>=2.8"'

VENDORS: dict[str, Vendor | None] = {
    "ssd": Vendor("mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined", _MAMBA),
    "conv1d": Vendor("causal_conv1d", "causal_conv1d_fn", _CONV),
    "attention": Vendor("flash_attn", "flash_attn_varlen_func", _FLASH, dtypes=(torch.float16, torch.bfloat16)),
    "norm": Vendor("mamba_ssm.ops.triton.layernorm_gated", "rmsnorm_fn", _MAMBA),
    "cross_entropy": None,
}

_chosen: dict[str, str] = dict.fromkeys(VENDORS, "auto")
_told: set[str] = set()  # operations whose fallback has been logged


def configure(**forms: str) -> None:
    """Set the choice for operations of this process: `configure(ssd="torch")`. ValueError for what is none."""
    for op, form in forms.items():
        if op not in VENDORS:
            raise ValueError(f"kernel.{op}: no such operation; there are {', '.join(VENDORS)}")
        if form not in ("auto", *FORMS):
            raise ValueError(f"kernel.{op}: {form!r} is none of auto, {', '.join(FORMS)}")
    _chosen.update(forms)


@contextmanager
def use(**forms: str) -> Iterator[None]:
    """Choose forms for the time of a `with` block: `use(ssd="reference")`."""
    before = dict(_chosen)
    configure(**forms)
    try:
        yield
    finally:
        _chosen.update(before)


def reset_log() -> None:
    """Let every fallback be told once more."""
    _told.clear()


def choose(op: str, tensor: Tensor, unsupported: str = "") -> str:
    """The form that computes `op` on `tensor`; `unsupported` tells what of this call the vendor lacks.

    Raises RuntimeError, with the reason and the install line, where the vendor's was asked for by name and
    cannot run.
    """
    form = _chosen[op]
    if form in ("reference", "torch"):
        return form
    reason = obstacle(op, tensor.device, tensor.dtype) or unsupported
    if not reason:
        return "vendor"
    if form == "vendor":
        vendor = VENDORS[op]
        install = f" Install it with: {vendor.install}" if vendor else ""
        raise RuntimeError(f"kernel.{op}=vendor cannot run here: {reason}.{install} Or set kernel.{op}=auto.")
    if op not in _told:
        _told.add(op)
        level = logging.WARNING if tensor.device.type == "cuda" and VENDORS[op] else logging.INFO
        log.log(level, "kernel.%s: the torch form runs, because %s", op, reason)
    return "torch"


def obstacle(op: str, device: torch.device, dtype: torch.dtype) -> str:
    """Why the vendor's kernel cannot run there; empty where it can."""
    vendor = VENDORS[op]
    if vendor is None:
        return "no vendor kernel is known for it"
    if device.type != "cuda":
        return f"{vendor.module.split('.')[0]} needs a CUDA device, this is {device.type}"
    if dtype not in vendor.dtypes:
        names = ", ".join(str(d).removeprefix("torch.") for d in vendor.dtypes)
        return f"{vendor.function} computes in {names}, not in {str(dtype).removeprefix('torch.')}"
    return _load(vendor)[1]


def vendor_function(op: str) -> Callable[..., Any]:
    """The vendor's own function; only called after `choose` has answered `vendor`."""
    vendor = VENDORS[op]
    assert vendor is not None, op
    function, reason = _load(vendor)
    assert function is not None, reason
    return function


@cache
def _load(vendor: Vendor) -> tuple[Callable[..., Any] | None, str]:
    """The function, or why it cannot be imported: an extension built for another torch fails in many ways."""
    try:
        return getattr(importlib.import_module(vendor.module), vendor.function), ""
    except Exception as error:  # ImportError, OSError (missing symbols), RuntimeError (no driver) ...
        return None, f"import of {vendor.module} failed ({type(error).__name__}: {error})"


@dataclass(frozen=True)
class OpReport:
    """What `timeviper doctor` prints of one operation."""

    op: str
    used: str
    """reference, torch or vendor."""
    why: str
    """Why this form and not the vendor's."""
    candidates: tuple[str, ...]
    """Every form that exists, the vendor's with its function."""
    install: str = ""
    """The line that installs what is missing; empty where nothing is."""


def report(device: torch.device | str, dtype: torch.dtype = torch.bfloat16) -> list[OpReport]:
    """For every operation: which form would run on `device` in `dtype`, and why the others would not."""
    device = torch.device(device)
    rows = []
    for op, vendor in VENDORS.items():
        asked, reason = _chosen[op], obstacle(op, device, dtype)
        candidates = ["reference", "torch"]
        if vendor:
            candidates.append(f"vendor ({vendor.module}.{vendor.function})")
        missing = vendor is not None and _load(vendor)[0] is None
        if asked in ("reference", "torch"):
            used, why = asked, f"set by kernel.{op}"
        elif asked == "vendor" or not reason:
            used, why = "vendor", f"cannot run: {reason}" if reason else "installed and able to run"
        else:
            used, why = "torch", reason
        install = vendor.install if vendor and missing else ""
        rows.append(OpReport(op, used, why, tuple(candidates), install))
    return rows
