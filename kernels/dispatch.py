"""Which implementation of an operation runs: the only place that decides.

Every operation has up to three forms with one signature: `reference` (the definition, step by step), `torch`
(fast, differentiable, any device) and `vendor` (somebody's GPU kernel, an optional package). `auto` takes the first
vendor's that runs on the tensors at hand and the torch form elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from timeviper.kernels.vendors import INT32, PARTS, VENDORS, Vendor, load

log = logging.getLogger("timeviper")

FORMS = ("reference", "torch", "vendor")

_chosen: dict[str, str] = dict.fromkeys(VENDORS, "auto")
_told: set[str] = set()  # fallbacks that have been logged
_stand_ins: dict[str, Kernel] = {}  # by the name of the vendor's function


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


@dataclass(frozen=True)
class Kernel:
    """A vendor's function that runs on the tensors at hand."""

    name: str
    """Of the function, which tells how it is called."""
    function: Callable[..., Any]
    index_limit: int
    """Elements that each of its tensors may span (see `kernels.limits`)."""


@contextmanager
def stand_in(functions: Mapping[str, Callable[..., Any]], index_limit: int = INT32) -> Iterator[None]:
    """For the time of a `with` block, let functions stand in for vendors', by the names of theirs, on any device and
    in float64 too: `stand_in({"causal_conv1d_fn": mine})`. index_limit: what 2^31 is to the real ones."""
    before = dict(_stand_ins)
    known = {v.function: v.index_limit // INT32 for vendors in VENDORS.values() for v in vendors}
    known |= dict.fromkeys(PARTS, 1 << 32)
    if unknown := functions.keys() - known:
        raise ValueError(f"no vendor has a function {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    _stand_ins.update({name: Kernel(name, f, index_limit * known[name]) for name, f in functions.items()})
    try:
        yield
    finally:
        _stand_ins.clear()
        _stand_ins.update(before)


def replaced(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of `vendors.PARTS`, or what stands in for it."""
    return _stand_ins[name].function if name in _stand_ins else function


def choose(op: str, tensor: Tensor, unsupported: str = "") -> str:
    """The form that computes `op` on `tensor`; `unsupported` tells what of this call the vendor lacks.

    Raises RuntimeError, with the reason and the install line, where the vendor's was asked for by name and
    cannot run.
    """
    form = _chosen[op]
    if form in ("reference", "torch"):
        return form
    reason = obstacle(op, tensor.device, tensor.dtype) or unsupported
    return decline(op, tensor, reason) if reason else "vendor"


def decline(op: str, tensor: Tensor, reason: str, about: str = "") -> str:
    """The torch form instead of the vendor's, told once for every operation and `about`.

    Raises RuntimeError as `choose` does.
    """
    if _chosen[op] == "vendor":
        installs = [v.install for v in VENDORS[op] if not load(v).function]
        install = f" Install it with: {installs[0]}" if installs else ""
        raise RuntimeError(f"kernel.{op}=vendor cannot run here: {reason}.{install} Or set kernel.{op}=auto.")
    if op + about not in _told:
        _told.add(op + about)
        level = logging.WARNING if tensor.device.type == "cuda" and VENDORS[op] else logging.INFO
        log.log(level, "kernel.%s: the torch form runs, because %s", op, reason)
    return "torch"


def obstacle(op: str, device: torch.device, dtype: torch.dtype) -> str:
    """Why no vendor's kernel can run there; empty where one can."""
    reasons: dict[str, str] = {}
    for vendor in VENDORS[op]:
        why = _obstacle(vendor, device, dtype)
        if not why:
            return ""
        reasons.setdefault(why, f"{vendor.name} {why}")  # what hinders all alike is said of the first
    return "; ".join(reasons.values()) or "no vendor kernel is known for it"


def _obstacle(vendor: Vendor, device: torch.device, dtype: torch.dtype) -> str:
    there = vendor.function in _stand_ins
    if device.type != "cuda" and not there:
        return f"needs a CUDA device, this is {device.type}"
    if dtype not in vendor.dtypes and not (there and dtype == torch.float64):
        names = ", ".join(str(d).removeprefix("torch.") for d in vendor.dtypes)
        return f"computes in {names}, not in {str(dtype).removeprefix('torch.')}"
    if there:
        return ""
    if not load(vendor).function:
        return f"is missing: {load(vendor).problem}"
    if not any(vendor.capability) or not torch.cuda.is_available():
        return ""
    if vendor.module.startswith("torch.") and not torch.backends.cuda.is_flash_attention_available():
        return "is built without flash attention"
    if (capability := torch.cuda.get_device_capability(device)) < vendor.capability:
        needed, has = (".".join(map(str, c)) for c in (vendor.capability, capability))
        return f"needs compute capability {needed}, this GPU has {has}"
    return ""


def kernel(op: str, tensor: Tensor) -> Kernel:
    """The vendor's own function; only called after `choose` has answered `vendor`."""
    vendor = _first(op, tensor.device, tensor.dtype)
    assert vendor is not None, op
    if vendor.function in _stand_ins:
        return _stand_ins[vendor.function]
    function = load(vendor).function
    assert function is not None, op
    return Kernel(vendor.function, function, vendor.index_limit)


def _first(op: str, device: torch.device, dtype: torch.dtype) -> Vendor | None:
    return next((v for v in VENDORS[op] if not _obstacle(v, device, dtype)), None)


@dataclass(frozen=True)
class OpReport:
    """What `timeviper doctor` prints of one operation."""

    op: str
    used: str
    """reference, torch or vendor, the vendor's with its name."""
    why: str
    """Why this form and not the vendor's."""
    vendors: tuple[tuple[Vendor, str], ...]
    """Every vendor in order of preference, and what is to be said of it here."""


def report(device: torch.device | str, dtype: torch.dtype = torch.bfloat16) -> list[OpReport]:
    """For every operation: which form would run on `device` in `dtype`, and why the others would not."""
    device = torch.device(device)
    rows = []
    for op, vendors in VENDORS.items():
        asked, reason, first = _chosen[op], obstacle(op, device, dtype), _first(op, device, dtype)
        states = tuple((v, _state(v, v is first, device, dtype)) for v in vendors)
        if asked in ("reference", "torch"):
            used, why = asked, f"set by kernel.{op}"
        elif first:
            used, why = f"vendor: {first.name}", "installed and able to run"
        elif asked == "vendor":
            used, why = "vendor", f"cannot run: {reason}"
        else:
            used, why = "torch", reason
        rows.append(OpReport(op, used, why, states))
    return rows


def _state(vendor: Vendor, first: bool, device: torch.device, dtype: torch.dtype) -> str:
    found = load(vendor)
    if not found.function:
        without = f" (without nvcc: {vendor.uncompiled})" if vendor.uncompiled else ""
        return f"missing: {found.problem}. Install it with: {vendor.install}{without}"
    why = _obstacle(vendor, device, dtype)
    note = f" {found.problem}" if found.problem else ""
    return f"{vendor.name} {why}{note}" if why else ("runs" if first else "able to run, not needed") + note
