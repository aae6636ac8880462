"""The decoder: packs equal single runs, state in and out, nothing leaks, sizes are those published."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

import math
from dataclasses import replace
from unittest import mock

import pytest
import torch
from model_helpers import HYBRID, PATTERNS, PLAIN, SCHEDULES, Prompt, logits, make_decoder, make_prompts, run
from torch.testing import assert_close

from timeviper.config import DecoderConfig, TransVConfig, TransVStage
from timeviper.config.presets import nano9b, nano12b
from timeviper.errors import ConfigError
from timeviper.kernels.bounds import Bounds
from timeviper.model import attention as attention_module
from timeviper.model import mamba2 as mamba2_module
from timeviper.model import ranking as ranking_module
from timeviper.model import transv as transv_module
from timeviper.model.decoder import Decoder
from timeviper.model.mamba2 import Mamba2
from timeviper.model.state import AttentionState, DecoderState

CLOSE = dict(rtol=0, atol=1e-9)


def gradients(decoder: Decoder, prompts: list[Prompt]) -> dict[str, torch.Tensor]:
    """Of a loss over what is left of every prompt, for the weights and for the prompts themselves."""
    inputs = [Prompt(p.x.clone().requires_grad_(), p.kind) for p in prompts]
    decoder.zero_grad(set_to_none=True)
    loss = sum(part.sin().sum() for part in logits(decoder, inputs))
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    found = {name: p.grad for name, p in decoder.named_parameters() if p.grad is not None}
    return found | {f"prompt {i}": p.x.grad for i, p in enumerate(inputs) if p.x.grad is not None}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_pack_equals_single_runs(schedule: str) -> None:
    cfg, stages = SCHEDULES[schedule]
    decoder, prompts = make_decoder(cfg, stages), make_prompts()
    packed = logits(decoder, prompts)
    for part, prompt in zip(packed, prompts):
        assert_close(part, logits(decoder, [prompt])[0], **CLOSE)
    together = gradients(decoder, prompts)
    alone = [gradients(decoder, [prompt]) for prompt in prompts]
    for i, single in enumerate(alone):
        assert_close(together[f"prompt {i}"], single["prompt 0"], rtol=1e-9, atol=1e-9)
    for name in set(together) - {f"prompt {i}" for i in range(len(prompts))}:
        total = torch.stack([single[name] for single in alone if name in single]).sum(0)
        assert_close(together[name], total, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_neighbours_do_not_notice(schedule: str) -> None:
    """Exactly zero: not one bit of another sequence changes."""
    cfg, stages = SCHEDULES[schedule]
    decoder, prompts = make_decoder(cfg, stages), make_prompts()
    before = logits(decoder, prompts)
    changed = list(prompts)
    changed[3] = Prompt(torch.randn_like(prompts[3].x) * 3, prompts[3].kind)
    after = logits(decoder, changed)
    for i, (a, b) in enumerate(zip(before, after)):
        assert torch.equal(a, b) == (i != 3)


def test_kernels_get_boundaries() -> None:
    """Without its boundaries any single operation mixes sequences: the test above would see it."""
    decoder = make_decoder(HYBRID, SCHEDULES["guided"][1])
    prompts = make_prompts((*PATTERNS, "2c60v9i", "1c41v3i2a5i"))
    right = torch.cat(logits(decoder, prompts))
    for module, name, places in [
        (mamba2_module, "ssd", [7]),
        (mamba2_module, "causal_conv1d", [3]),
        (attention_module, "attention", [3, 4]),
        (transv_module, "attention", [3, 4]),
        (ranking_module, "last_prompt_token", [1]),
        (ranking_module, "segment_softmax", [1]),
    ]:
        assert not torch.allclose(mutant(decoder, prompts, module, name, places), right, atol=1e-6), name


def mutant(decoder: Decoder, prompts: list[Prompt], module, name: str, places: list[int]) -> torch.Tensor:
    """Logits when an operation takes the whole pack for one sequence."""
    original = getattr(module, name)
    original_args = []

    def forget(*args, **options):
        args = list(args)
        original_args.append(args[places[0]])
        for place in places:
            args[place] = Bounds([args[place].num_tokens])
        result = original(*args, **options)
        if name == "last_prompt_token":
            return result.expand(original_args[-1].num_sequences)
        return result

    with mock.patch.object(module, name, forget):
        return torch.cat(logits(decoder, prompts))


@pytest.mark.parametrize("cfg", [HYBRID, PLAIN], ids=["hybrid", "rope"])
@pytest.mark.parametrize("sizes", [[1] * 40, [7], [13, 1, 1, 2], [40]], ids=str)
def test_prefill_in_chunks_and_decode_equal_the_whole(cfg: DecoderConfig, sizes: list[int]) -> None:
    """Several sequences of different lengths at once, each fed in pieces of `sizes`."""
    decoder, lengths = make_decoder(cfg), [40, 11, 1, 23]
    xs = [torch.randn(n, cfg.width, dtype=torch.float64) for n in lengths]
    whole = decoder(torch.cat(xs), Bounds(lengths)).hidden.split(lengths)
    state = decoder.empty_state(len(xs))
    parts: list[list[torch.Tensor]] = [[] for _ in xs]
    done = 0
    for i in range(40):
        size = sizes[min(i, len(sizes) - 1)]
        pieces = [x[done : done + size] for x in xs]
        done += size
        counts = [len(p) for p in pieces]
        if not any(counts):
            break
        out = decoder(torch.cat(pieces), Bounds(counts), state=state)
        for part, piece in zip(parts, out.hidden.split(counts)):
            part.append(piece)
    for a, b in zip(parts, whole):
        assert_close(torch.cat(a), b, **CLOSE)
    assert state.seen == lengths


@pytest.mark.parametrize("cfg", [HYBRID, PLAIN], ids=["hybrid", "rope"])
def test_states_can_be_picked_and_joined(cfg: DecoderConfig) -> None:
    decoder, lengths = make_decoder(cfg), [9, 4, 14]
    xs = [torch.randn(n + 3, cfg.width, dtype=torch.float64) for n in lengths]
    whole = [decoder(x, Bounds([len(x)])).hidden for x in xs]
    with torch.no_grad():
        together = decoder.empty_state(2)
        decoder(torch.cat([xs[0][:9], xs[1][:4]]), Bounds([9, 4]), state=together)
        third = decoder.empty_state(1, room=[[20]])
        decoder(xs[2][:14], Bounds([14]), state=third)
        state = DecoderState.join([together, third]).select([2, 0])
        for step in range(3):
            x = torch.stack([xs[2][14 + step], xs[0][9 + step]])
            hidden = decoder(x, Bounds([1, 1]), state=state).hidden
            assert_close(hidden, torch.stack([whole[2][14 + step], whole[0][9 + step]]), **CLOSE)


def test_decode_costs_the_same_after_any_number_of_tokens() -> None:
    """Key caches move rarely (each time a quarter longer), and keep at most a quarter of spare room."""
    decoder = make_decoder(replace(HYBRID, layout="*-"))
    state, moves, rows = decoder.empty_state(2), 0, 0
    with torch.no_grad():
        for _ in range(300):
            decoder(torch.randn(2, HYBRID.width, dtype=torch.float64), Bounds([1, 1]), state=state)
            block = state.segments[0].blocks[0]
            assert isinstance(block, AttentionState)
            moves, rows = moves + (len(block.keys) != rows), len(block.keys)
    assert moves <= 6
    assert rows <= 2 * (300 * 1.25 + 64)


def test_logits_of_text() -> None:
    decoder = make_decoder(HYBRID)
    ids = torch.randint(61, (30,))
    packed = decoder.logits(ids, torch.tensor([0, 12, 13, 30], dtype=torch.int32))
    for a, b in [(0, 12), (12, 13), (13, 30)]:
        assert_close(packed[a:b], decoder.logits(ids[a:b]), **CLOSE)
    assert decoder.float().logits(ids).dtype == torch.float32
    with pytest.raises(ValueError, match="1 token or more"):
        decoder.logits(ids, torch.tensor([0, 12, 12, 30]))
    with pytest.raises(ValueError, match="all 30 ids"):
        decoder.logits(ids, torch.tensor([0, 12]))


@pytest.mark.parametrize(("build", "billions", "transfer_millions"), [(nano9b, 8.888, 55.05), (nano12b, 12.31, 62.9)])
def test_published_sizes(build, billions: float, transfer_millions: float) -> None:
    stages = {
        "early": TransVStage(7, 0.5, "uniform"),
        "late": TransVStage(build().decoder.layout.rindex("*"), 0.1, "attention"),
    }
    with torch.device("meta"):
        decoder = Decoder(build().decoder, TransVConfig(stages=stages))
    weights = {n: p for n, p in decoder.named_parameters() if not n.startswith("transv.")}
    assert math.isclose(sum(p.numel() for p in weights.values()) / 1e9, billions, abs_tol=5e-3)
    if build is nano9b:
        assert len(weights) == 341
        assert [i for i, letter in enumerate(build().decoder.layout) if letter == "*"] == [14, 21, 30, 39]
    for transfer in decoder.transv.values():
        assert math.isclose(sum(p.numel() for p in transfer.parameters()) / 1e6, transfer_millions, abs_tol=0.02)


def test_weights_from_the_meta_device() -> None:
    with torch.device("meta"):
        decoder = Decoder(HYBRID, TransVConfig(stages=dict(SCHEDULES["published"][1])))
    decoder.to_empty(device="cpu")
    for p in decoder.parameters():
        p.data.fill_(torch.nan)
    torch.manual_seed(3)
    for module in decoder.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for name, p in decoder.named_parameters():
        assert torch.isfinite(p).all(), name
    mixer = decoder.blocks[0].mixer
    assert isinstance(mixer, Mamba2)
    assert torch.all(mixer.ssm.A_log >= 0)
    assert torch.all(mixer.ssm.A_log <= math.log(16))
    step = torch.nn.functional.softplus(mixer.ssm.dt_bias)
    assert torch.all((step > 0.0009) & (step < 0.11))
    up, down = (decoder.blocks[1].mixer.get_submodule(name).weight for name in ("up_proj", "down_proj"))
    assert isinstance(up, torch.Tensor) and isinstance(down, torch.Tensor)  # noqa: PT018
    spread = down.std() * down.shape[1] ** 0.5 / (up.std() * up.shape[1] ** 0.5)
    assert abs(spread - len(HYBRID.layout) ** -0.5) < 0.05


@pytest.mark.parametrize(
    ("change", "stages", "expected"),
    [
        (dict(layout="M-x*"), {}, "decoder.layout"),
        (dict(layout="M-M-"), {}, "no attention block"),
        (dict(layout=""), {}, "decoder.layout"),
        (dict(ssm_groups=4), {}, "ssm_groups"),
        (dict(kv_heads=4), {}, "kv_heads"),
        (dict(family="llama"), {}, "must repeat"),
        ({}, {"a": TransVStage(8, 0.5)}, "stages.a.layer"),
        ({}, {"a": TransVStage(1, 0.5, "attention")}, "Attention blocks: 2, 5"),
        ({}, {"a": TransVStage(2, 0.5), "b": TransVStage(1, 0.5)}, "stages.b.layer"),
        ({}, {"a": TransVStage(2, 0.5), "b": TransVStage(2, 0.5)}, "stages.b.layer"),
        ({}, {"a": TransVStage(2, 0.2), "b": TransVStage(3, 0.5)}, "stages.b.keep"),
        ({}, {"a": TransVStage(2, 0.0)}, "stages.a.keep"),
        ({}, {"a": TransVStage(2, 1.5)}, "stages.a.keep"),
    ],
)
def test_what_cannot_be_built_names_its_field(change: dict, stages: dict, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        Decoder(replace(HYBRID, **change), TransVConfig(stages=stages))
    assert expected in str(error.value)


def test_what_cannot_be_run_is_refused() -> None:
    decoder = make_decoder(replace(HYBRID, max_tokens=20), SCHEDULES["uniform"][1])
    with pytest.raises(ValueError, match="max_tokens = 20"):
        decoder(torch.randn(21, 24, dtype=torch.float64), Bounds([21]))
    state = decoder.empty_state(1)
    prompt = make_prompts(["2c3v2i"])[0]
    run(decoder, [prompt], state=state)
    with pytest.raises(ValueError, match="prefill_chunks"):
        run(decoder, [prompt], state=state)
    with pytest.raises(ValueError, match="max_tokens = 20"):
        decoder(torch.randn(14, 24, dtype=torch.float64), Bounds([14]), state=state)


def test_patterns_cover_the_cases() -> None:
    assert len(PATTERNS) == len(make_prompts())
