"""Questions from a video's boundary: what one prefill of video and question gives, for every schedule."""

# pyright: reportArgumentType=false

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from model_helpers import HYBRID, SCHEDULES, Prompt, kinds, make_decoder, run
from torch.testing import assert_close

from timeviper.config import TransVStage
from timeviper.inference.generate import write
from timeviper.inference.prefill import prefill
from timeviper.inference.watching import advance, go_on, watch_prompt
from timeviper.kernels.bounds import Bounds
from timeviper.model.boundary import Boundary, counting_cut, shape_of
from timeviper.model.decoder import Decoder
from timeviper.model.state_size import boundary_bytes
from timeviper.pack import Kind

CLOSE = dict(rtol=0, atol=1e-10)
STAMPED = "3c" + "5v2i" * 20 + "7v"  # a time between the frames
PATTERNS = {"plain": "4c107v", "stamped": STAMPED, "nothing before": "60v", "one": "2c1v", "text before": "3c4i2a5c50v"}
DROP = {
    "early": TransVStage(layer=1, keep=0.5, transfer=False),
    "late": TransVStage(layer=5, keep=0.2, select="attention", transfer=False),
}
PROGRESSIVE = {
    "first": TransVStage(layer=2, keep=0.6, select="attention"),
    "second": TransVStage(layer=5, keep=0.3, select="attention", query="question"),
}
TWICE = {
    "a": TransVStage(layer=1, keep=0.7),
    "b": TransVStage(layer=2, keep=0.4),
    "c": TransVStage(layer=6, keep=0.2, select="mamba"),
}
EVERY = {**SCHEDULES, "drop": (HYBRID, DROP), "progressive": (HYBRID, PROGRESSIVE), "twice": (HYBRID, TWICE)}


def watched(decoder: Decoder, x: torch.Tensor, kind: torch.Tensor, size: int = 23) -> Boundary:
    vision = int((kind == Kind.VISION).sum())
    steps = watch_prompt(decoder, zip(x.split(size), kind.split(size)), vision, len(kind) - vision)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value


