"""Windows in replies, and what they are worth: worked values, each with the policy that gives it."""

from __future__ import annotations

import pytest

from timeviper.benchmarking.windows import (
    all_pairs,
    any_pair,
    average_precision,
    best_iou,
    last_numbers,
    last_pair,
    lmms_eval,
    mean_average_precision,
    mean_iou,
    recall,
    recall_at,
    whole_seconds,
)


def test_recalls_differ_by_how_a_threshold_is_reached() -> None:
    said = [(10.0, 20.0), (12.0, 22.0), (15.0, 20.0), (20.0, 30.0), None]
    values = [best_iou(one, [(10.0, 20.0)]) for one in said]
    assert mean_iou(values) == pytest.approx(0.433, abs=5e-4)
    assert [recall(values, t, strictly=False) for t in (0.3, 0.5, 0.7)] == pytest.approx([0.6, 0.6, 0.2])
    assert [recall(values, t, strictly=True) for t in (0.3, 0.5, 0.7)] == pytest.approx([0.6, 0.4, 0.2])
    many = [[] if one is None else [one] for one in said]
    assert recall_at(many, [[(10.0, 20.0)]] * 5, 1, 0.5, strictly=True) == pytest.approx(0.4)
    ranked = [[(20.0, 30.0), (10.0, 20.0)]]
    assert [recall_at(ranked, [[(10.0, 20.0)]], k, 0.7, strictly=False) for k in (1, 2)] == [0.0, 1.0]


def test_the_best_of_several_windows_counts() -> None:
    assert best_iou((42.0, 58.0), [(0.0, 10.0), (40.0, 60.0)]) == pytest.approx(0.8)
    assert best_iou((3.0, 3.0), [(0.0, 10.0)]) == 0.0
    assert best_iou((9.0, 2.0), [(0.0, 10.0)]) == 0.0


def test_timelens_rounds_to_whole_seconds() -> None:
    assert best_iou(whole_seconds("3.4 - 10.2 seconds"), [(3.4, 10.2)]) == pytest.approx(0.917, abs=5e-4)
    assert best_iou(any_pair("3.4 - 10.2 seconds"), [(3.4, 10.2)]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("reply", "ours", "theirs", "dashed", "held_out"),
    [
        ("12.5 - 17 seconds", (12.5, 17.0), None, (12.5, 17.0), (12.5, 17.0)),
        ("from 3 to 5 seconds", (3.0, 5.0), (3.0, 5.0), (3.0, 5.0), (3.0, 5.0)),
        ("From 3.0 seconds to 5.0 seconds.", (3.0, 5.0), (3.0, 5.0), None, (3.0, 5.0)),
        ("01:05 to 01:20", (65.0, 80.0), None, (65.0, 80.0), (1.0, 20.0)),
        ("between 3 and 5, not 7 and 9", (3.0, 5.0), (7.0, 9.0), None, (7.0, 9.0)),
        ("5 to 3", None, (5.0, 3.0), (3.0, 5.0), None),
        ("3.5s - 5s", (3.5, 5.0), None, (3.5, 5.0), (3.5, 5.0)),
        ("It starts at 2.\nIt ends at 7.", (2.0, 7.0), None, (2.0, 7.0), (2.0, 7.0)),
        ("never", None, None, None, None),
    ],
)
def test_windows_in_replies(reply: str, ours: object, theirs: object, dashed: object, held_out: object) -> None:
    assert any_pair(reply) == ours
    assert lmms_eval(reply) == dashed
    if ":" not in reply:
        assert (last_pair(reply), last_numbers(reply)) == (theirs, held_out)


def test_a_ranked_list_of_windows() -> None:
    assert all_pairs("1. 3 - 5 s; 2. 0:10 - 0:12") == [(3.0, 5.0), (10.0, 12.0)]


def test_average_precision_of_ranked_windows() -> None:
    """Worked by hand: precision at each true window that is found, made to fall, over all true ones."""
    true = [(0.0, 10.0), (40.0, 60.0)]
    assert average_precision(true, true, 0.95) == 1.0
    assert average_precision([(40.0, 60.0)], true, 0.5) == 0.5  # one of two, and nothing wrong
    assert average_precision([(80.0, 90.0), *true], true, 0.5) == pytest.approx(2 / 3)  # precision 0, 1/2, 2/3
    assert average_precision([(0.0, 10.0), (0.0, 10.0), (40.0, 60.0)], true, 0.5) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision([], true, 0.5) == average_precision([(80.0, 90.0)], true, 0.5) == 0.0
    assert average_precision([(80.0, 90.0)] * 10 + true, true, 0.5) == 0.0  # ten are looked at
    # IoU .8 with the second: right at .5 .55 ... .8, seven of ten thresholds
    assert mean_average_precision([(42.0, 58.0)], true) == pytest.approx(0.7 / 2)
