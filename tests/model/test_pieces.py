"""Blocks that are computed again and differentiated piece by piece: the same numbers, and little that is kept."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_helpers import SCHEDULES
from ranks import gradients_in_float64, run_ranks
from torch import Tensor, nn
from viper_helpers import config, make_model, samples

from timeviper.config import LoraConfig, ParallelConfig, TransVConfig
from timeviper.kernels.bounds import Bounds
from timeviper.model import lora
from timeviper.model.mamba2 import Mamba2
from timeviper.model.pieces import cut
from timeviper.model.state import Span
from timeviper.model.viper import TimeViper
from timeviper.pack import Pack
from timeviper.parallel import plain_name, wrap_blocks

EVERYTHING = ("tower", "projector", "decoder", "transv")
SIZES = [0, 1, 3, 7, 16, 64]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 40))
@settings(max_examples=200, deadline=None)
def test_pieces_make_up_the_stream(lengths: list[int], size: int) -> None:
    bounds = Bounds(lengths)
    tokens = [(s, i) for s, n in enumerate(lengths) for i in range(n)]
    found = []
    for piece in cut(bounds, size):
        here, seen = tokens[piece.rows], tokens[piece.seen]
        assert size == 0 or len(here) <= size
        assert bool(here) and here[0][1] > 0 if piece.continues else not here or here[0][1] == 0
        numbers = range(len(lengths))[piece.sequences]
        assert list(piece.bounds.lengths) == [sum(s == n for s, _ in here) for n in numbers]
        assert list(piece.seen_bounds.lengths) == [sum(s == n for s, _ in seen) for n in numbers]
        assert not here or seen == [t for t in tokens[: piece.rows.stop] if t[0] >= here[0][0]]
        found += here
    assert found == tokens


def in_pieces(model: TimeViper, size: int, types: str = "all") -> TimeViper:
    wrap_blocks(model, ParallelConfig(activation_checkpointing=types, tokens_per_piece=size))
    return model


def step(model: nn.Module, pack: Pack) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    out = model(pack)
    out.loss_sum.backward()
    named = model.named_parameters()
    return float(out.loss_sum.detach()), {plain_name(n): p.grad.clone() for n, p in named if p.grad is not None}


def assert_equal(a: tuple[float, dict[str, Tensor]], b: tuple[float, dict[str, Tensor]]) -> None:
    assert b[0] == pytest.approx(a[0], rel=1e-12)
    for name in a[1].keys() | b[1].keys():
        zero = torch.zeros_like((a[1] | b[1])[name])
        difference = (a[1].get(name, zero) - b[1].get(name, zero)).abs().max()
        assert difference <= 1e-9, (name, float(difference))


def model_of(schedule: str, **transv: Any) -> TimeViper:
    cfg, stages = SCHEDULES[schedule]
    whole = replace(config(stages), decoder=cfg, transv=TransVConfig(stages=dict(stages), **transv))
    model = make_model(whole)
    model.freeze(EVERYTHING)
    return model


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_losses_and_all_gradients_are_those_of_the_whole(schedule: str, size: int) -> None:
    pack = Pack.join(samples())
    whole = step(model_of(schedule), pack)
    assert len(whole[1]) > 50
    assert_equal(whole, step(in_pieces(model_of(schedule), size), pack))


@pytest.mark.parametrize("transv", [{"keys": "all"}, {"queries": "instruction+answer"}, {"prenorm": False}])
def test_with_other_forms_of_the_transfer(transv: dict[str, Any]) -> None:
    pack = Pack.join(samples())
    assert_equal(step(model_of("published", **transv), pack), step(in_pieces(model_of("published", **transv), 5), pack))


@pytest.mark.parametrize("types", ["mamba", "attention", "mlp", "transv", "tower"])
def test_with_one_type_of_block_alone(types: str) -> None:
    pack = Pack.join(samples())
    assert_equal(step(model_of("published"), pack), step(in_pieces(model_of("published"), 5, types), pack))


@pytest.mark.parametrize("pattern", [1, 2])
def test_of_text_alone_and_of_an_image(pattern: int) -> None:
    pack = samples()[pattern]
    assert_equal(step(model_of("published"), pack), step(in_pieces(model_of("published"), 4), pack))


def adapted(dropout: float) -> TimeViper:
    cfg, stages = SCHEDULES["published"]
    model = TimeViper(replace(config(stages), decoder=cfg))
    lora.attach(model, LoraConfig(rank=4, targets=["mamba", "attention", "mlp", "transv"], dropout=dropout))
    torch.manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.uniform_(-0.3, 0.3)
    model.double().freeze(("projector", "decoder", "transv"))
    return model


@pytest.mark.parametrize("size", [0, 7])
def test_adapters_on_frozen_blocks(size: int) -> None:
    pack = Pack.join(samples())
    assert_equal(step(adapted(0.0), pack), step(in_pieces(adapted(0.0), size), pack))


def test_what_dropout_drops_is_dropped_again() -> None:
    """The gradient along its own direction is the slope of the loss, with the same dice."""
    model, pack = in_pieces(adapted(0.5), 7), Pack.join(samples())
    torch.manual_seed(1)
    _, gradients = step(model, pack)
    learns = {plain_name(n): p for n, p in model.named_parameters() if p.requires_grad}
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    losses = []
    for side in (1e-5, -1e-5):
        with torch.no_grad():
            for name, g in gradients.items():
                learns[name].add_(g, alpha=side / float(norm))
        torch.manual_seed(1)
        losses.append(float(model(pack).loss_sum.detach()))
        with torch.no_grad():
            for name, g in gradients.items():
                learns[name].add_(g, alpha=-side / float(norm))
    assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(float(norm), rel=1e-5)


def test_in_bfloat16_sums_over_pieces_are_wide() -> None:
    """64 pieces give the gradients of one to the rounding of a bfloat16, not of 64 sums of them."""
    torch.manual_seed(0)
    block: Any = make_model().bfloat16().decoder.blocks[1]
    x = torch.randn(640, 24).bfloat16()
    grads = []
    for size in (0, 10):
        block.zero_grad()
        block.in_pieces(size, nullcontext, x, Span.fresh(Bounds([640]))).float().square().sum().backward()
        grads.append(torch.cat([p.grad.flatten().double() for p in block.parameters()]))
    assert (grads[0] - grads[1]).norm() <= 0.004 * grads[0].norm()


# ---- what is kept ---------------------------------------------------------------------------------------


def kept(run, *inputs: Tensor) -> int:
    """Bytes that autograd keeps of a call, its inputs apart."""
    storages: dict[int, int] = {}
    given = {t.untyped_storage().data_ptr() for t in inputs}

    def note(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        out = run()
    assert out.requires_grad
    return sum(size for place, size in storages.items() if place not in given)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_block_keeps_its_input_and_the_states_between_pieces(number: int) -> None:
    block: Any = model_of("off").decoder.blocks[number]
    x = torch.randn(640, 24, dtype=torch.float64)
    state = (6 * 4 + 2 * 3 * 5) * 3 + 6 * 4 * 5  # of the convolution and of the scan
    expected = 8 * 9 * state if number == 0 else 0
    assert kept(lambda: block.in_pieces(64, nullcontext, x, Span.fresh(Bounds([640]))), x) == expected


def test_a_lean_mixer_keeps_its_projection_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timeviper.model.mamba2.LEAN", 16)
    mixer = model_of("off").decoder.blocks[0].mixer
    assert isinstance(mixer, Mamba2)
    bounds = Bounds([30, 50])
    x = torch.randn(80, 24, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(80, 24, dtype=torch.float64)
    found = []
    for lean in (False, True):
        y = mixer(x, Span(bounds, bounds, lean=lean))
        found.append((y, *torch.autograd.grad(y, [x, *mixer.parameters()], dy)))
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-11)
    bytes_kept = kept(lambda: mixer(x, Span(bounds, bounds, lean=True)), x, *mixer.parameters())
    projection, back, state = 24 + 24 + 2 * 15 + 6, 24, (24 + 30) * 3 + 24 * 5
    assert bytes_kept == 8 * (80 * (projection + back) + 4 * state)


# ---- sharded --------------------------------------------------------------------------------------------


def test_one_and_two_sharded_ranks_have_the_gradients_of_the_whole() -> None:
    ((whole, *one),) = run_ranks(1, gradients_in_float64, [-1, 5], EVERYTHING)
    _, two = run_ranks(2, gradients_in_float64, [5, 0], EVERYTHING)
    assert len(whole[1]) > 50
    for found in (*one, *two):
        assert_equal(whole, found)


@pytest.mark.slow
def test_compiled_blocks_have_the_gradients_of_the_whole() -> None:
    pack = Pack.join(samples())
    model = model_of("published")
    wrap_blocks(model, ParallelConfig(activation_checkpointing="all", tokens_per_piece=7, compile=True))
    assert_equal(step(model_of("published"), pack), step(model, pack))
