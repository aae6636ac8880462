"""The state space scan of Mamba-2 (Dao & Gu 2024, "Transformers are SSMs", section 6) over a packed stream.

h[t] = exp(A dt[t]) h[t-1] + dt[t] x[t] B[t]^T,   y[t] = h[t] C[t] + D x[t],   for each head, with h `[P, N]`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from timeviper.kernels import dispatch
from timeviper.kernels.bounds import Bounds, of_first
from timeviper.kernels.ssd_chunked import chunked_scan


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    bounds: Bounds,
    initial_state: Tensor | None = None,
    chunk_size: int = 128,
    need_state: bool = True,
    carry: bool = False,
) -> tuple[Tensor, Tensor]:
    """Scan every sequence of the pack from its own initial state.

    Shapes: x `[L, H, P]`, dt `[L, H]` raw (the step is `softplus(dt + dt_bias)`, not clamped), A `[H]` negative,
    B and C `[L, G, N]` (head h reads group `h // (H / G)`), D and dt_bias `[H]`, initial_state `[S, H, P, N]`
    (None: zeros). Returns y `[L, H, P]` in x's dtype and the final state `[S, H, P, N]` in float32 (float64 for
    float64 inputs). A sequence of no tokens keeps its initial state. chunk_size, the most tokens of a chunk,
    changes speed and memory, not results. need_state=False says that the final state is not looked at: training
    on packs, where the vendor's kernels could only give it one sequence at a time; it may then be anything.
    carry=True says that the stream is a piece of a longer one, cut anywhere: initial_state `[1, H, P, N]` is what the
    first sequence brings along, the others begin here; the final state, `[1, H, P, N]`, is that of the last sequence.
    """
    (L, H, P), (G, N) = x.shape, B.shape[1:]
    if carry and initial_state is not None:
        initial_state = of_first(initial_state, bounds)
    assert bounds.num_tokens == L, (bounds, x.shape)
    assert H % G == 0, f"{H} heads cannot share {G} groups"
    assert initial_state is None or initial_state.shape == (bounds.num_sequences, H, P, N), (
        f"ssm state {tuple(initial_state.shape)} is not {(bounds.num_sequences, H, P, N)}"
    )
    form = dispatch.choose("ssd", x)
    if form == "vendor":
        y, final = ssd_vendor(x, dt, A, B, C, D, dt_bias, bounds, initial_state, chunk_size, need_state)
        return y, final[-1:] if carry else final
    chosen = ssd_reference if form == "reference" else ssd_torch
    y, final = chosen(x, dt, A, B, C, D, dt_bias, bounds, initial_state, chunk_size)
    return y, final[-1:] if carry else final


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of states and decays: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _zero_state(x: Tensor, B: Tensor, bounds: Bounds) -> Tensor:
    return x.new_zeros(bounds.num_sequences, *x.shape[1:], B.shape[-1], dtype=_wide(x.dtype))


def ssd_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    bounds: Bounds,
    initial_state: Tensor | None,
    chunk_size: int = 0,
) -> tuple[Tensor, Tensor]:
    """The definition, token by token."""
    wide = _wide(x.dtype)
    states = _zero_state(x, B, bounds) if initial_state is None else initial_state.to(wide)
    step = F.softplus(dt.to(wide) + dt_bias.to(wide))
    decay = torch.exp(step * A.to(wide))
    repeat = x.shape[1] // B.shape[1]
    # [L, H, P], [L, H, N] twice: group g serves the heads from g * repeat on.
    xs, Bs, Cs = x.to(wide), B.to(wide).repeat_interleave(repeat, 1), C.to(wide).repeat_interleave(repeat, 1)
    outputs, finals = [], []
    for s in range(bounds.num_sequences):
        h = states[s]
        for t in range(bounds.offsets[s], bounds.offsets[s + 1]):
            h = decay[t, :, None, None] * h + torch.einsum("h,hp,hn->hpn", step[t], xs[t], Bs[t])
            outputs.append(torch.einsum("hpn,hn->hp", h, Cs[t]) + D.to(wide)[:, None] * xs[t])
        finals.append(h)
    y = torch.stack(outputs) if outputs else xs * 1
    return y.to(x.dtype), torch.stack(finals)


def ssd_torch(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    bounds: Bounds,
    initial_state: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Matrix products within chunks, a carried state between them; one token a sequence is a plain update."""
    wide = _wide(x.dtype)
    state = _zero_state(x, B, bounds) if initial_state is None else initial_state.to(wide)
    step = F.softplus(dt.to(wide) + dt_bias.to(wide))
    log_decay = step * A.to(wide)
    if bounds.num_tokens == 0:
        return x * 1, state * 1
    if bounds.max_length == 1 and bounds.num_tokens == bounds.num_sequences:
        y, final = _one_token(x.to(wide), step, log_decay, B.to(wide), C.to(wide), D.to(wide), state)
    else:
        y, final = chunked_scan(x, step, log_decay, B, C, D.to(wide), state, bounds, chunk_size)
    return y.to(x.dtype), final


