"""The meter of TransV against plain float64 sums, sample by sample, and over packs and ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
import torch
from model_helpers import HYBRID, PLAIN, PLAIN_GUIDED, PUBLISHED
from probe_ranks import shared_out
from ranks import run_ranks, small_recipe
from torch import Tensor
from viper_helpers import TOWER, make_model, samples

from timeviper.callbacks.held_out import apart_from_training
from timeviper.config import ModelConfig, TransVConfig, TransVStage
from timeviper.inspection.transfer import Transferred, divergence, look_at
from timeviper.kernels.bounds import Bounds
from timeviper.model.decoder import Decoder
from timeviper.model.state import Span
from timeviper.model.transv import Stream, shorten
from timeviper.model.transv_stages import other_stages, transv_in_use
from timeviper.model.viper import TimeViper
from timeviper.pack import IGNORE, Kind, Pack


@dataclass
class Expected:
    """Of one sample and stage; NaN where there is nothing to measure."""

    moved: float = math.nan
    vision: float = math.nan
    entropy: float = math.nan


def small(family: str) -> ModelConfig:
    decoder, stages = (HYBRID, PUBLISHED) if family == "nemotron_h" else (PLAIN, PLAIN_GUIDED)
    return ModelConfig(preset="", towers={"main": TOWER}, decoder=decoder, transv=TransVConfig(stages=dict(stages)))


def reference(model: TimeViper, pack: Pack) -> dict[str, Expected]:
    """One sample, with loops; of the model only blocks and the transfer itself are used."""
    decoder = model.decoder
    bounds = Bounds(pack.lengths)
    stream = Stream(model.embed(pack), bounds, pack.kind, pack.vision_groups, torch.arange(len(pack.ids)))
    found = {}
    for segment in decoder.segments:
        if segment.stage is not None:
            found[segment.name], stay = measure(decoder, segment.name, segment.stage, stream, pack.num_vision)
            mask = torch.tensor([i in stay for i in range(stream.num_vision)], dtype=torch.bool)
            stream = shorten(stream, mask, [[len(stay)]], decoder.transfer_of(segment), decoder.transv_cfg)
        span = decoder.with_rope(Span.fresh(stream.bounds))
        for i in segment.blocks:
            stream.x = decoder.blocks[i](stream.x, span)
    return found


def measure(
    decoder: Decoder, name: str, stage: TransVStage, stream: Stream, original: int
) -> tuple[Expected, list[int]]:
    """The figures of a stage, and which vision tokens of the stream stay."""
    x = stream.x
    block = next(i for i in range(stage.layer, len(decoder.cfg.layout)) if decoder.cfg.layout[i] == "*")
    span = decoder.with_rope(Span.fresh(stream.bounds))
    for i in range(stage.layer, block):
        x = decoder.blocks[i](x, span)
    query = max(i for i, kind in enumerate(stream.kind) if kind != Kind.ANSWER)
    attention = plain_attention(decoder, block, x[: query + 1])
    seen = [i for i, kind in enumerate(stream.kind) if kind == Kind.VISION]
    n = len(seen)
    k = min(n, max(1, math.floor(stage.keep * original + 1e-9))) if n else 0
    if stage.select == "uniform":
        stay = [math.floor(i * max(n - 1, 0) / max(k - 1, 1) + 1e-12) for i in range(k)]
    else:
        stay = sorted(sorted(range(n), key=lambda i: -attention[seen[i]])[:k])
    result = Expected()
    if n > k:
        result.vision = sum(attention[i] for i in seen)
        result.moved = sum(attention[seen[i]] for i in range(n) if i not in stay)
    if stage.select == "attention" and n > 1:
        total = sum(attention[i] for i in seen)
        shares = [attention[i] / total for i in seen]
        result.entropy = -sum(p * math.log(p) for p in shares) / math.log(n)
    return result, stay


def plain_attention(decoder: Decoder, block: int, x: Tensor) -> list[float]:
    """What the last token of `x [n, D]` pays to each, mean over heads."""
    cfg, layer = decoder.cfg, cast(Any, decoder.blocks[block])
    normed = layer.norm(x)
    q = (normed[-1:] @ layer.mixer.q_proj.weight.T + bias(layer.mixer.q_proj)).view(1, cfg.heads, cfg.head_dim)
    k = (normed @ layer.mixer.k_proj.weight.T + bias(layer.mixer.k_proj)).view(len(x), cfg.kv_heads, cfg.head_dim)
    if cfg.family != "nemotron_h":
        q, k = turned(q, [len(x) - 1], cfg.rope_theta), turned(k, list(range(len(x))), cfg.rope_theta)
    weights = torch.zeros(len(x), dtype=torch.float64)
    for h in range(cfg.heads):
        logits = k[:, h * cfg.kv_heads // cfg.heads] @ q[0, h] / math.sqrt(cfg.head_dim)
        weights += logits.softmax(0) / cfg.heads
    return weights.tolist()


def bias(linear: Any) -> Tensor:
    return linear.bias if linear.bias is not None else torch.zeros(())


def turned(t: Tensor, places: list[int], theta: float) -> Tensor:
    """Pairs (i, i + P/2) as complex numbers, turned by position * theta^(-2i/P)."""
    half = t.shape[-1] // 2
    angle = torch.tensor(places)[:, None] * theta ** (-torch.arange(half, dtype=torch.float64) / half)
    z = torch.complex(t[..., :half], t[..., half:]) * torch.polar(torch.ones_like(angle), angle)[:, None]
    return torch.cat([z.real, z.imag], -1)


def plain_kl(model: TimeViper, pack: Pack) -> Tensor:
    """KL at every label, with another model that has no stages in place of this one without them."""
    without = TimeViper(replace(model_config(model), transv=TransVConfig())).double()
    without.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("decoder.transv.")})
    logs = []
    for m in (without, model):
        out = m(pack).decoder
        rows = [i for i, at in enumerate(out.index.tolist()) if pack.labels[at] != IGNORE]
        logs.append(torch.log(torch.exp(z := m.decoder.project(out.hidden[rows])) / torch.exp(z).sum(1, keepdim=True)))
    p, q = logs
    return torch.stack([torch.dot(a.exp(), a - b) for a, b in zip(p, q)])


def model_config(model: TimeViper) -> ModelConfig:
    return ModelConfig(preset="", towers={"main": TOWER}, decoder=model.decoder.cfg, transv=model.decoder.transv_cfg)


@torch.no_grad()
def look(model: TimeViper, packs: list[Pack]) -> Transferred:
    found = Transferred()
    for pack in packs:
        look_at(model, pack, found)
    return found


@pytest.mark.parametrize(("family", "rel"), [("nemotron_h", 1e-9), ("qwen2", 1e-6)])  # the model's angles are float32
@torch.no_grad()
def test_every_figure_is_that_of_plain_loops_over_samples(family: str, rel: float) -> None:
    model = make_model(small(family)).eval()
    packs = samples()
    one_by_one = look(model, packs)
    expected = [reference(model, pack) for pack in packs]
    figures = one_by_one.figures(one_by_one.numbers())
    for stage in ("early", "late"):
        for ours, theirs in (("moved", "moved"), ("vision_attention", "vision"), ("entropy", "entropy")):
            values = [v for e in expected if not math.isnan(v := getattr(e[stage], theirs))]
            assert (f"{ours}/{stage}" in figures) == bool(values)
            if values:
                assert figures[f"{ours}/{stage}"] == pytest.approx(sum(values) / len(values), rel=rel)
    assert one_by_one.stages["early"].sequences == 3  # the fourth has no frames
    assert one_by_one.stages["late"].ranked == 3
    kl = torch.cat([plain_kl(model, pack) for pack in packs])
    assert figures["kl"] == pytest.approx(float(kl.mean()), rel=rel)
    assert figures["kl"] > 1e-4  # something was compressed

    together = look(model, [Pack.join(packs)])
    assert together.numbers() == pytest.approx(one_by_one.numbers(), rel=1e-9)


@torch.no_grad()
def test_nothing_moves_where_nothing_is_dropped() -> None:
    """At the start of a ramp every stage keeps all: no sequence counts, the answers are the same, entropy stays."""
    model = make_model(small("nemotron_h")).eval()
    whole = TransVConfig(stages={n: replace(s, keep=1.0) for n, s in PUBLISHED.items()})
    before = model.decoder.segments
    with other_stages(model, whole):
        assert transv_in_use(model, model.decoder.transv_cfg).stages == whole.stages
        found = look(model, samples())
    assert model.decoder.segments is before
    assert found.kl == 0.0
    assert set(found.figures(found.numbers())) == {"kl", "entropy/late", "text_between", "text_between_left"}


@torch.no_grad()
def test_text_between_frames_is_counted_and_never_leaves() -> None:
    """A stamp before each frame but the first stands between vision tokens."""
    model, pack = make_model(small("nemotron_h")).eval(), samples()[0]
    found = look(model, [pack])
    kind = pack.kind.tolist()
    first, last = kind.index(1), len(kind) - 1 - kind[::-1].index(1)
    between = sum(k != 1 for k in kind[first:last])
    figures = found.figures(found.numbers())
    assert figures["text_between"] == between / len(kind)
    whole = model(pack).decoder
    assert figures["text_between_left"] == between / whole.bounds.num_tokens >= figures["text_between"]


def test_divergence_is_in_nats_and_of_p_from_q() -> None:
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.25, 0.5]])
    assert float(divergence(p.log() + 3, q.log())) == pytest.approx(0.5 * math.log(2) + 0.25 * math.log(0.5))


def test_probing_leaves_modes_and_generators_as_they_were() -> None:
    model = TimeViper(small("nemotron_h"))
    model.freeze(["projector"])
    model.train()
    modes = [m.training for m in model.modules()]
    rng = torch.get_rng_state()
    with apart_from_training(model, torch.device("cpu")):
        assert not any(m.training for m in model.modules())
        assert not torch.is_grad_enabled()
        torch.rand(3)
    assert [m.training for m in model.modules()] == modes
    assert True in modes
    assert False in modes
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize("worlds", [(1, 2), pytest.param((1, 4), marks=pytest.mark.slow)])
def test_ranks_share_the_probe_and_find_the_same(worlds: tuple[int, int]) -> None:
    """Sharded, with a rank that has nothing left to look at, and with blocks that are recomputed."""
    recipe = small_recipe(activation_checkpointing="all")
    one, several = (run_ranks(world, shared_out, recipe, 5) for world in worlds)
    assert one[0][1] == 14  # label tokens
    for found in several:
        assert found == pytest.approx(one[0], rel=1e-5)
