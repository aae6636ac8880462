"""Who ranks vision tokens and what comes out of it, against plain loops over single sequences."""

from __future__ import annotations

import math
from typing import TypeVar, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_helpers import HYBRID, PLAIN, Prompt, kinds, make_decoder, make_prompts, run
from torch import Tensor, nn
from torch.testing import assert_close

from timeviper.config import TransVStage
from timeviper.errors import ConfigError
from timeviper.kernels.bounds import Bounds
from timeviper.model.attention import Attention, rotary, rotate
from timeviper.model.decoder import Block, Decoder
from timeviper.model.mamba2 import Mamba2
from timeviper.model.ranking import ROWS, dots, question_rows
from timeviper.model.state import Span
from timeviper.pack import Kind, text_runs

M = TypeVar("M", bound=nn.Module)
TURNS = ("2c40v7i3a", "2c20v1i10v5i4a3i2a2i", "3c9v2i", "1c12v40i3a")


def plain_question(kind: list[int]) -> list[int]:
    """The places of the text that runs up to the last prompt token, behind all media of its turn."""
    end = max(i for i, k in enumerate(kind) if k != Kind.ANSWER)
    start = end
    while start and kind[start] == kind[start - 1] == Kind.INSTRUCTION:
        start -= 1
    count, chosen = end - start + 1, min(end - start + 1, ROWS)
    return [start + r * (count - 1) // max(chosen - 1, 1) for r in range(chosen)]


@given(st.lists(st.lists(st.tuples(st.integers(1, 50), st.sampled_from("vvia")), min_size=1, max_size=6), max_size=5))
def test_the_question_is_the_text_behind_all_media(turns: list[list[tuple[int, str]]]) -> None:
    patterns = ["1c" + "".join(f"{n}{letter}" for n, letter in turn) + "2i" for turn in turns] or ["1c1v1i"]
    each = [kinds(pattern) for pattern in patterns]
    bounds = Bounds([len(kind) for kind in each])
    whole = torch.cat(each)
    rows = question_rows(whole, bounds, torch.arange(len(whole)), text_runs(whole, bounds.lengths))
    waited = question_rows(whole, bounds, torch.arange(len(whole)))
    assert torch.equal(rows.place, waited.place)
    assert_close(rows.weight.sum(1), torch.ones(len(each)))
    for start, kind, places, weight in zip(bounds.offsets, each, rows.place, rows.weight):
        found = [int(p) - start for p, w in zip(places, weight) if w > 0]
        assert found == plain_question(kind.tolist())
        assert len({float(w) for w in weight if w > 0}) == 1


def test_text_that_only_a_drop_brought_to_the_question_is_not_of_it() -> None:
    """Stamps between frames that are gone now."""
    kind = kinds("1c2v3i2v4i")
    left = torch.tensor([0, 1, 3, 4, 5, 8, 9, 10, 11])  # the second frame is gone
    rows = question_rows(kind[left], Bounds([9]), left)
    assert rows.place.tolist() == [[5, 6, 7, 8]]


def stream_before(decoder: Decoder, prompt: Prompt, layer: int) -> Tensor:
    x = prompt.x
    for block in decoder.blocks[:layer]:
        x = block(x, decoder.with_rope(Span.fresh(Bounds([len(x)]))))
    return x


def block_of(decoder: Decoder, layer: int, kind: type[M]) -> tuple[nn.Module, M]:
    """Norm and mixer of a block."""
    block = cast(Block, decoder.blocks[layer])
    assert isinstance(block.mixer, kind)
    return block.norm, block.mixer


def survivors(scores: Tensor, prompt: Prompt, kept: int) -> list[int]:
    vision = [i for i, k in enumerate(prompt.kind.tolist()) if k == Kind.VISION]
    best = sorted(vision, key=lambda i: -float(scores.detach()[i]))[:kept]
    return [i for i, k in enumerate(prompt.kind.tolist()) if k != Kind.VISION or i in best]


@pytest.mark.parametrize("cfg", [HYBRID, PLAIN], ids=["hybrid", "rope"])
def test_the_mean_attention_of_the_question_ranks(cfg) -> None:
    layer = cfg.layout.index("*", 1)
    decoder = make_decoder(cfg, {"only": TransVStage(layer, 0.3, "attention", "question")})
    for prompt in make_prompts(["2c30v6i", "1c24v40i"]):
        x = stream_before(decoder, prompt, layer)
        norm, mixer = block_of(decoder, layer, Attention)
        q, k = mixer.heads(mixer.q_proj(norm(x))), mixer.heads(mixer.k_proj(norm(x)))
        if cfg.facts.rotary:
            rope = rotary(torch.arange(len(x)), cfg.head_dim, cfg.rope_theta)
            q, k = rotate(q, rope), rotate(k, rope)
        k = k.repeat_interleave(cfg.heads // cfg.kv_heads, 1)
        scores = torch.zeros(len(x), dtype=torch.float64)
        rows = plain_question(prompt.kind.tolist())
        for i in rows:
            weights = (torch.einsum("hp,lhp->lh", q[i], k[: i + 1]) / math.sqrt(cfg.head_dim)).softmax(0).mean(1)
            scores[: i + 1] += weights / len(rows)
        out = run(decoder, [prompt])
        assert out.index.tolist() == survivors(scores, prompt, out.kept["only"][0])


@pytest.mark.parametrize("query", ["last", "question"])
def test_what_a_mamba_block_would_read_without_decay_ranks(query) -> None:
    decoder = make_decoder(HYBRID, {"only": TransVStage(3, 0.3, "mamba", query)})
    for prompt in make_prompts(["2c30v6i", "1c24v40i", "1v2i"]):
        x = stream_before(decoder, prompt, 3)
        norm, mixer = block_of(decoder, 3, Mamba2)
        projected = mixer.in_proj(norm(x))[:, mixer.inner : mixer.inner + mixer.channels]
        padded = torch.cat([torch.zeros(3, mixer.channels, dtype=torch.float64), projected])
        taps = torch.stack([padded[t : t + len(x)] for t in range(4)], -1)  # [L, C, 4]
        mixed = torch.nn.functional.silu((taps * mixer.conv.weight).sum(-1) + mixer.conv.bias)
        B, C = mixed[:, mixer.inner :].unflatten(1, (2, HYBRID.ssm_groups, HYBRID.ssm_state)).unbind(1)
        rows = plain_question(prompt.kind.tolist())
        rows = rows if query == "question" else rows[-1:]
        scores = torch.stack([torch.einsum("gn,lgn->lg", C[i], B).abs().mean(1) for i in rows]).mean(0)
        out = run(decoder, [prompt])
        assert out.index.tolist() == survivors(scores, prompt, out.kept["only"][0])


def test_products_with_the_queries_of_several_sequences_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    k, q, bounds = torch.randn(29, 2, 8), torch.randn(3, 5, 2, 3, 8), Bounds([11, 0, 18])
    whole = dots(k, q, bounds)
    assert whole.shape == (29, 5, 6)
    expected = torch.stack([torch.einsum("gp,rghp->rgh", row, q[s]) for row, s in zip(k, bounds.seq_idx)]).flatten(2)
    assert_close(whole, expected)
    monkeypatch.setattr("timeviper.model.ranking.AT_A_TIME", 1000)
    assert_close(dots(k, q, bounds), expected)
    assert_close(dots(k[:11], q[:1], Bounds([11])), expected[:11])


@pytest.mark.parametrize(
    ("layer", "select", "message"),
    [
        (1, "mamba", "ranks with the maps of its block, but block 1 is an MLP block. Mamba-2 blocks: 0, 3, 6"),
        (3, "attention", "but block 3 is a Mamba-2 block. Attention blocks: 2, 5"),
    ],
)
def test_a_rule_needs_a_block_to_rank_with(layer: int, select, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_decoder(HYBRID, {"only": TransVStage(layer, 0.5, select)})
    with pytest.raises(ConfigError, match=r"is an attention block\. Mamba-2 blocks: none in this layout"):
        make_decoder(PLAIN, {"only": TransVStage(0, 0.5, "mamba")})
