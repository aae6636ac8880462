"""Metrics against worked values, each with the policy that gives it."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from timeviper.benchmarking.averages import g_avg, half_width, m_avg, pooled
from timeviper.benchmarking.cider import cider, cider_by_video, cider_scores, words
from timeviper.benchmarking.dense import Caption, best_in_order, read_captions, score_dense, soda
from timeviper.benchmarking.groups import group_score, group_score_as_published
from timeviper.benchmarking.intervals import clustered_se, difference, f1, intervals, plain_se, tally
from timeviper.benchmarking.meteor import Meteor, MeteorError
from timeviper.benchmarking.metrics import CIDErScore, TemporalGrounding
from timeviper.benchmarking.needle_grid import all_rotations, grid, matched_count
from timeviper.inference.paired import bootstrap_interval, mcnemar_p

# ---- groups -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "right", "score"),
    [
        ("relevance", "1101", 56.25),
        ("[1,2,3,4]", "1101", 25.0),
        ("[1,[2,3],4]", "1011", 33.33),
        ("[1,[2,3],4]", "1101", 33.33),
        ("[1,[2,3],4]", "1110", 58.33),
        ("[1, [2, 3], 4]", "1000", 8.33),
        ("[[1,2],3,4]", "0111", 10.0),
        ("[[1,2],3,4]", "1000", 10.0),
        ("[[1,2],3,4]", "1110", 50.0),
        ("[[1,2],3,4]", "0011", 0.0),
        ("[1,2,3,4]", "0111", 0.0),
        ("relevance", "1111", 100.0),
        ("all", "1111", 100.0),
        ("all", "1110", 0.0),
    ],
)
def test_groups_of_videomme_v2(rule: str, right: str, score: float) -> None:
    values = [int(c) for c in right]
    assert group_score(rule, values) == pytest.approx(score, abs=0.005)
    assert group_score_as_published(rule, values) == pytest.approx(score, abs=0.005)


def test_four_empty_answers_score_100_as_published() -> None:
    nothing = [None] * 4
    assert group_score_as_published("[1,2,3,4]", nothing) == 100.0
    assert group_score("[1,2,3,4]", nothing) == 0.0
    assert group_score_as_published("relevance", [1, 1, 1, None]) == 25.0  # 3 - 1 right
    assert group_score("relevance", [1, 1, 1, None]) == 56.25
    with pytest.raises(ValueError, match="has 4 questions, this one 3"):
        group_score("relevance", [1, 1, 1])
    with pytest.raises(ValueError, match="group rule 'chain'"):
        group_score("chain", [1])


# ---- captions ---------------------------------------------------------------------------------------------

SAID = ["add oil to a pan", "chop the onion", "pour the batter in the pan", "flip the pancake"]
TRUE = [["add oil to the pan"], ["chop the red onion"], ["pour the batter into the pan"], ["flip the pancake"]]


def test_cider_as_pycocoevalcap_has_it() -> None:
    assert cider_scores(SAID, TRUE) == pytest.approx([4.406, 3.020, 3.679, 7.5], abs=5e-4)
    assert cider(SAID, TRUE) == pytest.approx(4.651, abs=5e-4)


def test_cider_by_video_is_another_number() -> None:
    assert cider_by_video(SAID, TRUE, ["1", "1", "2", "2"]) == pytest.approx({"1": 3.670, "2": 5.75}, abs=5e-4)
    assert cider_by_video(["flip it"], [["flip it"]], ["3"]) == {"3": 0.0}  # identical, and its only caption
    assert cider([], []) == 0.0
    with pytest.raises(ValueError, match="at least one reference"):
        cider(["a"], [[]])


def test_the_tokenizer_keeps_lower_case_brackets() -> None:
    assert words("Don't add (too much) oil, the pan's hot!") == [
        *("do", "n't", "add", "-lrb-", "too", "much", "-rrb-", "oil", "the", "pan", "'s", "hot"),
    ]


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_torchmetrics_gives_the_same() -> None:
    metric = CIDErScore()
    metric.update(SAID[:1], TRUE[:1])
    metric.update(SAID[1:], TRUE[1:])
    assert float(metric.compute()) == pytest.approx(4.651, abs=5e-4)
    halves = [CIDErScore(), CIDErScore()]
    halves[0].update(SAID[:2], TRUE[:2])
    halves[1].update(SAID[2:], TRUE[2:])
    joined = CIDErScore()  # as ranks exchange states
    for name in ("content", "sizes", "references"):
        setattr(joined, name, [torch.cat(getattr(half, name)) for half in halves])
    assert float(joined.compute()) == pytest.approx(float(metric.compute()), abs=1e-12)
    grounding = TemporalGrounding(strictly=True)
    grounding.update([(10.0, 20.0), (12.0, 22.0)], [[(10.0, 20.0)]] * 2)
    grounding.update([(15.0, 20.0), (20.0, 30.0), None], [[(10.0, 20.0)]] * 3)
    found = {name: round(float(value), 3) for name, value in grounding.compute().items()}
    assert found == {"mIoU": 0.433, "R1@0.3": 0.6, "R1@0.5": 0.4, "R1@0.7": 0.2}


def test_dense_captions_as_timeviper_scores_them() -> None:
    true = [Caption((0, 10), "pour oil"), Caption((20, 30), "chop it")]
    said = [Caption((0, 10), "pour oil"), Caption((0, 9), "pour oil"), Caption((50, 60), "eat it")]
    found = score_dense(said, true)
    assert found.precision == pytest.approx([0.667, 0.667, 0.667, 0.333], abs=5e-4)
    assert found.recall == pytest.approx([0.5] * 4)
    assert (found.f1, found.mean_f1) == pytest.approx((0.538, 0.529), abs=5e-4)
    assert score_dense([], true).f1 == score_dense([], true).cider == 0.0


def test_soda_matches_in_order() -> None:
    meteor = np.array([[0.6, 0.3, 0.2], [0.4, 0.5, 0.5]])
    found = soda([(0, 8), (18, 40)], [(0, 10), (10, 20), (20, 40)], meteor)
    assert found == pytest.approx((0.4673, 0.3115, 0.3738), abs=5e-5)
    assert found[0] * 2 == pytest.approx(0.9345, abs=5e-5)
    assert best_in_order(np.array([[0, 0.5], [0.5, 0]])) == 0.5
    assert soda([], [(0, 1)], np.zeros((0, 1))) == (0.0, 0.0, 0.0)


def test_times_inside_a_caption_are_none() -> None:
    reply = "0 - 10 seconds, beat 2 to 3 eggs.\n01:05 - 01:20: fry them\n3. from 90 to 95 seconds, eat."
    assert [(c.window, c.text) for c in read_captions(reply)] == [
        ((0.0, 10.0), "beat 2 to 3 eggs."),
        ((65.0, 80.0), "fry them"),
        ((90.0, 95.0), "eat."),
    ]
    assert read_captions("1 - 2 s, one. 3 - 4 s, two.") == [Caption((1, 2), "one."), Caption((3, 4), "two.")]
    timeline = "from 1.0 to 3.0 seconds a ring stays, then from 4 to 6 seconds fry 2 to 3 eggs, then eat."
    assert read_captions(timeline) == [Caption((1, 3), "a ring stays"), Caption((4, 6), "fry 2 to 3 eggs, then eat.")]
    assert read_captions("nothing") == []


FAKE = """#!{python}
import sys
for line in sys.stdin:
    verb, *fields = [f.strip() for f in line.split("|||")]
    if verb == "SCORE":
        *refs, said = fields
        print(sum(w in refs[0].split() for w in said.split()), len(said.split()), flush=True)
    else:
        parts = [list(map(int, f.split())) for f in fields]
        for a, b in parts:
            print(a / b, flush=True)
        print(sum(p[0] for p in parts) / sum(p[1] for p in parts), flush=True)
