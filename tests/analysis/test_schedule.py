"""The solver against planted optima and against loops over every schedule; costs against the planner's FLOPs."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from timeviper.analysis.schedule import BudgetError, Floats, Step, Table, all_schedules
from timeviper.analysis.schedule_cost import BUDGETS, block_costs
from timeviper.config import ModelConfig, TransVConfig, TransVStage
from timeviper.config.presets import PRESETS
from timeviper.config.shape import PackShape, kept_share
from timeviper.model.flops import model_flops


def table(loss: list[list[float]], layers: list[int], ratios: tuple[float, ...]) -> Table:
    layer = np.array([[b] * len(ratios) for b in layers])
    return Table(ratios, np.array(loss, float), layer, tuple(("uniform",) * len(ratios) for _ in layers))


def linear_costs(blocks: int, ratios: tuple[float, ...], text: float = 0.2) -> dict[str, Floats]:
    """Every block alike: a part for text, the rest for the share of vision tokens."""
    cost = np.array([[text + (1 - text) * r] * blocks for r in (1.0, *ratios)])
    return {"flops": cost / cost[0].sum()}


def by_hand(table: Table, cost: Floats, budget: float, most: int) -> tuple[float, float]:
    """The least loss within a budget and its cost, in plain loops."""
    n, R = table.loss.shape
    blocks, best = cost.shape[1], (math.inf, math.inf)
    for k in range(most + 1):
        for places in combinations(range(n), k):
            for shares in combinations(range(R), k):
                loss, before = 0.0, None
                for p, r in zip(places, shares):
                    gone = 0.0 if before is None or math.isinf(table.loss[p, before]) else table.loss[p, before]
                    loss += max(0.0, table.loss[p, r] - gone)
                    before = r
                seen = [0] * blocks
                for p, r in zip(places, shares):
                    seen[table.layer[p, r] :] = [r + 1] * (blocks - table.layer[p, r])
                total = float(sum(cost[seen[b], b] for b in range(blocks)))
                if math.isfinite(loss) and total <= budget + 1e-12:
                    best = min(best, (loss, total))
    return best


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_the_solver_finds_what_loops_over_every_schedule_find(data: st.DataObject) -> None:
    n, R = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    blocks = data.draw(st.integers(n, 8))
    layers = sorted(data.draw(st.sets(st.integers(0, blocks - 1), min_size=n, max_size=n)))
    cells = st.one_of(st.integers(0, 8).map(lambda v: v / 8), st.just(math.inf))  # ties, and what was not measured
    loss = data.draw(st.lists(st.lists(cells, min_size=R, max_size=R), min_size=n, max_size=n))
    ratios = tuple(sorted(data.draw(st.sets(st.sampled_from([0.75, 0.5, 0.25, 0.1]), min_size=R, max_size=R)))[::-1])
    made = table(loss, layers, ratios)
    costs = data.draw(st.lists(st.integers(1, 9), min_size=blocks, max_size=blocks))
    cost = np.array([[c * (0.1 + 0.9 * r) for c in costs] for r in (1.0, *ratios)])
    cost = {"flops": cost / cost[0].sum()}
    budget, most = data.draw(st.floats(0.05, 1.0)), data.draw(st.integers(1, 3))
    expected = by_hand(made, cost["flops"], budget, most)
    try:
        (found,) = all_schedules(made, cost, most).best({"flops": budget})
    except BudgetError:
        assert expected == (math.inf, math.inf)
        return
    assert found.loss == pytest.approx(expected[0], abs=1e-12)
    assert found.costs["flops"] == pytest.approx(expected[1], rel=1e-12)
    keeps = [step.keep for step in found.steps]
    assert [step.layer for step in found.steps] == sorted({step.layer for step in found.steps})
    assert keeps == sorted(set(keeps), reverse=True)


@given(
    place=st.tuples(st.integers(0, 6), st.integers(1, 6)),
    share=st.sampled_from([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]),
)
@settings(max_examples=40, deadline=None)
def test_a_planted_schedule_is_found(place: tuple[int, int], share: tuple[int, int]) -> None:
    """Two cliffs: each ratio is free from its own place on and dear before; the cheapest free schedule is planted."""
    ratios, (first, gap) = (0.8, 0.5, 0.3, 0.1), place
    second = min(first + gap, 7)
    loss = np.full((8, 4), 1.0)
    loss[first:, : share[0] + 1] = 0.0
    loss[second:, : share[1] + 1] = 0.0
    made = table(loss.tolist(), list(range(8)), ratios)
    every = all_schedules(made, costs := linear_costs(8, ratios))
    planted = (Step(first, ratios[share[0]], "uniform"), Step(second, ratios[share[1]], "uniform"))
    blocks = [(0 if b < first else share[0] + 1 if b < second else share[1] + 1) for b in range(8)]
    budget = float(sum(costs["flops"][s, b] for b, s in enumerate(blocks)))
    (found,) = every.best({"flops": budget})
    assert found.steps == planted
    assert found.loss == 0.0
    assert found.costs["flops"] == pytest.approx(budget)
    with pytest.raises(BudgetError, match=r"budget\.flops=0\.1 cannot be met .* keep 0\.1 \(uniform\) before block 0"):
        every.best({"flops": 0.1})


def test_budgets_hold_together_and_the_nearest_is_told() -> None:
    ratios = (0.5, 0.1)
    made = table([[0.3, 0.9], [0.1, 0.2]], [0, 5], ratios)
    costs = linear_costs(10, ratios)
    costs["kv"] = np.array([[0.0] * 7 + [r] + [0.0] * 2 for r in (1.0, *ratios)])
    every = all_schedules(made, costs)
    (none,) = every.best({})
    assert (none.steps, none.loss, none.costs) == ((), 0.0, pytest.approx({"flops": 1.0, "kv": 1.0}))
    assert every.best({"flops": 0.9})[0].steps == (Step(5, 0.5, "uniform"),)
    assert every.best({"flops": 0.9, "kv": 0.2})[0].steps == (Step(5, 0.1, "uniform"),)
    assert len(every.best({"flops": 1.0}, 5)) == 5
    with pytest.raises(
        BudgetError, match=r"budget\.flops=0\.2 and budget\.kv=0\.05 cannot be met .* budget\.flops=0\.28"
    ):
        every.best({"flops": 0.2, "kv": 0.05})


def test_the_frontier_is_what_nothing_beats() -> None:
    rng = np.random.default_rng(0)
    ratios = (0.5, 0.25, 0.1)
    every = all_schedules(table(rng.random((6, 3)).tolist(), list(range(6)), ratios), linear_costs(6, ratios))
    front = every.frontier("flops")
    points = [(s.costs["flops"], s.loss) for s in front]
    assert points == sorted(points)
    assert [loss for _, loss in points] == sorted((loss for _, loss in points), reverse=True)
    for cost, loss in zip(every.costs["flops"], every.loss):
        assert any(c <= cost + 1e-12 and d <= loss + 1e-12 for c, d in points)
    assert front[-1].steps == ()


def test_fifty_six_layers_and_eight_ratios_take_seconds() -> None:
    """nano9b: costs of its shapes and every schedule of three stages; the time is told, not asserted."""
    model, ratios = replace(PRESETS["nano9b"](), tokenizer=""), (0.9, 0.75, 0.5, 0.35, 0.25, 0.1, 0.05, 0.01)
    began = time.monotonic()
    costs = block_costs(model, [PackShape((256,), (300,), 20)], ratios)
    depth = len(model.decoder.layout)
    loss = np.outer(np.linspace(2, 0.01, depth), 1 - np.array(ratios))
    every = all_schedules(table(loss.tolist(), list(range(depth)), ratios), costs)
    assert len(every.loss) == 1 + depth * 8 + math.comb(depth, 2) * 28 + math.comb(depth, 3) * 56
    (found,) = every.best({"flops": 0.6})
    assert 0.55 < found.costs["flops"] <= 0.6
    print(f"{len(every.loss):,} schedules of {depth} blocks in {time.monotonic() - began:.1f} s")


@pytest.mark.parametrize("preset", ["tiny", "nano9b"])
def test_costs_are_the_planners(preset: str) -> None:
    """Summed over the blocks that a schedule leaves to each share: FLOPs of the model with these stages."""
    model, ratios = PRESETS[preset](), (0.5, 0.1)
    shapes = [PackShape((12,), (40,), 5), PackShape((3,), (25,), 4)]
    costs = block_costs(model, shapes, ratios)
    assert set(costs) == set(BUDGETS)
    a, b = len(model.decoder.layout) // 3, len(model.decoder.layout) // 2
    stages = {"a": TransVStage(a, 0.5, transfer=False), "b": TransVStage(b, 0.1, transfer=False)}

    def flops(transv: TransVConfig) -> float:
        found = [model_flops(replace(model, transv=transv), shape, ()) for shape in shapes]
        return sum(f[part].forward for f in found for part in ("mamba", "scan", "attention", "mlp"))

    expected = flops(TransVConfig(stages=stages)) / flops(TransVConfig())
    rows = [0] * a + [1] * (b - a) + [2] * (len(model.decoder.layout) - b)
    found = {name: float(sum(cost[r, i] for i, r in enumerate(rows))) for name, cost in costs.items()}
    assert found["flops"] == pytest.approx(expected, rel=1e-12)
    share = kept_share(TransVConfig(stages=stages), len(model.decoder.layout))
    assert found["tokens"] == pytest.approx(share, abs=0.02)  # whole tokens are kept
    assert found["kv"] < 1.0
    for cost in costs.values():
        assert cost[0].sum() == pytest.approx(1.0)
    assert costs["kv"][0].nonzero()[0].tolist() == [i for i, c in enumerate(model.decoder.layout) if c == "*"]


def test_a_model_without_towers_has_no_vision_to_count() -> None:
    model = ModelConfig(preset="", towers={}, decoder=PRESETS["tiny"]().decoder)
    with pytest.raises(ValueError, match="no vision token"):
        block_costs(model, [PackShape((), (9,), 1)], (0.5,))
