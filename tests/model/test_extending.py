"""What is new by its entries works everywhere: the examples of docs/extending.md, registered while a test runs."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

import typing
from dataclasses import replace

import own_selections
import pytest
import torch
from cost_helpers import ALL, build, counted, hybrid, make_pack, saved_bytes
from model_helpers import HYBRID, make_decoder, make_prompts, run
from torch.testing import assert_close
from viper_helpers import config, make_model, samples

from timeviper.config import Recipe, TransVConfig, TransVStage
from timeviper.config import model as settings
from timeviper.config.checks.model import model_problems
from timeviper.config.fields import field_types
from timeviper.config.presets import tiny
from timeviper.config.shape import PackShape
from timeviper.datamodules.build import pack_format
from timeviper.inference.prefill import kept_bytes, prefill_chunks
from timeviper.inspection.transfer import Transferred, look_at
from timeviper.kernels.bounds import Bounds
from timeviper.model import selection
from timeviper.model.flops import Execution, executed_flops, total
from timeviper.pack import Kind
from timeviper.planning.activations import saved_activations

CLOSE = dict(rtol=0, atol=1e-9)


def test_names_that_settings_take_are_those_of_the_tables() -> None:
    select = typing.get_args(field_types(TransVStage)["select"])
    assert select == tuple(settings.SELECTION_FACTS) == tuple(selection.SELECTIONS)


# ---- a selection ----------------------------------------------------------------------------------------

STAGES = {"early": TransVStage(1, 0.5, "norm"), "late": TransVStage(4, 0.2, "latest")}  # both before an MLP


@pytest.fixture
def selections(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, facts in own_selections.FACTS.items():
        monkeypatch.setitem(settings.SELECTION_FACTS, name, facts)
        monkeypatch.setitem(selection.SELECTIONS, name, own_selections.SELECTIONS[name])


@pytest.mark.usefixtures("selections")
def test_an_own_selection_chooses_in_training() -> None:
    decoder, prompts = make_decoder(HYBRID, STAGES), make_prompts()
    out = run(decoder, prompts)
    expected, start = [], 0
    for prompt in prompts:
        bounds = Bounds([len(prompt.kind)])
        x = decoder.run(decoder.segments[0], prompt.x, bounds, None)  # as it is before the first transfer
        vision = torch.nonzero(prompt.kind == Kind.VISION).squeeze(1)
        half, fifth = (max(1, int(keep * len(vision))) if len(vision) else 0 for keep in (0.5, 0.2))
        best = vision[x[vision].norm(dim=1).topk(half).indices.sort().values]
        text = torch.nonzero(prompt.kind != Kind.VISION).squeeze(1)
        expected += (start + torch.cat([text, best[half - fifth :]]).sort().values).tolist()
        start += len(prompt.kind)
    assert out.index.tolist() == expected
    out.hidden.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in decoder.transv.parameters())


@pytest.mark.usefixtures("selections")
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_own_selection_chooses_in_pieces_of_a_prompt(size: int) -> None:
    decoder = make_decoder(HYBRID, STAGES)
    (prompt,) = make_prompts(["2c40v5i"])
    whole = run(decoder, [prompt])
    pieces = prefill_chunks(decoder, zip(prompt.x.split(size), prompt.kind.split(size)), prompt.vision, 7)
    assert pieces.kept == whole.kept
    assert_close(pieces.hidden[0], whole.hidden[-1], **CLOSE)
    pair = 2 * HYBRID.kv_heads * HYBRID.head_dim * 8  # key and value, float64
    dropped, cached = (40 - 20) + (20 - 8), (20 + 7) + (8 + 7)
    assert kept_bytes(decoder, 40, 7) == (cached + dropped) * pair + (40 + 7) * (HYBRID.width * 8 + 4)


@pytest.mark.usefixtures("selections")
def test_the_probe_sees_what_an_own_selection_drops() -> None:
    model, found = make_model(config(STAGES)).eval(), Transferred()
    with torch.no_grad():
        for pack in samples():
            look_at(model, pack, found)
    figures = found.figures(found.numbers())
    assert figures.keys() >= {"moved/early", "moved/late", "vision_attention/early", "kl"}
    assert not any(name.startswith("entropy") for name in figures)  # it is of stages that choose by attention
    assert 0 < figures["moved/early"] < figures["vision_attention/early"] < 1


@pytest.mark.usefixtures("selections")
def test_checks_and_the_plan_know_an_own_selection() -> None:
    model = replace(tiny(), transv=TransVConfig(stages=dict(STAGES)))
    assert list(model_problems(model)) == []
    assert pack_format(Recipe(model=model)).supervise == "all"
    cfg = hybrid()
    cfg.transv = TransVConfig(stages={"early": TransVStage(5, 0.5, "norm"), "late": TransVStage(8, 0.1, "latest")})
    pack = make_pack((6, 4, 0), (20, 30, 15))
    shape = PackShape.of(pack)
    forward, backward = counted(build(cfg, ALL), pack)
    assert total(executed_flops(cfg, shape, ALL, Execution("cpu"))).total == pytest.approx(forward + backward, rel=1e-3)
    law = saved_activations(cfg, shape, ALL, Execution("cpu"), 4)
    assert sum(saved.kept for saved in law) == pytest.approx(saved_bytes(build(cfg, ALL), pack), rel=0.02)


def test_a_name_without_an_entry_is_refused() -> None:
    model = replace(tiny(), transv=TransVConfig(stages={"early": TransVStage(1, 0.5, "norm")}))
    (finding,) = model_problems(model)
    assert (finding.key, finding.message) == ("model.transv.stages.early.select", "must be one of uniform, attention.")
