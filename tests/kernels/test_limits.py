"""The guard before every vendor's kernel: copies, pieces or the torch form where 32 bits cannot address it all."""

from __future__ import annotations

import pytest
import torch
import vendor_twins
from kernel_cases import CASES, LENGTHS, Case, assert_near, compute, inputs

from timeviper.kernels import dispatch, limits
from timeviper.kernels.bounds import Bounds

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


# Elements that a tensor may span (conv1d: twice as many). 83 rows of 104 make 8,632, of 64 (x, B and C) 5,312, of 32
# (one of z, x, y) 2,656.
ROOM = {"whole": 9_000, "copies": 5_500, "pieces": 2_600, "torch": 30}
EXPECTED_CALLS = {  # of (whole, copies, pieces): what each remedy costs
    "scan of training packs": (1, 1, 3),
    "scan of a piece": (1, 1, 3),
    "convolution": (1, 1, 2),
    "norms": (2, 2, 4),
}


@every_case
@pytest.mark.parametrize("remedy", ROOM)
def test_what_spans_too_much_is_computed_all_the_same(
    case: Case, remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    leaves = inputs(case, LENGTHS)
    wanted = compute(case, leaves, LENGTHS, "torch")
    vendor_twins.calls.clear()
    dispatch.reset_log()
    room = ROOM[remedy]
    with dispatch.stand_in(vendor_twins.twins(room), room), caplog.at_level("INFO", "timeviper"):
        assert_near(compute(case, leaves, LENGTHS), wanted, 1e-11)
        compute(case, leaves, LENGTHS)
    if remedy == "torch" and case.op != "attention":
        assert vendor_twins.calls.total() == 0
        assert [r.message for r in caplog.records].count(caplog.records[0].message) == 1, "told once"
        assert "can address" in caplog.records[0].message
    elif case.name in EXPECTED_CALLS:
        assert vendor_twins.calls.total() == 2 * EXPECTED_CALLS[case.name][list(ROOM).index(remedy)]
        assert not caplog.records


@every_case
def test_without_the_guard_addresses_are_wrong(case: Case) -> None:
    """The twins refuse what the guard is there to prevent; attention's offsets have 64 bits."""
    if case.op == "attention":
        return
    leaves = inputs(case, LENGTHS)
    with dispatch.stand_in(vendor_twins.twins(2_600)), pytest.raises(IndexError, match="spans more than"):
        compute(case, leaves, LENGTHS)


@pytest.mark.parametrize("op", ["ssd", "conv1d", "norm"])
def test_a_wide_gradient_is_made_narrow(op: str) -> None:
    """The gradient of an output may be a view of something wider than the output."""
    case = next(c for c in CASES if c.op == op)
    leaves = [t.requires_grad_() for t in inputs(case, LENGTHS)]
    with dispatch.stand_in(vendor_twins.twins(9_000), 9_000):
        y = case.call(leaves[0], leaves[1:7], leaves[7:], Bounds(LENGTHS))[0].flatten(1)
        padded = torch.cat([y, y.new_zeros(len(y), 1000)], 1)  # its gradient's rows are 1000 wider
        padded.square().sum().backward()
    assert leaves[0].grad is not None


def test_pieces_of_a_pack() -> None:
    bounds = Bounds([0, 5, 0, 3, 8, 0, 0, 4, 0])
    pieces = limits.cut(bounds, 5)
    assert [p.bounds.lengths for p in pieces] == [(0, 5, 0), (3, 2), (5,), (1, 0, 0, 4, 0)]
    assert [p.continues for p in pieces] == [False, False, True, True]
    assert [range(9)[p.sequences] for p in pieces] == [range(3), range(3, 5), range(4, 5), range(4, 9)]
    assert limits.cut(bounds, 5) is pieces, "kept for the next layer"
    assert [p.bounds.num_tokens for p in limits.cut(bounds, 9, 4)] == [8, 8, 4]


def test_extents() -> None:
    rows = torch.empty(10, 40)
    assert limits.extent(rows[:, 3:7]) == 9 * 40 + 4
    assert limits.extent(rows[:0]) == 0
    assert limits.rows_within(100, rows[:, 3:7]) == 3
    assert limits.rows_within(104, rows[:, :24]) == 3
    assert limits.rows_within(103, rows[:, :24]) == 2
    assert limits.rows_within(30, rows) == 0
    assert limits.rows_within(100, rows[:1].expand(10, -1)) == 10
    assert limits.slim(rows[:, 3:7], 300).is_contiguous()
    assert limits.slim(rows[:, 3:7], 400).stride(0) == 40
    assert limits.slim(rows[:, :30], 300).stride(0) == 40, "a copy of nearly everything is not cheap"
