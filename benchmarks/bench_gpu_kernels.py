"""Parts a and b of `bench_gpu.py`: forms of an operation against each other at lengths beyond 32-bit offsets, and
against float64."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from bench_gpu_measure import DTYPE, Peak, Timing, largest_error, mean_error, preset, timed, tokens
from bench_gpu_ops import OPS, ROWS, Inputs, Op
from bench_gpu_page import Case, Part, Row, Setting
from torch import Tensor

from timeviper.kernels import dispatch

LONG = (94_000, 95_000, 131_072, 182_000)  # tokens of part a
MODERATE, SHORT = 4096, 256  # tokens of part b, and there of the definition, which goes token by token
LAST = 512  # tokens at the end whose outputs are computed once more in float64
WITH_VENDOR = ("ssd", "conv1d", "gated norm", "attention")


def leaves(inputs: Mapping[str, Tensor]) -> Inputs:
    """The same memory and strides, each tensor with a gradient of its own."""
    return {name: t.detach().requires_grad_() for name, t in inputs.items()}


def gradients(op: Op, inputs: Inputs, lengths: list[int], weight: Tensor | None) -> tuple[Tensor, Inputs]:
    """Outputs and the gradients of all inputs, for a random gradient of the outputs."""
    y = op.call(inputs, lengths)
    found = torch.autograd.grad(y, list(inputs.values()), None if weight is None else weight.to(y.dtype))
    return y.detach(), dict(zip(inputs, found))


def worst(errors: Mapping[str, float]) -> tuple[str, float]:
    """The largest, or one that is no number, with its name."""
    return max(errors.items(), key=lambda e: float("inf") if e[1] != e[1] else e[1])


# ---- a: vendor against torch, beyond 32 bits ------------------------------------------------------------


def long_cases(setting: Setting) -> list[Case]:
    lengths = [tokens(setting, n) for n in LONG]
    return [Case(f"{name}, {L:,} tokens", partial(_long, setting, name, L)) for L in lengths for name in WITH_VENDOR]


@dataclass(frozen=True)
class Side:
    """One form at one length."""

    y: Tensor
    grads: Inputs
    forward: Timing
    both: Timing
    forward_gb: float
    both_gb: float


def _long(setting: Setting, name: str, L: int) -> Iterator[Row]:
    torch.manual_seed(0)
    op, device = OPS[name], setting.device
    inputs = leaves(op.make(preset("nano9b", setting).decoder, L, device))
    true = last_rows(op, inputs, L)
    with torch.no_grad(), dispatch.use(**{op.kernel: "torch"}):
        weight = torch.randn(op.call(inputs, [L]).shape, device=device, dtype=DTYPE)
    ours = None
    for form in ("torch", "vendor"):
        row: Row = {"operation": name, "tokens": L, "form": form}
        try:
            with dispatch.use(**{op.kernel: form}):
                side = measure(op, inputs, L, weight, device)
        except torch.OutOfMemoryError as error:  # the other form may need less
            yield row | {"note": f"out of memory: {str(error).splitlines()[0]}"}
            continue
        except RuntimeError as error:
            yield row | {"note": f"vendor does not run: {absent(form, error)}"}
            continue
        row |= {"forward ms": side.forward.ms, "both ms": side.both.ms, "runs": side.both.runs}
        row |= {"forward GB": side.forward_gb, "both GB": side.both_gb}
        row["last rows off float64"] = largest_error(side.y[-len(true) :], true)
        if form == "torch":
            ours = side
        elif ours is not None:
            row["outputs off"] = largest_error(side.y, ours.y)
            errors = {n: largest_error(g, ours.grads[n]) for n, g in side.grads.items()}
            row["worst"], row["gradients off"] = worst(errors)
        yield row


def absent(form: str, error: RuntimeError) -> str:
    """Why the vendor's form is refused here. Raises what is any other error."""
    if form != "vendor" or "cannot run here" not in str(error):
        raise error
    return str(error).partition("cannot run here: ")[2].partition(" Install it with")[0].partition(" Or set")[0]


