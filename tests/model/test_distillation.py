"""`train.distill`: answers with TransV are drawn to those of the same weights without it."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch
from cost_helpers import ALL, build, counted, hybrid, make_pack
from model_helpers import PUBLISHED
from torch.testing import assert_close
from viper_helpers import config, make_model, samples

from timeviper.config.load import load_recipe
from timeviper.config.shape import PackShape
from timeviper.errors import ConfigError
from timeviper.kernels import dispatch
from timeviper.kernels.divergence import linear_divergence, linear_divergence_reference
from timeviper.model.flops import Execution, executed_flops, model_flops, total
from timeviper.model.transv_stages import other_stages
from timeviper.model.viper import TimeViper
from timeviper.pack import IGNORE, Pack
from timeviper.weights.export import build_model


@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_the_divergence_equals_the_plain_form_and_so_do_its_gradients(chunk: int) -> None:
    torch.manual_seed(0)
    shapes = ((20, 6), (20, 6), (31, 6))
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    hidden, taught, weight = inputs
    found = linear_divergence(hidden, taught, weight, chunk)
    found.mul(0.7).backward()
    ours = [t.grad for t in inputs]
    for t in inputs:
        t.grad = None
    plain = linear_divergence_reference(hidden, taught, weight)
    plain.mul(0.7).backward()
    assert_close(found, plain)
    assert ours[1] is None
    assert taught.grad is None
    assert_close(ours[0], hidden.grad)
    assert_close(ours[2], weight.grad)
    assert_close(linear_divergence(hidden, hidden, weight), torch.zeros((), dtype=torch.float64))


def test_the_divergence_of_far_answers_in_working_precision() -> None:
    """Logits of a hundred: softmax is all but one-hot, and nothing is infinite."""
    torch.manual_seed(0)
    hidden, taught, weight = (torch.randn(n, 16) * scale for n, scale in ((300, 10), (300, 10), (97, 3)))
    exact = linear_divergence_reference(hidden.double(), taught.double(), weight.double())
    assert_close(linear_divergence(hidden, taught, weight).double(), exact, rtol=1e-5, atol=0)
    rounded = linear_divergence(hidden.bfloat16(), taught.bfloat16(), weight.bfloat16())
    assert_close(rounded.double(), exact, rtol=0.02, atol=0)
    with dispatch.use(cross_entropy="reference"):
        assert_close(linear_divergence(hidden, taught, weight).double(), exact, rtol=1e-5, atol=0)


def plain_divergence(model, pack: Pack) -> torch.Tensor:
    with torch.no_grad(), other_stages(model, replace(model.decoder.transv_cfg, stages={})):
        p = model(pack, label_logits=True).label_logits.log_softmax(-1)
    q = model(pack, label_logits=True).label_logits.log_softmax(-1)
    return (p.exp() * (p - q)).sum()


def test_what_is_taught_and_its_gradients_are_those_of_the_definition() -> None:
    model = make_model(config(PUBLISHED)).train()
    for pack in (*samples(), Pack.join(samples())):
        model.zero_grad()
        plain = 0.3 * plain_divergence(model, pack)
        if pack.num_labels:
            plain.backward()
        expected = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
        model.zero_grad()
        model.distill = 0.3
        out = model(pack)
        model.distill = 0.0
        assert out.divergence_sum is not None
        assert_close(out.divergence_sum, plain)
        out.divergence_sum.backward()
        for name, p in model.named_parameters():
            if expected[name] is not None and p.grad is not None:
                assert_close(p.grad, expected[name], msg=lambda m, name=name: f"{name}: {m}")


def test_a_pack_is_taught_what_its_sequences_are() -> None:
    model = make_model(config(PUBLISHED)).train()
    model.distill = 1.0
    together = model(Pack.join(samples())).divergence_sum
    assert_close(together, sum(model(pack).divergence_sum for pack in samples()))
    assert together > 1e-4


def test_the_default_and_evaluation_know_nothing_of_it() -> None:
    model, pack = make_model(config(PUBLISHED)), samples()[0]
    whole = model.train()(pack)
    assert whole.divergence_sum is None
    model.distill = 1.0
    assert model.eval()(pack).divergence_sum is None
    assert torch.equal(model.train()(pack).loss_sum, whole.loss_sum)
    assert (pack.labels != IGNORE).any()


def test_a_recipe_sets_it_and_the_plan_counts_the_pass_of_the_teacher() -> None:
    recipe = load_recipe("tiny/stage2_instruct", ["train.distill=0.5", 'train.init_from=""'])
    assert cast(TimeViper, build_model(recipe)).distill == 0.5
    pack = make_pack((6, 4, 0), (20, 30, 15))
    shape = PackShape.of(pack)
    model = cast(TimeViper, build(hybrid(), ALL).train())
    model.distill = 0.5
    forward, backward = counted(model, pack)
    parts = executed_flops(hybrid(), shape, ALL, Execution("cpu"), distills=True)
    early = parts["logits"].backward  # gradients of the loss and of the divergence are made in the forward pass
    assert total(parts).forward + early == pytest.approx(forward, rel=1e-3)
    assert total(parts).backward - early == pytest.approx(backward, rel=1e-3)
    more = total(model_flops(hybrid(), shape, ALL, distills=True)).forward
    less = total(model_flops(hybrid(), shape, ALL)).forward
    assert 1.3 < more / less < 2.2  # no tower, but all vision tokens


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.transv.stages.early=null", "model.transv.stages.late=null"], "no stage of model.transv.stages drops"),
        (["train.trainable=[tower]"], "none of which is in train.trainable"),
        (["train.distill=-1"], "0 or more"),
    ],
)
def test_distilling_without_anything_to_teach_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe("tiny/stage2_instruct", ["train.distill=1", *overrides])
