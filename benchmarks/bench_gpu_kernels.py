"""Parts a and b of `bench_gpu.py`: forms of an operation against each other at lengths beyond 32-bit offsets, and
against float64.

Inputs are what a Mamba-2 block of nano9b hands over: views of one row a token as `in_proj` gives it (z, x B C, dt:
22,656 numbers), and of the convolution's output (12,288). Row stride times tokens passes 2^31 between 94,000 and
95,000 tokens for the first, at 174,763 for the second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from bench_gpu_measure import DTYPE, Peak, Timing, largest_error, mean_error, preset, timed, tokens
from bench_gpu_page import Case, Part, Row, Setting
from torch import Tensor

from timeviper.config import DecoderConfig
from timeviper.kernels import dispatch
from timeviper.kernels.attention import attention
from timeviper.kernels.bounds import Bounds
from timeviper.kernels.conv1d import causal_conv1d
from timeviper.kernels.cross_entropy import linear_cross_entropy
from timeviper.kernels.norm import gated_rms_norm, rms_norm
from timeviper.kernels.ssd import ssd

Inputs = dict[str, Tensor]

LONG = (94_000, 95_000, 131_072, 182_000)  # tokens of part a
MODERATE, SHORT = 4096, 256  # tokens of part b, and there of the definition, which goes token by token
LAST = 512  # tokens at the end whose outputs are computed once more in float64
BACK = 8192  # tokens before them that the scan starts from nothing at: the state forgets 1/e in 60 tokens or fewer
GROUPS, EPS = 8, 1e-5  # of the norms
ROWS = ("q", "x", "z", "y", "dt", "B", "C", "hidden")  # inputs with a row for each query or token


@dataclass(frozen=True)
class Op:
    """One operation: inputs with gradients for so many tokens, and a call of it."""

    kernel: str
    make: Callable[[DecoderConfig, int, str], Inputs]
    call: Callable[[Inputs, list[int]], Tensor]
    """Outputs for sequences of the given lengths."""
    back: int = 0
    """Tokens before the last ones that their outputs depend on."""


def normal(*shape: int, device: str) -> Tensor:
    return torch.randn(shape, device=device, dtype=DTYPE)


def _in_proj(cfg: DecoderConfig, L: int, device: str) -> tuple[Tensor, ...]:
    """One `[L, 22656]`, and its views z, x B C and dt, with steps of about 0.02 as trained models have them."""
    inner, keys = cfg.ssm_heads * cfg.ssm_head_dim, cfg.ssm_groups * cfg.ssm_state
    row = normal(L, 2 * inner + 2 * keys + cfg.ssm_heads, device=device)
    z, xBC, dt = row.split([inner, inner + 2 * keys, cfg.ssm_heads], dim=-1)
    return row, z, xBC, dt.sub_(4)


def _ssd(cfg: DecoderConfig, L: int, device: str) -> Inputs:
    inner, keys = cfg.ssm_heads * cfg.ssm_head_dim, cfg.ssm_groups * cfg.ssm_state
    x, B, C = normal(L, inner + 2 * keys, device=device).split([inner, keys, keys], dim=-1)
    A = -1 - 15 * torch.rand(cfg.ssm_heads, device=device)
    return {
        "x": x.unflatten(-1, (cfg.ssm_heads, -1)),
        "dt": _in_proj(cfg, L, device)[3],
        "A": A,
        "B": B.unflatten(-1, (cfg.ssm_groups, -1)),
        "C": C.unflatten(-1, (cfg.ssm_groups, -1)),
        "D": torch.ones_like(A),
        "dt_bias": torch.zeros_like(A),
    }


def _conv1d(cfg: DecoderConfig, L: int, device: str) -> Inputs:
    x = _in_proj(cfg, L, device)[2]
    weight = normal(x.shape[1], cfg.conv_kernel, device=device) / 2
    return {"x": x, "weight": weight, "bias": normal(x.shape[1], device=device) / 2}


def _gated(cfg: DecoderConfig, L: int, device: str) -> Inputs:
    z = _in_proj(cfg, L, device)[1]
    return {"y": normal(*z.shape, device=device), "z": z, "weight": 1 + torch.rand(z.shape[1], device=device)}


def _plain(cfg: DecoderConfig, L: int, device: str) -> Inputs:
    return {"x": normal(L, cfg.width, device=device), "weight": 1 + torch.rand(cfg.width, device=device)}


def _attention(cfg: DecoderConfig, L: int, device: str, every: int = 1) -> Inputs:
    """Views of rows as wide as those of `in_proj` (in the model they are tensors of their own); one query `every`
    so many tokens."""
    row, q_size, kv_size = _in_proj(cfg, L, device)[0], cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
    q, k, v = row[:, : q_size + 2 * kv_size].split([q_size, kv_size, kv_size], dim=-1)
    q, k, v = (t.unflatten(-1, (-1, cfg.head_dim)) for t in (q, k, v))
    return {"q": q[::every], "k": k, "v": v}


def _loss(cfg: DecoderConfig, L: int, device: str) -> Inputs:
    weight = normal(cfg.vocab_size, cfg.width, device=device) * cfg.width**-0.5
    return {"hidden": normal(L, cfg.width, device=device), "weight": weight}


def _call_ssd(t: Inputs, lengths: list[int]) -> Tensor:
    x, dt, A, B, C, D, dt_bias = t.values()
    return ssd(x, dt, A, B, C, D, dt_bias, Bounds(lengths, x.device), need_state=False)[0]


def _call_attention(t: Inputs, lengths: list[int]) -> Tensor:
    bounds = Bounds(lengths, t["k"].device)
    own = bounds if len(t["q"]) == len(t["k"]) else Bounds([len(t["q"])], bounds.device)
    return attention(t["q"], t["k"], t["v"], own, bounds, causal=True)


def _call_visible(t: Inputs, lengths: list[int]) -> Tensor:
    n, m = len(t["q"]), len(t["k"])
    visible = torch.arange(1, n + 1, device=t["q"].device) * m // n
    return attention(t["q"], t["k"], t["v"], Bounds([n], visible.device), Bounds([m], visible.device), visible=visible)


def _call_loss(t: Inputs, lengths: list[int]) -> Tensor:
    labels = torch.arange(len(t["hidden"]), device=t["hidden"].device) % len(t["weight"])
    return linear_cross_entropy(t["hidden"], t["weight"], labels)[0] / len(labels)


def _call_conv1d(t: Inputs, lengths: list[int]) -> Tensor:
    return causal_conv1d(t["x"], t["weight"], t["bias"], Bounds(lengths, t["x"].device))[0]


def _call_gated(t: Inputs, lengths: list[int]) -> Tensor:
    return gated_rms_norm(t["y"], t["z"], t["weight"], GROUPS, EPS)


def _call_plain(t: Inputs, lengths: list[int]) -> Tensor:
    return rms_norm(t["x"], t["weight"], EPS)


OPS = {
    "ssd": Op("ssd", _ssd, _call_ssd, BACK),
    "conv1d": Op("conv1d", _conv1d, _call_conv1d, 8),
    "gated norm": Op("norm", _gated, _call_gated),
    "attention": Op("attention", _attention, _call_attention),
    "rms norm": Op("norm", _plain, _call_plain),
    "attention to a prefix": Op("attention", partial(_attention, every=16), _call_visible),
    "cross-entropy": Op("cross_entropy", _loss, _call_loss),
}
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