def last_rows(op: Op, inputs: Inputs, L: int) -> Tensor:
    """Outputs of the last tokens in float64, from as many tokens before them as matter."""
    last = min(LAST, L) if op.kernel != "attention" else min(LAST // 8, L)
    back = {n: t[-(last + op.back) :] if n in ROWS else t for n, t in inputs.items()}
    wide = {n: t.detach().double() for n, t in back.items()}
    rows = len(wide["k"]) if "k" in wide else len(next(t for n, t in wide.items() if n in ROWS))
    with torch.no_grad(), dispatch.use(**{op.kernel: "torch"}):
        return op.call(wide, [rows])[-last:]


def measure(op: Op, inputs: Inputs, L: int, weight: Tensor, device: str) -> Side:
    with torch.no_grad(), Peak(device) as forward:
        fast = timed(lambda: op.call(inputs, [L]), device)
    with Peak(device) as both:
        slow = timed(lambda: gradients(op, inputs, [L], weight), device)
    return Side(*gradients(op, inputs, [L], weight), fast, slow, forward.extra_gb, both.extra_gb)


# ---- b: bfloat16 against float64 ------------------------------------------------------------------------


def error_cases(setting: Setting) -> list[Case]:
    return [Case(f"{name}, {form}", partial(_errors, setting, name, form)) for name in OPS for form in dispatch.FORMS]


def _errors(setting: Setting, name: str, form: str) -> Iterator[Row]:
    torch.manual_seed(0)
    op, L = OPS[name], tokens(setting, SHORT if form == "reference" else MODERATE)
    cuts = [0, L // 2, L // 2 + L // 16, L]
    lengths = [b - a for a, b in pairwise(cuts)]
    inputs = leaves(op.make(preset("nano9b", setting).decoder, L, setting.device))
    if name.startswith("attention to"):
        lengths = [L]
    with dispatch.use(**{op.kernel: "torch"}):
        with torch.no_grad():
            shape = op.call(inputs, lengths).shape
        weight = torch.randn(shape, device=setting.device).to(DTYPE) if shape else None
        y, grads = gradients(op, {n: t.detach().double().requires_grad_() for n, t in inputs.items()}, lengths, weight)
    row: Row = {"operation": name, "form": form, "tokens": L}
    try:
        with dispatch.use(**{op.kernel: form}):
            got, found = gradients(op, inputs, lengths, weight)
    except RuntimeError as error:
        yield row | {"note": f"vendor does not run: {absent(form, error)}"}
        return
    row |= {"outputs": mean_error(got, y), "outputs, largest": largest_error(got.reshape(-1, 1), y.reshape(-1, 1))}
    errors = {n: mean_error(g, grads[n]) for n, g in found.items()}
    row["worst"], row["gradients"] = worst(errors)
    yield row | {"each gradient": ", ".join(f"{n} {e:.1e}" for n, e in errors.items())}


PARTS = [
    Part(
        "a",
        "Kernels beyond 32-bit offsets: vendor against torch",
        "Shapes of nano9b, one sequence, bfloat16. z, x B C, dt (and q, k, v) are views of rows of 22,656, the "
        "scan's x, B, C of rows of 12,288. `off`: largest difference from the torch form on the same device, "
        "relative to the largest value; of the gradients the worst. Both: forward and backward pass. Last rows: "
        "outputs at the end against float64. GB: above the inputs, at the highest point.",
        220,
        {
            "operation": "",
            "tokens": ",d",
            "form": "",
            "forward ms": ",.2f",
            "both ms": ",.2f",
            "runs": "d",
            "forward GB": ".2f",
            "both GB": ".2f",
            "outputs off": ".1e",
            "gradients off": ".1e",
            "worst": "",
            "last rows off float64": ".1e",
        },
        long_cases,
    ),
    Part(
        "b",
        "Errors of bfloat16 against float64",
        "The same inputs, rounded to bfloat16, through every form that exists and through the torch form in "
        "float64; packs of three sequences. Norm of the difference relative to the norm; largest: of a single "
        "value, relative to the largest value; gradients: that of the worst input.",
        70,
        {
            "operation": "",
            "form": "",
            "tokens": ",d",
            "outputs": ".1e",
            "outputs, largest": ".1e",
            "gradients": ".1e",
            "worst": "",
            "each gradient": "",
        },
        error_cases,
    ),
]
