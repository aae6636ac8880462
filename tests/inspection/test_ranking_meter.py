"""The meter of rankings: agreement by hand, KL against models that choose otherwise, and when it warns."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from model_helpers import HYBRID, PUBLISHED
from viper_helpers import TOWER, make_model, sample, samples

from timeviper.callbacks.transfer_meter import TransferMeter
from timeviper.config import ModelConfig, TransVConfig
from timeviper.config.callbacks import TransferConfig
from timeviper.inspection.ranking import RankingSums, agreement, divergence
from timeviper.inspection.transfer import Transferred, look_at
from timeviper.kernels.bounds import Bounds
from timeviper.model.selection import SELECTIONS, View
from timeviper.model.transv_stages import other_stages
from timeviper.model.viper import TimeViper
from timeviper.pack import Kind, Pack

LATE = PUBLISHED["late"]
NEW = {"kl_ranked", "kl_uniform", "kl_random", "agreement/late"}


def small(**stages: Any) -> ModelConfig:
    transv = TransVConfig(stages={**PUBLISHED, **stages})
    return ModelConfig(preset="", towers={"main": TOWER}, decoder=HYBRID, transv=transv)


@torch.no_grad()
def look(model: TimeViper, packs: list[Pack]) -> Transferred:
    found = Transferred()
    for pack in packs:
        look_at(model, pack, found)
    return found


@pytest.mark.parametrize(
    ("kept", "wanted"),
    [([3, 7], 1.0), ([3, 0], (0.5 - 0.25) / 0.75), ([0, 1], (0 - 0.25) / 0.75)],
    ids=["the same", "one of two", "none"],
)
def test_agreement_is_overlap_beyond_chance(kept: list[int], wanted: float) -> None:
    """Eight vision tokens, of which the question looks at 3 and 7 most."""
    scores = torch.tensor([0.0, 0.1, 0.1, 0.2, 0.9, 0.1, 0.1, 0.1, 0.3, 0.5])  # context, 8 vision, instruction
    kind = torch.tensor([Kind.CONTEXT, *[Kind.VISION] * 8, Kind.INSTRUCTION])
    scores[4], scores[8] = 0.9, 0.8
    asked = cast(View, type("Asked", (), {"vision": [8], "attention": scores, "kind": kind})())
    mask = torch.zeros(8, dtype=torch.bool).index_fill(0, torch.tensor(kept), True)
    total, compared = agreement(mask, asked, [2])
    assert (total, compared) == (pytest.approx(wanted), 1)
    assert agreement(torch.ones(8, dtype=torch.bool), asked, [8]) == (0.0, 0)  # no choice


@torch.no_grad()
def test_every_kl_is_that_of_a_model_that_chooses_so() -> None:
    model, packs = make_model(small()).eval(), samples()[:2]
    found = look(model, packs)
    figures = found.figures(found.numbers())
    assert figures.keys() >= NEW
    (video,) = [pack for pack in packs if pack.num_frames]
    with other_stages(model, TransVConfig()):
        p = model(video, label_logits=True).label_logits
    stages = {"early": PUBLISHED["early"], "late": replace(LATE, select="uniform")}
    for name, other in (("kl_ranked", PUBLISHED), ("kl_uniform", stages)):
        with other_stages(model, TransVConfig(stages=dict(other))):
            q = model(video, label_logits=True).label_logits
        assert figures[name] == pytest.approx(float(divergence(p, q).mean()), rel=1e-12)
    assert found.ranking.sequences == 1  # text alone has nothing to choose
    assert figures["kl_random"] > 0
    assert "random" not in SELECTIONS


@torch.no_grad()
def test_packs_change_nothing_and_every_look_is_the_same() -> None:
    model, packs = make_model(small()).eval(), samples()
    one_by_one, again, together = (look(model, these) for these in (packs, packs, [Pack.join(packs)]))
    assert one_by_one.numbers() == again.numbers()
    assert together.numbers() == pytest.approx(one_by_one.numbers(), rel=1e-9)


@torch.no_grad()
def test_the_question_agrees_with_itself_and_uniform_is_not_judged() -> None:
    model = make_model(small(late=replace(LATE, query="question"))).eval()
    found = look(model, samples())
    assert found.figures(found.numbers())["agreement/late"] == pytest.approx(1.0)
    uniform = make_model(small(late=replace(LATE, select="uniform"))).eval()
    found = look(uniform, samples())
    assert not NEW & found.figures(found.numbers()).keys()
    calls = [0]
    uniform.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    look(uniform, samples()[:1])
    assert calls == [3]  # a stage each, and one more: what ranks nothing costs nothing


def sums(differences: list[float]) -> RankingSums:
    squares, total = sum(d * d for d in differences), sum(differences)
    return RankingSums(0.7 * len(differences), 0.1, 0.2, total, squares, len(differences))


def test_only_what_is_clearly_worse_than_random_is() -> None:
    assert sums([0.5, 0.6, 0.4, 0.5]).worse_than_random()
    assert not sums([0.5, 0.6, 0.4]).worse_than_random()  # too few to tell
    assert not sums([-0.5, 1.0, -0.6, 0.7]).worse_than_random()
    assert not sums([-0.1] * 8).worse_than_random()
    assert not sums([0.0] * 8).worse_than_random()
    mean, spread = 0.2, math.sqrt(sum((d - 0.2) ** 2 for d in (0.1, 0.3, 0.1, 0.3)) / 3 / 4)
    assert sums([0.1, 0.3, 0.1, 0.3]).worse_than_random() == (mean > 2 * spread)


class Alone:
    """As much of a Trainer as the meter asks for."""

    global_step, is_global_zero, loggers, world_size = 250, True, (), 1


def test_a_bad_ranking_is_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    meter, model = TransferMeter(TransferConfig(every=250)), make_model(small())

    def measured(trainer: Any, model: Any) -> dict[str, float]:
        meter.doubt = sums([0.5, 0.6, 0.4, 0.5])
        return {"agreement/late": -0.25}

    monkeypatch.setattr(meter, "_measure", measured)
    module = cast(Any, type("Module", (), {"model": model})())
    with caplog.at_level(logging.WARNING, logger="timeviper"):
        for _ in range(2):
            meter.on_train_batch_end(cast(Any, Alone()), module)
    (record,) = caplog.records
    said = record.getMessage()
    assert said.startswith(
        "step 250: TransV keeps tokens that are worth less than random ones: answers change by 0.7 nats"
    )
    assert "late -0.25" in said
    assert "try model.transv.stages.late.query=question. Said once" in said


def test_the_bounds_of_labels_are_those_of_sequences() -> None:
    """Labels of text alone are counted to nobody."""
    model = make_model(small()).eval()
    pack = Pack.join([sample("3c2a", 0, 2), sample("2c12v3i4a", 3, 1)])
    found = look(model, [pack])
    assert found.ranking.sequences == 1
    assert Bounds(pack.lengths).num_sequences == 2
