"""The state space scan of Mamba-2 (Dao & Gu 2024, "Transformers are SSMs", section 6) over a packed stream.

h[t] = exp(A dt[t]) h[t-1] + dt[t] x[t] B[t]^T,   y[t] = h[t] C[t] + D x[t],   for each head, with h `[P, N]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from timeviper.kernels import dispatch, limits
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
    assert bounds.num_tokens == L, (bounds, x.shape)
    assert H % G == 0, f"{H} heads cannot share {G} groups"
    expected = (1 if carry else bounds.num_sequences, H, P, N)
    assert initial_state is None or initial_state.shape == expected, (
        f"ssm state {tuple(initial_state.shape)} is not {expected}"
    )
    form = dispatch.choose("ssd", x)
    if form == "vendor":
        return ssd_vendor(x, dt, A, B, C, D, dt_bias, bounds, initial_state, chunk_size, need_state, carry)
    chosen = ssd_reference if form == "reference" else ssd_torch
    if carry and initial_state is not None:
        initial_state = of_first(initial_state, bounds)
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
    carry: bool,
) -> tuple[Tensor, Tensor]:
    """mamba_ssm's Triton kernels, in pieces of whole chunks where the stream is too long for their offsets.

    Its x, B and C are of one dtype, which is also that of the states between chunks; A, D and dt_bias float32.
    Decode is the torch form's plain update.
    """
    scan = _VendorScan(dispatch.kernel("ssd", x), A, D, dt_bias, chunk_size)
    tensors = scan.slim(x, dt, B, C)
    rows = scan.most_rows(*tensors)
    if bounds.max_length > 1 and not rows:
        reason = f"one chunk of {scan.chunk} tokens spans more than the {scan.kernel.index_limit:,} elements"
        dispatch.decline("ssd", x, f"{reason} that {scan.kernel.name} can address", "too long")
    if bounds.max_length <= 1 or not rows:
        if carry and initial_state is not None:
            initial_state = of_first(initial_state, bounds)
        y, final = ssd_torch(x, dt, A, B, C, D, dt_bias, bounds, initial_state, chunk_size)
        return y, final[-1:] if carry else final
    carry = carry or (initial_state is None and not need_state)  # the state is only wanted to carry on
    pieces = limits.cut(bounds, rows, scan.chunk) if bounds.num_tokens > rows else []
    if carry and pieces:
        return limits.carried(scan.carry, tensors, pieces, initial_state)
    if carry:
        return scan.carry(tensors, bounds, initial_state)
    if pieces:
        state = _zero_state(x, B, bounds) if initial_state is None else initial_state
        return limits.with_states(scan.with_states, tensors, pieces, state)
    return scan.with_states(tensors, bounds, initial_state)


class _VendorScan:
    """mamba_chunk_scan_combined with the parameters of one call."""

    def __init__(self, kernel: dispatch.Kernel, A: Tensor, D: Tensor, dt_bias: Tensor, chunk_size: int) -> None:
        self.kernel = kernel
        self.chunk = 1 << (chunk_size.bit_length() - 1)  # the kernels want a power of two
        self.A = A.to(_wide(A.dtype))
        self.options = {"D": D.to(_wide(D.dtype)), "dt_bias": dt_bias.to(_wide(dt_bias.dtype)), "dt_softplus": True}

    def slim(self, *tensors: Tensor) -> list[Tensor]:
        return [limits.slim(t, self.kernel.index_limit) for t in tensors]

    def most_rows(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> int:
        """The most tokens of a call of which all fits: all of them, or a multiple of the chunk (0: not even one)."""
        (L, H, P), (G, N) = x.shape, B.shape[1:]
        limit, chunk = self.kernel.index_limit, self.chunk
        rows = min(limits.rows_within(limit, x, dt, B, C), limit // max(H * P, 2 * G * N))  # y, dx; dB, dC
        # What is made for each chunk: its state; C B^T of each group; row sums of the backward by blocks of 32.
        made = max(H * P * N, G * chunk**2, H * chunk * -(-chunk // 32))
        rows = min(rows, min(limit // made, limits.GRID) * chunk)
        return L if rows >= L else rows // chunk * chunk

    def call(self, tensors: Sequence[Tensor], **more: Any) -> Any:
        x, dt, B, C = (t[None] for t in tensors)
        return self.kernel.function(x, dt, self.A, B, C, self.chunk, **self.options, **more)

    def carry(self, tensors: Sequence[Tensor], bounds: Bounds, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """One call: its kernels take the sequence before the first token to be number 0, and so continue it with
        `state [1, H, P, N]` where it has a token; what they end with is the state of the last token's."""
        seq_idx = bounds.seq_idx.int()[None]
        y, final = self.call(tensors, seq_idx=seq_idx, initial_states=state, return_final_states=True)
        return y[0], final if bounds.lengths[-1] else torch.zeros_like(final)

    def with_states(self, tensors: Sequence[Tensor], bounds: Bounds, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """States of every sequence: from nothing and without gradients one call gives them, else one call each."""
        x, _, B, _ = tensors
        training = torch.is_grad_enabled() and any(t.requires_grad for t in (*tensors, self.A, *self.options.values()))
        fits = bounds.num_sequences * x[0].numel() * B.shape[-1] <= self.kernel.index_limit
        if state is None and fits and not training and 0 not in bounds.lengths and bounds.num_sequences > 1:
            more = {"seq_idx": bounds.seq_idx.int()[None], "cu_seqlens": bounds.cu_seqlens}
            y, final = self.call(tensors, **more, return_varlen_states=True)
            return y[0], final.to(self.A.dtype)
        state = _zero_state(x, B, bounds) if state is None else state.to(self.A.dtype)
        outputs, finals = [], []
        for s, rows in enumerate(zip(*(t.split(bounds.lengths) for t in tensors))):
            after = state[s : s + 1]
            if bounds.lengths[s]:
                y, after = self.call(rows, initial_states=after, return_final_states=True)
                outputs.append(y[0])
            finals.append(after)
        return torch.cat(outputs), torch.cat(finals)
