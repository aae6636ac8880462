"""Times that the frames' own tokens carry."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from viper_helpers import config, make_model, sample, samples

from timeviper.config import ChatConfig, ModelConfig
from timeviper.datamodules.chat import Media, encode_chat, estimate_text
from timeviper.inference.generate import embed_frames, in_pieces, prefill_pack
from timeviper.inference.prefill import prefill_chunks
from timeviper.model.frame_times import PERIODS, time_features
from timeviper.model.viper import TimeViper
from timeviper.pack import Kind, Pack
from timeviper.tokenizer import Tokenizer


class _Telling(TimeViper):
    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__(cfg, frame_times=True)


def telling() -> TimeViper:
    model = make_model(kind=_Telling)
    model.load_state_dict(make_model().state_dict(), strict=False)
    return model


def test_features_are_sines_of_the_seconds_and_nothing_at_the_start() -> None:
    seconds = torch.tensor([0.0, 0.4, 7.0, 10_799.5], dtype=torch.float64)
    found = time_features(seconds)
    for row, t in zip(found.tolist(), seconds.tolist()):
        angles = [2 * math.pi * t / period for period in PERIODS]
        assert row == pytest.approx([math.sin(a) for a in angles] + [math.cos(a) - 1 for a in angles], abs=1e-6)
    assert not found[0].any()
    assert len({tuple(row.tolist()) for row in time_features(torch.arange(10_800.0)).round(decimals=4)}) == 10_800


def test_a_map_that_has_learned_nothing_changes_nothing() -> None:
    pack = Pack.join(samples())
    model = telling()
    assert model.times is not None
    model.times.reset_parameters()
    assert torch.equal(model(pack).loss_sum, make_model()(pack).loss_sum)
    model(pack).loss_sum.backward()
    assert model.times.weight.grad is not None
    assert model.times.weight.grad.abs().max() > 0  # but it learns at once


def test_each_token_of_a_frame_is_moved_by_its_frames_time() -> None:
    pack = replace(sample("2c12v3i4a", 3, 1), frame_times=torch.tensor([0.0, 2.5, 60.0], dtype=torch.float64))
    model, plain = telling(), make_model()
    assert model.times is not None
    moved = (model.embed(pack) - plain.embed(pack))[pack.kind == Kind.VISION].unflatten(0, (3, 4))
    torch.testing.assert_close(moved, model.times(pack.frame_times)[:, None].expand_as(moved))
    assert not moved[0].any()
    assert moved[1:].abs().min(2).values.max() > 0


def test_packs_are_single_runs_and_pieces_the_whole() -> None:
    parts = [replace(p, frame_times=torch.arange(p.num_frames).double() * 3 + 1) for p in samples()]
    model = telling().requires_grad_(False)
    whole = model(Pack.join(parts)).loss_sum
    torch.testing.assert_close(whole, sum(model(p).loss_sum for p in parts), rtol=1e-12, atol=1e-12)
    pack = parts[0]
    once = prefill_pack(model, pack)
    chunks = embed_frames(model, pack.ids, pack.kind, pack.frames.split(2), pack.frame_times)
    pieces = prefill_chunks(model.decoder, in_pieces(chunks, 5), 12, len(pack.ids) - 12)
    torch.testing.assert_close(pieces.hidden, once.hidden, rtol=1e-10, atol=1e-10)


def test_the_prompt_has_the_sentence_and_no_stamps() -> None:
    tokenizer, media = Tokenizer.load(""), [Media(torch.arange(4.0).double().numpy(), 4.0)]
    asked = [{"role": "user", "content": "What happens?"}]
    prompts = [
        encode_chat(tokenizer, asked, media, 4, ChatConfig(time=time), generate=True).ids
        for time in ("sentence", "tokens", "frames")
    ]
    assert torch.equal(prompts[0], prompts[1])
    assert len(prompts[2]) != len(prompts[1])
    tokens = [estimate_text(tokenizer, 40, [4], ChatConfig(time=time)) for time in ("sentence", "tokens")]
    assert tokens[0] == tokens[1]


def test_gates_begin_where_they_are_set() -> None:
    cfg = config()
    cfg.transv.gate = 0.5
    torch.manual_seed(0)
    model = TimeViper(cfg)
    gates = [torch.tanh(t.alpha).item() for t in model.decoder.transv.values()]  # pyright: ignore[reportCallIssue,reportArgumentType]
    assert gates == pytest.approx([0.5] * len(cfg.transv.stages))