def _one_token(
    x: Tensor, step: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Decode: x `[S, H, P]`, B and C `[S, G, N]`, state `[S, H, P, N]`."""
    groups = (B.shape[1], -1)
    grouped, x_grouped = state.unflatten(1, groups), (step[..., None] * x).unflatten(1, groups)  # [S, G, R, ...]
    fresh = x_grouped[..., None] * B[:, :, None, None, :]  # [S, G, R, P, N]: the token's own outer product
    final = torch.addcmul(fresh, grouped, log_decay.exp().unflatten(1, groups)[..., None, None])
    y = torch.matmul(final.flatten(2, 3), C[..., None]).view_as(x)  # [S, G, R * P, N] @ [S, G, N, 1] -> [S, H, P]
    return torch.addcmul(y, D[:, None], x), final.flatten(1, 2)  # [S, H, P], [S, H, P, N]


def ssd_vendor(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    bounds: Bounds,
    initial_state: Tensor | None,
    chunk_size: int,
    need_state: bool,
) -> tuple[Tensor, Tensor]:
    """mamba_ssm's Triton kernels.

    One call with `seq_idx` serves a pack that starts from nothing, and gives its final states, but only without
    gradients. An initial state, or a final one with gradients, it has for a single sequence: one call each.
    Decode is the torch form's plain update.
    """
    if bounds.max_length <= 1:
        return ssd_torch(x, dt, A, B, C, D, dt_bias, bounds, initial_state, chunk_size)
    fused = dispatch.vendor_function("ssd")
    options: dict[str, Any] = {"D": D.float(), "dt_bias": dt_bias.float(), "dt_softplus": True}
    training = torch.is_grad_enabled() and any(t.requires_grad for t in (x, dt, A, B, C, D, dt_bias))
    if initial_state is None and (not need_state or not training) and 0 not in bounds.lengths:
        options["seq_idx"] = bounds.seq_idx.int()[None]
        if not need_state:
            y = fused(x[None], dt[None], A.float(), B[None], C[None], chunk_size, **options)
            return y[0], _zero_state(x, B, bounds)[:0]
        options |= {"cu_seqlens": bounds.cu_seqlens, "return_varlen_states": True}
        y, final = fused(x[None], dt[None], A.float(), B[None], C[None], chunk_size, **options)
        return y[0], final.float()
    state = _zero_state(x, B, bounds) if initial_state is None else initial_state.float()
    outputs, finals = [], []
    for s in range(bounds.num_sequences):
        rows, before = slice(bounds.offsets[s], bounds.offsets[s + 1]), state[s : s + 1]
        if bounds.lengths[s]:
            options |= {"initial_states": before, "return_final_states": True}
            x_s, dt_s, B_s, C_s = (t[None, rows] for t in (x, dt, B, C))
            y, before = fused(x_s, dt_s, A.float(), B_s, C_s, chunk_size, **options)
            outputs.append(y[0])
        finals.append(before.float())
    return torch.cat(outputs), torch.cat(finals)