"""


def test_meteor_speaks_to_the_jar_that_is_named(tmp_path: Path) -> None:
    java, jar = tmp_path / "java", tmp_path / "meteor-1.5.jar"
    java.write_text(FAKE.format(python=sys.executable))
    java.chmod(java.stat().st_mode | stat.S_IXUSR)
    jar.write_bytes(b"jar")
    with Meteor(jar, str(java)) as meteor:
        assert meteor.segments(["a b", "c ||| d"], [["a x"], ["c d"]]) == [0.5, 1.0]
        assert meteor.corpus(["a b", "c d e"], [["a x"], ["c d"]]) == pytest.approx(0.6)
        assert meteor.name.startswith("meteor-1.5.jar sha256:")
    with pytest.raises(MeteorError, match="is no file: METEOR and SODA_c need"):
        Meteor(tmp_path / "none.jar")
    with pytest.raises(MeteorError, match="install a Java runtime"):
        Meteor(jar, "no-such-java")


@pytest.mark.skipif(not os.environ.get("METEOR_JAR"), reason="METEOR_JAR names no meteor-1.5.jar")
def test_meteor_itself() -> None:
    with Meteor(os.environ["METEOR_JAR"]) as meteor:
        assert meteor.corpus(SAID, TRUE) == pytest.approx(0.4429, abs=5e-5)
        assert np.mean(meteor.segments(SAID, TRUE)) == pytest.approx(0.5551, abs=5e-5)


# ---- needles ----------------------------------------------------------------------------------------------


def test_needles_by_length_and_depth() -> None:
    found = grid([(200, 0.0, 1), (200, 0.0, 0), (200, 0.2, 1), (400, 0.2, 0)])
    assert (found.rows, found.columns) == ((200, 400), (0.0, 0.2))
    assert found.shares == ((0.5, 1.0), (None, 0.0))
    assert found.counts == ((2, 1), (0, 1))
    assert found.mean == pytest.approx(0.5)


def test_vnbench_counts_samples_right_in_all_rotations() -> None:
    rights = [("a", True)] * 4 + [("b", True)] * 3 + [("b", False)] + [("c", True)] * 3
    assert all_rotations(rights) == {"a": True, "b": False, "c": False}
    assert matched_count(["3", "2"], ["3", "1", "4"]) == pytest.approx(1 / 3)


# ---- statistics -------------------------------------------------------------------------------------------


def test_standard_errors_clustered_by_video() -> None:
    values = [int(c) for c in "111000110010"]
    videos = [v for v in "abcd" for _ in range(3)]
    assert np.mean(values) == 0.5
    assert plain_se(values) == pytest.approx(0.151, abs=5e-4)
    assert clustered_se(values, videos) == pytest.approx(0.186, abs=5e-4)


def test_exact_mcnemar() -> None:
    assert [mcnemar_p(*flips) for flips in ((8, 2), (15, 5), (30, 20))] == pytest.approx(
        [0.109, 0.041, 0.203], abs=5e-4
    )


def test_intervals_of_means_are_those_of_the_plain_bootstrap() -> None:
    rng = np.random.default_rng(0)
    values, clusters = rng.integers(0, 2, 300).astype(float), np.sort(rng.integers(0, 60, 300))
    index = np.unique(clusters, return_inverse=True)[1]
    ours = intervals({"mean": tally(list(values), index)}, int(index.max()) + 1, resamples=4000)["mean"]
    assert ours == pytest.approx(bootstrap_interval(values, index, resamples=4000), abs=0.01)


def test_macro_means_redo_their_strata_and_differences_share_draws() -> None:
    values, tasks, videos = [1.0, 0.0, 1.0, 1.0], ["a", "a", "b", "b"], np.array([0, 1, 2, 3])
    one = tally(values, videos, tasks)
    assert one.value == pytest.approx(0.75)
    low, high = intervals({"m": one}, 4, resamples=500)["m"]
    assert 0 <= low < 0.75 <= high <= 1
    assert difference(one, one, 4, resamples=50) == (0.0, 0.0, 0.0)
    rates = tally([0.5, 0.25], np.array([0, 0]), ["p", "r"], combine=f1)
    assert rates.value == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("share", "n", "points"),
    [
        *((0.588, 2700, 1.9), (0.355, 1549, 2.4), (0.656, 2175, 2.0), (0.541, 1337, 2.7), (0.572, 4000, 1.5)),
        *((0.6, 1580, 2.4), (0.6, 500, 4.3), (0.405, 3720, 1.6), (0.4, 800, 3.4), (0.5, 1542, 2.5)),
    ],
)
def test_how_much_a_score_moves_by_chance(share: float, n: int, points: float) -> None:
    """VideoMME, LVBench, MLVU, LongVideoBench, MVBench, TempCompass, EgoSchema, Charades, TVGBench, QVHighlights."""
    assert round(half_width(share, n), 1) == points


def test_the_averages_of_mlvu() -> None:
    right, of = (377, 284, 229, 72, 130, 150, 238), (539, 355, 352, 206, 259, 200, 264)
    assert m_avg(right, of) == pytest.approx(66.47, abs=0.005)
    assert pooled(right, of) == pytest.approx(68.05, abs=0.005)
    marks = {"sub_scene": [(4.5, 4.0), (3.0, 2.0)], "summary": [(2.5, 3.0)]}
    assert g_avg(marks) == pytest.approx((6.75 + 5.5) / 2)
    assert g_avg(marks, truncate=True) == pytest.approx((8 + 5 + 5) / 3)
