"""The Mamba-2 mixer (Dao & Gu 2024, "Transformers are SSMs") in the form of Nemotron-H."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from timeviper.config import DecoderConfig
from timeviper.kernels.bounds import Bounds
from timeviper.kernels.conv1d import causal_conv1d
from timeviper.kernels.ssd import ssd
from timeviper.model.layers import GatedRMSNorm, Linear
from timeviper.model.pieces import Piece, cut, run_in_pieces
from timeviper.model.ranking import Ranker, dots
from timeviper.model.state import MambaState, Span

LEAN = 4096  # tokens: what a lean span holds at a time of nano9b is then 1.4 GB
STEP_RANGE = (0.001, 0.1)  # step sizes at the start, log-uniform
STEP_FLOOR = 1e-4
DECAY_RANGE = (1.0, 16.0)  # -A at the start, uniform


class Conv1d(nn.Module):
    """Causal depthwise convolution with SiLU."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, kernel))
        self.bias = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.bias)

    @torch.compiler.disable  # as the scan: its work depends on the lengths of the sequences
    def forward(self, x: Tensor, span: Span, state: Tensor | None) -> tuple[Tensor, Tensor]:
        return causal_conv1d(x, self.weight, self.bias, span.bounds, state, carry=span.piece is not None)


class Scan(nn.Module):
    """The recurrence and its parameters, one of each a head. A module of its own, because they stay in
    float32 when the rest of the model computes in bfloat16: a decay near 1 has no digits there."""

    def __init__(self, heads: int, chunk_size: int) -> None:
        super().__init__()
        self.chunk_size = chunk_size
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.empty(heads))
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.A_log.uniform_(*DECAY_RANGE).log_()
        self.D.fill_(1.0)
        low, high = (math.log(v) for v in STEP_RANGE)
        step = torch.empty_like(self.dt_bias).uniform_(low, high).exp().clamp(min=STEP_FLOOR)
        self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus

    @torch.compiler.disable
    def forward(
        self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, span: Span, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        A = -self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)).exp()
        asked, carry = state is not None, span.piece is not None
        return ssd(x, dt, A, B, C, self.D, self.dt_bias, span.bounds, state, self.chunk_size, asked, carry)


class Mamba2(nn.Module):
    """`[L, D]` -> `[L, D]`: project to gate z, inputs x, B, C and step dt; convolve x, B, C; scan; norm
    gated by z; project back.

    In bfloat16 the projection of a token of nano9b takes 45 kB, and what lies between it and the projection back keeps
    270 kB more for the backward pass. A lean span keeps the projection alone and computes the rest again, LEAN tokens
    at a time."""

    def __init__(self, cfg: DecoderConfig, out_gain: float = 1.0) -> None:
        super().__init__()
        self.inner = cfg.ssm_heads * cfg.ssm_head_dim
        self.groups, self.state_size, self.head_dim = cfg.ssm_groups, cfg.ssm_state, cfg.ssm_head_dim
        self.heads, self.conv_kernel = cfg.ssm_heads, cfg.conv_kernel
        self.channels = self.inner + 2 * cfg.ssm_groups * cfg.ssm_state
        self.in_proj = Linear(cfg.width, self.inner + self.channels + cfg.ssm_heads)
        self.conv = Conv1d(self.channels, cfg.conv_kernel)
        self.ssm = Scan(cfg.ssm_heads, cfg.chunk_size)
        self.norm = GatedRMSNorm(self.inner, cfg.ssm_groups, cfg.norm_eps)
        self.out_proj = Linear(self.inner, cfg.width, gain=out_gain, ends_block=True)

    def forward(self, x: Tensor, span: Span, state: MambaState | None = None) -> Tensor:
        projected = self.in_proj(x)  # [L, H * P + C + H]
        if span.lean and span.bounds.num_tokens > LEAN:
            return self.out_proj(self._mix_lean(projected, span))
        return self.out_proj(self._mix(projected, span, state))

    def _mix_lean(self, projected: Tensor, span: Span) -> Tensor:
        """`_mix` of whole sequences, in pieces."""

        def run(rows: Tensor, piece: Piece, before: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
            state = MambaState(*before)
            return self._mix(rows, span.part(piece), state), (state.conv, state.ssm)

        def start() -> tuple[Tensor, ...]:
            state = self.empty_state(1, 0, projected.device, projected.dtype)
            return state.conv, state.ssm

        return run_in_pieces(self, run, start, projected, cut(span.bounds, LEAN))

    def _mix(self, projected: Tensor, span: Span, state: MambaState | None) -> Tensor:
        """From the projection `[L, H * P + C + H]` to what is projected back, `[L, H * P]`."""
        z, xBC, dt = projected.split([self.inner, self.channels, self.heads], dim=-1)  # [L, H * P], ..., [L, H]
        xBC, conv = self.conv(xBC, span, state.conv if state else None)
        BC = self.groups * self.state_size
        u, B, C = xBC.split([self.inner, BC, BC], dim=-1)  # [L, H * P], [L, G * N] twice
        y, ssm = self.ssm(
            u.unflatten(-1, (self.heads, self.head_dim)),  # [L, H, P]
            dt,
            B.unflatten(-1, (self.groups, self.state_size)),  # [L, G, N], shared by the heads of a group
            C.unflatten(-1, (self.groups, self.state_size)),  # [L, G, N]
            span,
            state.ssm if state else None,
        )
        if state is not None:
            state.conv, state.ssm = conv, ssm
        return self.norm(y.flatten(1), z)  # [L, H * P]

    def rank(self, x: Tensor, span: Span, ranker: Ranker) -> Tensor:
        """What the ranking tokens would read of each token if nothing decayed: `|C_i . B_j|`, mean over groups,
        `[L, R]`, float32 or wider (after Stateful Token Reduction, arXiv 2603.00198)."""
        S, R, K, _ = ranker.x.shape
        windows = Span.fresh(Bounds([K] * (S * R), x.device))
        _, C, _ = self._read_write(ranker.x.flatten(0, 2), windows, None)
        C = C.view(S, R, K, self.groups, 1, self.state_size)[:, :, -1]  # [S, R, G, 1, N]
        conv, found = None, []
        for piece in cut(span.bounds, LEAN):
            B, _, conv = self._read_write(x[piece.rows], span.part(piece), conv)
            found.append(dots(B, C[piece.sequences], piece.bounds).abs().mean(2))
        return torch.cat(found)

    def _read_write(self, x: Tensor, span: Span, conv: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """B and C of each token, `[L, G, N]`, and the convolution's state behind them."""
        _, xBC, _ = self.in_proj(x).split([self.inner, self.channels, self.heads], dim=-1)
        xBC, conv = self.conv(xBC, span, conv)
        BC = self.groups * self.state_size
        _, B, C = xBC.split([self.inner, BC, BC], dim=-1)
        return *(t.unflatten(-1, (self.groups, self.state_size)) for t in (B, C)), conv  # pyright: ignore[reportReturnType]

    def empty_state(self, S: int, rows: int, device: torch.device, dtype: torch.dtype) -> MambaState:
        conv = torch.zeros(S, self.channels, self.conv_kernel - 1, device=device, dtype=dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        shape = (S, self.heads, self.head_dim, self.state_size)
        return MambaState(conv, torch.zeros(shape, device=device, dtype=wide))
