"""Cut edges against runs that never had the hidden tokens, block by block and through whole decoders."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from model_helpers import HYBRID, PATTERNS, PLAIN, PUBLISHED, Prompt, make_decoder, make_prompts, run
from torch import Tensor

from timeviper.analysis.cut import cut, cutting, mixers
from timeviper.kernels.bounds import Bounds
from timeviper.model.state import Span
from timeviper.pack import Kind

FAMILIES = {
    "hybrid": HYBRID,
    "transformer": PLAIN,
    "attention alone": replace(HYBRID, layout="*-*-"),
    "attention at last": replace(HYBRID, layout="M-M-*"),
}
HEARING = (Kind.INSTRUCTION, Kind.ANSWER)


def of_kinds(prompts: list[Prompt], *kinds: Kind) -> Tensor:
    kind = torch.cat([p.kind for p in prompts])
    return torch.isin(kind, torch.tensor(kinds, dtype=kind.dtype))


def edge(prompts: list[Prompt], *rows: Kind) -> tuple[Tensor, Tensor]:
    return of_kinds(prompts, Kind.VISION), of_kinds(prompts, *(rows or HEARING))


def text_only(prompts: list[Prompt]) -> list[Prompt]:
    return [Prompt(p.x[p.kind != Kind.VISION], p.kind[p.kind != Kind.VISION]) for p in prompts]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_cut_everywhere_is_the_run_that_never_saw_the_video(family: str) -> None:
    decoder, prompts = make_decoder(FAMILIES[family]), make_prompts()
    hide, rows = edge(prompts)
    plain = run(decoder, prompts).hidden
    with cutting(decoder, hide, rows):
        cut_all = run(decoder, prompts).hidden
    text = run(decoder, text_only(prompts)).hidden
    torch.testing.assert_close(cut_all[rows], text[rows[~hide]], rtol=0, atol=1e-13)
    before = torch.cat([(p.kind > Kind.VISION).cumsum(0) == 0 for p in prompts])  # what no cut row comes before
    assert torch.equal(cut_all[before], plain[before])
    assert not torch.equal(cut_all[hide], plain[hide])  # but frames behind an answer or a text see it changed
    assert torch.equal(run(decoder, prompts).hidden, plain)  # nothing is left behind
    for some in ([prompts[0]], [p for p in prompts if p.vision]):  # what no video stands in is not touched
        hide, _ = edge(some)
        with cutting(decoder, hide, ~hide, exact=True):
            cut_all = run(decoder, some).hidden
        assert torch.equal(cut_all[~hide], run(decoder, text_only(some)).hidden)  # bit for bit


@pytest.mark.parametrize("letter", "M*")
@torch.no_grad()
def test_one_mixer_alone(letter: str) -> None:
    """On a pack, with text between the frames, against every sequence on its own without its hidden tokens."""
    decoder, prompts = make_decoder(HYBRID), make_prompts()
    block = HYBRID.layout.index(letter)
    mixer = cast(Any, decoder.blocks[block]).mixer
    hide, rows = edge(prompts, Kind.ANSWER)
    h = torch.cat([p.x for p in prompts])
    bounds = Bounds([len(p.kind) for p in prompts])
    found = cut(mixer, h, bounds, hide, rows)
    plain = mixer(h, Span.fresh(bounds))
    assert torch.equal(found[~rows], plain[~rows])
    assert not torch.equal(found, plain)
    for p, y in zip(prompts, found.split([len(p.kind) for p in prompts])):
        alone = p.x[p.kind != Kind.VISION]
        expected = mixer(alone, Span.fresh(Bounds([len(alone)])))
        is_row = p.kind == Kind.ANSWER
        torch.testing.assert_close(y[is_row], expected[is_row[p.kind != Kind.VISION]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stages", [{}, PUBLISHED], ids=["no stage", "stages"])
@torch.no_grad()
def test_packs_equal_single_runs(family: str, stages: dict) -> None:
    if stages and family != "hybrid":
        pytest.skip("the schedule is of the hybrid's layout")
    decoder, prompts = make_decoder(FAMILIES[family], stages), make_prompts()
    hide, rows = edge(prompts, Kind.INSTRUCTION)
    some = mixers(decoder.cfg.layout)[1:]
    with cutting(decoder, hide, rows, some, list(decoder.transv)[:1]):
        out = run(decoder, prompts)
    for p, hidden in zip(prompts, out.hidden.split(list(out.bounds.lengths))):
        with cutting(decoder, *edge([p], Kind.INSTRUCTION), some, list(decoder.transv)[:1]):
            torch.testing.assert_close(hidden, run(decoder, [p]).hidden, rtol=0, atol=1e-11)


@pytest.mark.parametrize("stages", [{}, PUBLISHED], ids=["no stage", "stages"])
@torch.no_grad()
def test_another_video_changes_no_row_that_is_cut(stages: dict) -> None:
    decoder, prompts = make_decoder(HYBRID, stages), make_prompts()
    others = [Prompt(torch.where((p.kind == Kind.VISION)[:, None], -3 * p.x, p.x), p.kind) for p in prompts]
    hide, rows = edge(prompts)
    with cutting(decoder, hide, rows, transfers=list(decoder.transv)):
        first, second = run(decoder, prompts), run(decoder, others)
    assert torch.equal(first.hidden[rows[first.index]], second.hidden[rows[second.index]])
    with cutting(decoder, hide, rows):
        first, second = run(decoder, prompts), run(decoder, others)
    leaks = not torch.equal(first.hidden[rows[first.index]], second.hidden[rows[second.index]])
    assert leaks == bool(stages)  # TransV is an edge of its own
    with cutting(decoder, hide, rows, [i for i in mixers(HYBRID.layout) if HYBRID.layout[i] == "*"]):
        first, second = run(decoder, prompts), run(decoder, others)
    assert not torch.equal(first.hidden[rows[first.index]], second.hidden[rows[second.index]])  # the Mamba road


@torch.no_grad()
def test_behind_stages_what_is_left_of_the_hidden_tokens_is_hidden() -> None:
    """Blocks behind the last stage alone: the same as the short stream run by hand from there."""
    decoder, prompts = make_decoder(HYBRID, PUBLISHED), make_prompts()
    hide, rows = edge(prompts, Kind.ANSWER)
    last = decoder.segments[-1]
    caught: dict[str, Tensor] = {}
    handle = decoder.blocks[last.blocks.start].register_forward_pre_hook(lambda _, args: caught.update(x=args[0]))
    with cutting(decoder, hide, rows, [i for i in last.blocks if i in mixers(HYBRID.layout)]):
        out = run(decoder, prompts)
    handle.remove()
    x, gone, hears = caught["x"], hide[out.index], rows[out.index]
    assert 0 < int(gone.sum()) < int(hide.sum())
    for i in last.blocks:
        block = cast(Any, decoder.blocks[i])
        if HYBRID.layout[i] == "-":
            x = block(x, Span.fresh(out.bounds))
        else:
            x = x + cut(block.mixer, block.norm(x), out.bounds, gone, hears)
    assert torch.equal(decoder.norm_f(x), out.hidden)


@torch.no_grad()
def test_a_transfer_alone() -> None:
    """Without its delta the instruction is as behind a pure drop; the answer never received any."""
    decoder, prompts = make_decoder(HYBRID, {"only": replace(PUBLISHED["early"], layer=7)}), make_prompts()
    hide, rows = edge(prompts, Kind.INSTRUCTION)
    with cutting(decoder, hide, rows, [], ["only"]):
        found = run(decoder, prompts).hidden
    with decoder.transfer(False):
        assert torch.equal(found, run(decoder, prompts).hidden)
    assert not torch.equal(found, run(decoder, prompts).hidden)


@torch.no_grad()
def test_two_edges_at_once_each_in_its_blocks() -> None:
    """Behind stages, inner and outer of the same decoder: cuts of disjoint rows are one cut of both."""
    decoder, prompts = make_decoder(HYBRID, PUBLISHED), make_prompts()
    hide, question = edge(prompts, Kind.INSTRUCTION)
    answer = of_kinds(prompts, Kind.ANSWER)
    with cutting(decoder, hide, question, transfers=["early"]), cutting(decoder, hide, answer):
        both = run(decoder, prompts).hidden
    with cutting(decoder, hide, question | answer, transfers=["early"]):
        one = run(decoder, prompts).hidden
    torch.testing.assert_close(both, one, rtol=0, atol=1e-12)
    assert decoder.watcher is None


@torch.no_grad()
def test_nothing_hidden_and_nothing_left() -> None:
    decoder, prompts = make_decoder(HYBRID), make_prompts(("5c", "1v1i", "3v"))
    plain = run(decoder, prompts).hidden
    nothing = torch.zeros(len(plain), dtype=torch.bool)
    for hide, rows in [(nothing, ~nothing), (~nothing, nothing), (nothing, nothing)]:
        with cutting(decoder, hide, rows):
            assert torch.equal(run(decoder, prompts).hidden, plain)


@torch.no_grad()
def test_float32_is_near() -> None:
    wide, narrow = make_decoder(HYBRID), make_decoder(HYBRID).float()
    prompts = make_prompts()
    hide, rows = edge(prompts)
    with cutting(wide, hide, rows), cutting(narrow, hide, rows):
        expected = run(wide, prompts).hidden
        found = run(narrow, [Prompt(p.x.float(), p.kind) for p in prompts]).hidden
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-4)


def test_what_cannot_be_cut_is_said() -> None:
    decoder, prompts = make_decoder(HYBRID, PUBLISHED), make_prompts(PATTERNS[:1])
    hide, rows = edge(prompts)
    for blocks, says in [([1], r"block 1 is an MLP .*0, 2, 3, 5, 6"), ([8], "block 8 is none of 0 to 7")]:
        with pytest.raises(ValueError, match=says), cutting(decoder, hide, rows, blocks):
            pass
    with pytest.raises(ValueError, match=r"no TransV stage middle .* are early or late"):
        cutting(decoder, hide, rows, None, ["middle"]).__enter__()
    with pytest.raises(ValueError, match="without itself"), cutting(decoder, hide, hide):
        run(decoder, prompts)
    with pytest.raises(ValueError, match="without a state"), cutting(decoder, hide, rows):
        run(decoder, prompts, state=decoder.empty_state(1))