def questions(count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Of many lengths, some of them the later turns of a conversation."""
    for n in range(count):
        kind = kinds(("5i", "1i", "40i", "6i3a4i")[n % 4])
        yield torch.randint(61, (len(kind),), generator=torch.Generator().manual_seed(n)), kind


def whole(decoder: Decoder, x: torch.Tensor, kind: torch.Tensor, ids: torch.Tensor, text: torch.Tensor) -> Prompt:
    return Prompt(torch.cat([x, decoder.embed(ids).detach()]), torch.cat([kind, text]))


@pytest.mark.parametrize("schedule", EVERY)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("size", [9])
def test_questions_from_the_boundary_equal_whole_prompts(schedule: str, pattern: str, size: int) -> None:
    decoder = make_decoder(*EVERY[schedule])
    torch.manual_seed(3)
    kind = kinds(PATTERNS[pattern])
    x = torch.randn(len(kind), decoder.cfg.width, dtype=torch.float64)
    boundary = watched(decoder, x, kind)
    before = {name: t.clone() for name, t in boundary.tensors().items()}
    for ids, text in questions(4):
        prompt = whole(decoder, x, kind, ids, text)
        once = run(decoder, [prompt])
        start = go_on(decoder, boundary, ids, text, 3, size * (len(ids) % 2))
        assert start.kept == once.kept
        assert_close(start.hidden, once.hidden[-1:].detach(), **CLOSE)
        all_at_once = prefill(decoder, prompt.x, Bounds([len(prompt.x)]), prompt.kind)
        assert [s.lengths for s in start.state.segments] == [s.lengths for s in all_at_once.state.segments]
        assert torch.equal(write(decoder, start, 3)[0], write(decoder, all_at_once, 3)[0])
    for name, tensor in boundary.tensors().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("options", [dict(keys="all"), dict(queries="instruction+answer"), dict(prenorm=False)])
@pytest.mark.parametrize("schedule", ["published", "uniform", "mamba"])
def test_variants_of_the_transfer(options: dict[str, str], schedule: str) -> None:
    decoder = make_decoder(*EVERY[schedule], **options)
    kind = kinds(STAMPED)
    x = torch.randn(len(kind), decoder.cfg.width, dtype=torch.float64)
    boundary = watched(decoder, x, kind)
    for ids, text in questions(4):
        once = run(decoder, [whole(decoder, x, kind, ids, text)])
        assert_close(go_on(decoder, boundary, ids, text, 0, 16).hidden, once.hidden[-1:].detach(), **CLOSE)


@pytest.mark.parametrize("schedule", ["published", "off", "guided", "twice", "rope"])
def test_twenty_questions_in_float32_differ_as_pieces_do(schedule: str) -> None:
    decoder = make_decoder(*EVERY[schedule]).float()
    kind = kinds("4c300v")
    x = torch.randn(len(kind), decoder.cfg.width)
    boundary = watched(decoder, x, kind, 64)
    for ids, text in questions(20):
        once = run(decoder, [whole(decoder, x, kind, ids, text)]).hidden[-1:].detach()
        assert_close(
            go_on(decoder, boundary, ids, text, 0, 64).hidden, once, rtol=0, atol=2e-5 * float(once.abs().max())
        )


@pytest.mark.parametrize("schedule", EVERY)
def test_its_bytes_are_those_of_the_formula_and_of_the_meta_shapes(schedule: str) -> None:
    decoder = make_decoder(*EVERY[schedule])
    kind = kinds(STAMPED)
    x = torch.randn(len(kind), decoder.cfg.width, dtype=torch.float64)
    boundary = watched(decoder, x, kind)
    empty = decoder.empty_state(1, "meta", torch.float64)
    meta = shape_of(empty, decoder.cfg, decoder.transv_cfg, boundary.vision, boundary.text)
    found = {name: (t.shape, t.dtype) for name, t in boundary.tensors().items()}
    assert {name: (t.shape, t.dtype) for name, t in meta.tensors().items()} == found
    formula = boundary_bytes(decoder.cfg, decoder.transv_cfg, boundary.vision, boundary.text, 8)
    assert sum(formula.values()) == boundary.num_bytes() == meta.num_bytes()
    again = Boundary.of({name: t.clone() for name, t in boundary.tensors().items()}, meta)
    ids, text = next(questions(1))
    assert torch.equal(go_on(decoder, again, ids, text, 0, 0).hidden, go_on(decoder, boundary, ids, text, 0, 0).hidden)


@pytest.mark.parametrize("schedule", ["published", "twice", "off", "drop", "mamba"])
def test_a_boundary_that_was_cut_early_goes_on(schedule: str) -> None:
    """As of a video that is still watched: nothing of it knows how many frames there will be."""
    decoder = make_decoder(*EVERY[schedule])
    cut = counting_cut(decoder.segments)
    kind = kinds(STAMPED)
    x = torch.randn(len(kind), decoder.cfg.width, dtype=torch.float64)
    full = watched(decoder, x, kind)
    early = cut_early(decoder, x, kind, cut)
    late = advance(decoder, early, 11)
    assert late.cut == full.cut
    for name, tensor in late.tensors().items():
        assert_close(tensor, full.tensors()[name], **CLOSE)
    for ids, text in questions(3):
        expected = go_on(decoder, full, ids, text, 0, 0).hidden
        assert_close(go_on(decoder, early, ids, text, 0, 13).hidden, expected, **CLOSE)
        assert_close(go_on(decoder, late, ids, text, 0, 13).hidden, expected, **CLOSE)


def cut_early(decoder: Decoder, x: torch.Tensor, kind: torch.Tensor, cut: int) -> Boundary:
    state = decoder.empty_state()
    with torch.inference_mode():
        for segment, own in zip(decoder.segments[:cut], state.segments):
            x = decoder.run(segment, x, Bounds([len(kind)]), own)
    index = torch.arange(len(kind), dtype=torch.int32)
    held = slice(0, len(kind) if cut < len(decoder.segments) else 0)
    vision = int((kind == Kind.VISION).sum())
    return Boundary(state.segments[:cut], x[held], kind[held], index[held], vision, len(kind))


def test_what_cannot_follow_a_video() -> None:
    decoder = make_decoder(*EVERY["published"])
    kind = kinds("2c20v")
    boundary = watched(decoder, torch.randn(22, 24, dtype=torch.float64), kind)
    with pytest.raises(ValueError, match="at least one token, none of them vision"):
        go_on(decoder, boundary, torch.zeros(0, dtype=torch.int64), kinds(""), 0, 0)
    with pytest.raises(ValueError, match="none of them vision"):
        go_on(decoder, boundary, torch.zeros(2, dtype=torch.int64), kinds("1i1v"), 0, 0)
    decoder.cfg = replace(decoder.cfg, max_tokens=24)
    with pytest.raises(ValueError, match="a sequence of 25 tokens is longer than"):
        go_on(decoder, boundary, torch.zeros(3, dtype=torch.int64), kinds("3i"), 0, 0)
