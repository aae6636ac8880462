"""Grouped-query attention over a packed stream, with or without rotary positions, and how it ranks tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from timeviper.config import DecoderConfig
from timeviper.kernels.attention import attention
from timeviper.model.layers import Linear
from timeviper.model.ranking import Ranker, dots
from timeviper.model.state import AttentionState, Keys, Span


class Attention(nn.Module):
    """Causal self-attention: `[L, D]` -> `[L, D]`. Nemotron-H has no positional encoding at all (the
    Mamba-2 blocks know the order); llama and qwen2 turn queries and keys by their position."""

    def __init__(self, cfg: DecoderConfig, out_gain: float = 1.0) -> None:
        super().__init__()
        self.head_dim, self.kv_heads = cfg.head_dim, cfg.kv_heads
        bias = cfg.facts.qkv_bias
        self.q_proj = Linear(cfg.width, cfg.heads * cfg.head_dim, bias=bias)
        self.k_proj = Linear(cfg.width, cfg.kv_heads * cfg.head_dim, bias=bias)
        self.v_proj = Linear(cfg.width, cfg.kv_heads * cfg.head_dim, bias=bias)
        self.o_proj = Linear(cfg.heads * cfg.head_dim, cfg.width, gain=out_gain, ends_block=True)

    def heads(self, t: Tensor) -> Tensor:
        """`[L, H * P]` -> `[L, H, P]`"""
        return t.unflatten(-1, (-1, self.head_dim))

    def forward(self, x: Tensor, span: Span, state: AttentionState | Keys | None = None) -> Tensor:
        if isinstance(state, Keys) and state.k is not None and state.v is not None:
            k, v = state.k, state.v
        else:
            k, v = self.look_at(x, span.rope)
        q = self.query(x, span.rope)
        past = state if isinstance(state, AttentionState) else None
        # [L, H, P] -> [L, H * P] -> [L, D]
        return self.o_proj(self.attend(q, k, v, span, past).flatten(1))  # pyright: ignore[reportCallIssue]

    def look_at(self, x: Tensor, rope: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """Keys and values `[L, Hkv, P]`."""
        k, v = self.heads(self.k_proj(x)), self.heads(self.v_proj(x))
        return (k if rope is None else rotate(k, rope)), v

    def query(self, x: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        """`[L, H, P]`"""
        q = self.heads(self.q_proj(x))
        return q if rope is None else rotate(q, rope)

    @torch.compiler.disable  # its work depends on the lengths of the sequences: a graph for each pack
    def attend(self, q: Tensor, k: Tensor, v: Tensor, span: Span, state: AttentionState | None) -> Tensor:
        if state is not None:
            return state.attend(q, k, v, span)
        return attention(q, k, v, span.bounds, span.keys, causal=span.visible is None, visible=span.visible)

    def rank(self, x: Tensor, span: Span, ranker: Ranker) -> Tensor:
        """What the ranking tokens think of each token: attention logits `[L, R, H]`, float32 or wider."""
        k = self.heads(self.k_proj(x))
        if span.rope is not None:
            k = rotate(k, span.rope)
        query = self.query(ranker.x.flatten(0, 2), ranker.rope)  # [S * R, H, P]
        query = query.unflatten(1, (self.kv_heads, -1)).unflatten(0, ranker.weight.shape)  # [S, R, Hkv, H / Hkv, P]
        wide = torch.promote_types(query.dtype, torch.float32)
        return dots(k, query.to(wide) * self.head_dim**-0.5, span.bounds)

    def empty_state(self, S: int, rows: int, device: torch.device, dtype: torch.dtype) -> AttentionState:
        keys, values = torch.zeros(2, rows, self.kv_heads, self.head_dim, device=device, dtype=dtype)
        return AttentionState(keys, values)


def rotary(position: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[L, P/2]` in float32 of the angles `position * theta^(-2i/P)` (Su et al.,
    arXiv 2104.09864)."""
    exponent = torch.arange(0, head_dim, 2, device=position.device, dtype=torch.float32) / head_dim
    angle = position.float()[:, None] * theta**-exponent  # [L, P/2]
    return angle.cos(), angle.sin()


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (i, i + P/2) of `[L, H, P]` by its token's angles."""
    cos, sin = (t[:, None] for t in rope)  # [L, 1, P/2], the same for all heads
    a, b = x.chunk(2, dim=-1)  # [L, H, P/2] each
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)
