"""Frozen-linear relevance against autograd, and its completeness."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from model_helpers import HYBRID, PLAIN
from torch import Tensor
from torch.testing import assert_close

from timeviper.analysis.hidden import Asked
from timeviper.analysis.relevance import attention_relevance, mamba_relevance
from timeviper.kernels.bounds import Bounds
from timeviper.kernels.conv1d import causal_conv1d
from timeviper.kernels.ssd import ssd_reference
from timeviper.model.attention import Attention, rotary
from timeviper.model.mamba2 import Mamba2
from timeviper.model.state import Span


def mixer_of(kind: type) -> Mamba2:
    torch.manual_seed(0)
    made = kind(HYBRID).double()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return made


def frozen(mixer: Mamba2, x: Tensor, bounds: Bounds, places: Tensor, cotangent: Tensor) -> tuple[Tensor, float, float]:
    """Parts of each token, that of the convolution's bias, and the target, by autograd through what is not frozen."""
    z, xBC, dt = mixer.in_proj(x).detach().split([mixer.inner, mixer.channels, mixer.heads], -1)
    BC = mixer.groups * mixer.state_size
    u, _, _ = xBC.split([mixer.inner, BC, BC], -1)
    zeros = torch.zeros(bounds.num_sequences, mixer.channels, 3, dtype=torch.float64)
    whole, _ = causal_conv1d(xBC, mixer.conv.weight, mixer.conv.bias, bounds, zeros)
    B, C = (t.detach().unflatten(-1, (mixer.groups, -1)) for t in whole.split([mixer.inner, BC, BC], -1)[1:])
    u, bias = u.clone().requires_grad_(), mixer.conv.bias[: mixer.inner].detach().clone().requires_grad_()
    weight, outputs = mixer.conv.weight[: mixer.inner].detach(), []
    for part in u.split(list(bounds.lengths)):
        padded = F.pad(part, (0, 0, 3, 0))
        v = sum((padded[k : k + len(part)] * weight[:, k] for k in range(4)), bias)
        outputs.append(v * torch.sigmoid(v).detach())
    ssm = mixer.ssm
    states = torch.cat(outputs).unflatten(-1, (mixer.heads, mixer.head_dim))
    y, _ = ssd_reference(states, dt, -ssm.A_log.exp(), B, C, ssm.D, ssm.dt_bias, bounds, None)
    h = y.flatten(1) * F.silu(z)
    rms = (h.detach().unflatten(-1, (mixer.norm.groups, -1)).square().mean(-1, keepdim=True) + mixer.norm.eps).sqrt()
    out = mixer.out_proj((h.unflatten(-1, (mixer.norm.groups, -1)) / rms).flatten(-2) * mixer.norm.weight)
    target = (out[places] * cotangent).sum()
    d_u, d_bias = torch.autograd.grad(target, (u, bias))
    return (u * d_u).sum(1), float((bias * d_bias).sum()), float(target.detach())


@pytest.mark.parametrize("lengths", [[64], [30, 34], [40, 1, 23], [10, 0, 54]])
def test_relevance_of_mamba_equals_autograd_and_adds_up(lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timeviper.analysis.relevance.BLOCK", 24 * 17)  # pieces of 17 tokens and fewer
    mixer, bounds = mixer_of(Mamba2), Bounds(lengths)
    x = torch.randn(64, HYBRID.width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    places = torch.tensor([63, 20, 55])
    cotangent = torch.randn(3, HYBRID.width, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = mamba_relevance(mixer, x, bounds, places, cotangent)
    parts, bias, target = frozen(mixer, x, bounds, places, cotangent)
    assert_close(found.parts, parts, rtol=0, atol=1e-12)
    assert_close((found.bias, found.target), (bias, target), rtol=0, atol=1e-11)
    assert abs(bias) > 1e-3
    assert found.missing < 1e-9
    last = mamba_relevance(mixer, x, bounds, places[1:2])
    assert float(last.parts[21:].abs().max()) == 0, "later tokens and other sequences have no part in it"
    with torch.no_grad():
        assert_close(last.target, float(mixer(x, Span.fresh(bounds))[20].norm()), rtol=1e-12, atol=0)
    assert last.missing < 1e-9


@pytest.mark.parametrize("cfg", [HYBRID, PLAIN])
def test_relevance_of_attention_adds_up(cfg) -> None:
    torch.manual_seed(0)
    mixer = Attention(cfg).double()
    x = torch.randn(40, cfg.width, dtype=torch.float64)
    rope = rotary(torch.arange(40), cfg.head_dim, cfg.rope_theta) if cfg.facts.rotary else None
    places = torch.tensor([39, 12])
    with torch.no_grad():
        span = Span.fresh(Bounds([40]))
        span.rope = rope
        out, (k, v) = mixer(x, span)[places], mixer.look_at(x, rope)
        q = mixer.query(x, rope)[places]
        found = attention_relevance(mixer, Asked(q, places), out, k, v, torch.arange(40), 40)
    assert found.missing < 1e-9
    assert float(found.parts.abs().max()) > 0
    assert_close(found.target, float(out.norm(dim=-1).sum()))
