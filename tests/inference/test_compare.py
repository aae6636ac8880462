"""Two runs compared: the statistics against plain references, the lineage, and the command on real exports."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import RECIPE, run
from rich.console import Console
from shard_helpers import clip

from timeviper.cli import main as cli
from timeviper.config import SourceConfig
from timeviper.config.load import load_recipe
from timeviper.datamodules.build import load_sources
from timeviper.datamodules.shards.pool import write_shards
from timeviper.inference import compare_table, paired
from timeviper.inference.compare import LeftOut, Row, compare, pair, score_pairs, verdict
from timeviper.inference.compare_table import print_comparison
from timeviper.inference.eval_report import Report
from timeviper.inference.metrics import Answered
from timeviper.inference.paired import Difference, Flips, bootstrap_interval, compare_scores, mcnemar_p
from timeviper.tokenizer import Tokenizer
from timeviper.weights.export import build_model, write_export
from timeviper.weights.lineage import WeightsDigest, generations, question_digest, read_lineage, source_digest

# ---- statistics -------------------------------------------------------------------------------------------

scores = st.lists(st.tuples(st.integers(0, 6), st.floats(-1, 1, width=32)), min_size=1, max_size=30)


def reference(values: np.ndarray, clusters: np.ndarray, resamples: int, level: float, seed: int) -> list[float]:
    """Draws videos and collects their values, one at a time."""
    groups = [values[clusters == c] for c in np.unique(clusters)]
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        times = rng.multinomial(len(groups), [1 / len(groups)] * len(groups))
        means.append(np.mean([v for group, t in zip(groups, times) for _ in range(t) for v in group]))
    return [float(np.quantile(means, q)) for q in ((1 - level) / 2, (1 + level) / 2)]


@settings(max_examples=60, deadline=None)
@given(scores, st.integers(0, 5), st.sampled_from([0.5, 0.9, 0.95]))
def test_the_interval_is_that_of_a_plain_loop(rows: list[tuple[int, float]], seed: int, level: float) -> None:
    values = np.array([v for _, v in rows])
    _, clusters = np.unique([c for c, _ in rows], return_inverse=True)
    found = bootstrap_interval(values, clusters, resamples=40, level=level, seed=seed)
    assert found == pytest.approx(reference(values, clusters, 40, level, seed), abs=1e-9)
    assert values.min() - 1e-9 <= found[0] <= found[1] <= values.max() + 1e-9


@settings(max_examples=30, deadline=None)
@given(scores, scores)
def test_exchanging_the_runs_turns_the_sign(x: list[tuple[int, float]], y: list[tuple[int, float]]) -> None:
    n = min(len(x), len(y))
    a, b, videos = [v for _, v in x[:n]], [v for _, v in y[:n]], [str(c) for c, _ in x[:n]]
    there, back = compare_scores(a, b, videos), compare_scores(b, a, videos)
    assert there.difference == pytest.approx(-back.difference, abs=1e-12)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=1e-9)


def test_a_seed_gives_one_interval_however_it_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    values, clusters = np.random.default_rng(0).normal(size=90), np.arange(90) % 30
    once = bootstrap_interval(values, clusters)
    assert bootstrap_interval(values, clusters) == once
    assert bootstrap_interval(values, clusters, seed=1) != once
    monkeypatch.setattr(paired, "_CHUNK", 100)
    assert bootstrap_interval(values, clusters) == pytest.approx(once, rel=1e-12)


def test_questions_of_one_video_do_not_count_as_many() -> None:
    each = np.random.default_rng(0).normal(size=50)
    alone = bootstrap_interval(each, np.arange(50))
    repeated = bootstrap_interval(each.repeat(8), np.arange(50).repeat(8))
    assert repeated == pytest.approx(alone)


def coverage(videos: int, trials: int, resamples: int) -> float:
    """Share of intervals that hold the true mean 0 when a video shifts all of its 1 to 5 questions."""
    rng = np.random.default_rng(1)
    held = 0
    for trial in range(trials):
        clusters = np.arange(videos).repeat(rng.integers(1, 6, videos))
        values = rng.normal(size=videos)[clusters] + rng.normal(size=len(clusters))
        low, high = bootstrap_interval(values, clusters, resamples=resamples, seed=trial)
        held += low <= 0 <= high
    return held / trials


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    assert 0.90 <= coverage(videos=60, trials=300, resamples=500) <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize(
    ("videos", "least", "most"), [(10, 0.87, 0.90), (20, 0.91, 0.94), (40, 0.92, 0.95), (160, 0.935, 0.965)]
)
def test_coverage_by_number_of_videos(videos: int, least: float, most: float) -> None:
    assert least <= coverage(videos, trials=4000, resamples=1000) <= most


@pytest.mark.parametrize(("only_a", "only_b"), list(product(range(6), range(7))))
def test_mcnemar_counts_all_splits_of_the_flips(only_a: int, only_b: int) -> None:
    n = only_a + only_b
    heads = [sum(coins) for coins in product((0, 1), repeat=n)]
    fair = Fraction(sum(abs(2 * h - n) >= abs(only_a - only_b) for h in heads), 2**n)
    assert mcnemar_p(only_a, only_b) == pytest.approx(float(fair))


def test_mcnemar_of_many_flips() -> None:
    assert mcnemar_p(3000, 3000) == 1
    assert mcnemar_p(499, 500) == pytest.approx(1)
    # the normal approximation with continuity correction: z = 199 / sqrt(6000), p = 0.01019
    assert mcnemar_p(2900, 3100) == pytest.approx(0.01019, rel=2e-3)
    assert 0 <= mcnemar_p(0, 5000) < 1e-300


def test_scores_that_are_not_paired_are_refused() -> None:
    for a, b in ([], []), ([1.0], [1.0, 0.0]):
        with pytest.raises(ValueError, match="paired"):
            compare_scores(a, b, ["v"] * len(a))


# ---- pairs, rows, words -------------------------------------------------------------------------------------


def answered(key: str, written: str, type: str = "colour", right: str = "red", sample: str = "s") -> Answered:
    return Answered(key, type, written, right, "What?", sample)


def test_only_the_same_question_about_the_same_bytes_is_a_pair() -> None:
    a = [answered("v/s.tar/0#0", "red"), answered("v/s.tar/1#0", "red"), answered("v/s.tar/2#0", "red", "count")]
    b = [answered("v/s.tar/1#0", "red", sample="t"), answered("v/s.tar/0#0", "blue"), answered("v/s.tar/3#0", "red")]
    pairs = pair(a, b)
    assert pairs.both == [(a[0], b[1])]
    assert pairs.left_out == LeftOut({"colour": 1, "count": 1}, {"colour": 2}, other_bytes=1)
    assert pair([answered("k", "", right="x")], [answered("k", "", right="y")]).both == []


def test_rows_by_type_with_flips_and_iou() -> None:
    pairs = [
        (answered("v/0#0", "red"), answered("v/0#0", "blue")),
        (answered("v/0#1", "blue"), answered("v/0#1", "red")),
        (answered("v/1#0", "blue"), answered("v/1#0", "red")),
        (answered("v/1#1", "0 to 4", "when", "0 to 2"), answered("v/1#1", "0 to 2", "when", "0 to 2")),
    ]
    overall, colour, when, iou = score_pairs(pairs)
    assert (overall.found.n, overall.found.clusters, overall.found.a, overall.found.b) == (4, 2, 0.5, 0.75)
    assert (overall.flips, overall.flips and overall.flips.p) == (Flips(1, 2), 1.0)
    assert (colour.question, colour.found.n, colour.found.difference) == ("colour", 3, pytest.approx(1 / 3))
    assert (when.found.a, when.found.b) == (1, 1)
    assert (iou.score, iou.found.a, iou.found.b, iou.found.low, iou.found.high) == ("iou", 0.5, 1, 0.5, 0.5)
    assert "p" in when.as_dict()
    assert "p" not in iou.as_dict()


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.008, 0.031, "B is better by 0.8 to 3.1 points in accuracy over all questions."),
        (-0.05, -0.01, "A is better by 1.0 to 5.0 points in accuracy over all questions."),
        (
            -0.02,
            0.01,
            "No difference is shown in accuracy over all questions: A may be up to 2.0 points better, or B up",
        ),
        (0.0, 0.0, "No difference at all"),
        (0.0, 0.02, "No difference is shown"),
    ],
)
def test_the_verdict_in_words(low: float, high: float, words: str) -> None:
    found = Difference(n=9, clusters=9, a=0.5, b=0.5, low=low, high=high)
    assert verdict(Row("overall", "accuracy", found)).startswith(words)


# ---- lineage ------------------------------------------------------------------------------------------------


def data(source: str, count: int) -> dict[str, Any]:
    """The settings with so many held-out pictures."""
    held_out = {source: {"dataset": "jobs:Pictures", "options": {"count": count}}}
    return RECIPE["data"] | {"tokens_per_pack": 400, "val": held_out}


def make_recipe(folder: Path, name: str, **changes: Any) -> Path:
    whole = RECIPE | {
        "name": name,
        "out": str(folder / name),
        "eval": {"max_new_tokens": 4},
        "data": data("pictures", 9),
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(whole | changes))
    return path


def make_run(folder: Path, name: str, shard_bytes: int = 2 << 30, **changes: Any) -> Path:
    """The export of a stage with random weights, in a run folder."""
    recipe = load_recipe(make_recipe(folder, name, **changes))
    state = build_model(recipe).state_dict()
    write_export(folder / name / "export", state, recipe, Tokenizer.load(""), step=7, shard_bytes=shard_bytes)
    return folder / name


def test_an_export_knows_its_ancestors(tmp_path: Path) -> None:
    first = make_run(tmp_path, "first")
    again = make_run(tmp_path, "again", shard_bytes=3000)
    other = make_run(tmp_path, "other", seed=1)
    init = RECIPE["train"] | {"init_from": str(first / "export")}
    second = make_run(tmp_path, "second", train=init)
    child, parent = generations(read_lineage(second / "export"))
    assert parent == generations(read_lineage(first / "export"))[0]
    assert (child["name"], child["step"], child["seed"], child["timeviper"]) == ("second", 7, 0, "0.1.0")
    assert child["weights"] == parent["weights"], "it started from them and did not train"
    assert child["recipe"] != parent["recipe"]
    weights = {run.name: read_lineage(run / "export")["weights"] for run in (first, again, other)}
    assert weights["first"] == weights["again"] != weights["other"]


def test_training_notes_its_data(tmp_path: Path) -> None:
    path = make_recipe(tmp_path, "trained", train=RECIPE["train"] | {"steps": 1})
    run(tmp_path, 1, "train", str(path))
    expected = source_digest(load_sources({"pictures": SourceConfig(dataset="jobs:Pictures")})["pictures"])
    assert read_lineage(tmp_path / "trained" / "export")["data"] == {"pictures": expected}


def test_one_bit_of_one_tensor_is_another_digest() -> None:
    tensors = {"a": torch.zeros(3, dtype=torch.bfloat16), "b": torch.tensor(1.0)}

    def digest(tensors: dict[str, torch.Tensor]) -> str:
        found = WeightsDigest()
        assert dict(found.passing(tensors.items())).keys() == tensors.keys()
        return found.result()

    assert digest(tensors) == digest(dict(reversed(tensors.items())))
    changed = {
        "bit": {**tensors, "b": torch.nextafter(tensors["b"], torch.tensor(2.0))},
        "sign of zero": {**tensors, "a": -tensors["a"]},
        "dtype": {**tensors, "a": tensors["a"].half()},
        "shape": {**tensors, "a": tensors["a"][None]},
        "name": {"a": tensors["a"], "c": tensors["b"]},
    }
    assert len({digest(tensors), *map(digest, changed.values())}) == 6


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"name": "x", "st', "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[1]", "is no object"),
        (b'{"name": "x", "seed": 0, "parts": []}', "lacks 'step'"),
        (b'{"name": "x", "step": "7", "seed": 0, "parts": []}', "has step = '7', which is no number"),
        (b'{"name": "x", "step": 7, "seed": 0, "parts": [], "from": {"name": "y"}}', ", 1 stage back, lacks 'step'"),
        (b'{"name": "x", "step": 7, "seed": 0, "parts": [], "from": 3}', ", 1 stage back, is no object"),
    ],
)
def test_an_unreadable_lineage_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "lineage.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path / 'lineage.json'))}.*{re.escape(words)}"):
        read_lineage(tmp_path)


def test_digests_of_data_follow_the_bytes_not_the_place(tmp_path: Path) -> None:
    def digests(folder: Path, name: str = "videos") -> tuple[str, list[str]]:
        source = load_sources({name: SourceConfig(shards=str(folder))})[name]
        return source_digest(source), [question_digest(source[i]) for i in range(len(source))]

    samples = [clip(i) for i in range(4)]
    write_shards(samples, tmp_path / "here")
    write_shards(samples, tmp_path / "smaller", samples_per_shard=2)
    write_shards([*samples[:3], clip(9) | {"__key__": "clip003"}], tmp_path / "changed")
    whole, questions = digests(tmp_path / "here")
    assert len(set(questions)) == 4
    assert digests(tmp_path / "smaller", "mine") == (whole, questions)
    changed, others = digests(tmp_path / "changed")
    assert changed != whole
    assert [x == y for x, y in zip(questions, others)] == [True, True, True, False]


# ---- the command --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("compare")
    fewer = {"max_new_tokens": 4, "samples": 5}
    return {
        "a": make_run(folder, "a"),
        "b": make_run(folder, "b", seed=1, optim=RECIPE["optim"] | {"lr": 3e-3}),
        "fewer": make_run(folder, "fewer", seed=2, eval=fewer),
        "renamed": make_run(
            folder,
            "renamed",
            data=data("others", 4),
        ),
    }


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `timeviper compare args`."""
    monkeypatch.setattr(sys, "argv", ["timeviper", "compare", *args])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    out, err = capsys.readouterr()
    return int(exit.value.code or 0), out, err


def test_compares_two_runs_and_answers_only_what_is_missing(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = str(runs["a"]), str(runs["b"])
    code, out, err = call(monkeypatch, capsys, a, b)
    assert code == 0, err
    assert err.count("has not answered yet") == 2
    for words in ("optim.lr", "0.003", "seed", "overall", "B - A", "95 % interval", "whole videos"):
        assert words in out
    rows = [json.loads(line) for line in (runs["a"] / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 9
    assert all(len(row["sample"]) == 16 and row["correct"] is False for row in rows)
    written = json.loads((runs["a"] / "eval.json").read_text())
    assert Report.from_dict(written).as_dict() == written
    assert list(written["accuracy"]) == list(written["n"]) == ["overall", "chat"]

    before = {run: (runs[run] / "answers.jsonl").stat().st_mtime_ns for run in ("a", "b")}
    code, out, err = call(monkeypatch, capsys, a, b, "--json")
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert before == {run: (runs[run] / "answers.jsonl").stat().st_mtime_ns for run in ("a", "b")}
    assert report["recipes"] == {"name": ["a", "b"], "optim.lr": [0.01, 0.003], "seed": [0, 1]}
    assert report["rows"][0]["n"] == report["rows"][0]["clusters"] == 9
    assert report["left_out"] == {"a": {}, "b": {}, "other_bytes": 0}
    assert "Only 9 videos" in report["notes"][0]
    assert report["a"]["lineage"][0]["weights"] != report["b"]["lineage"][0]["weights"]


def test_a_comparison_is_readable_at_80_columns(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Figures are whole, each row of them a line."""
    monkeypatch.setattr(compare_table, "console", lambda: Console(width=80))
    found = compare(runs["a"], runs["b"])
    long = replace(found.rows[1], question="orientation", found=replace(found.rows[1].found, n=12345, clusters=987))
    print_comparison(replace(found, rows=[*found.rows, long, replace(long, flips=Flips(123, 210))]))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    (overall,) = (line for line in lines if line.strip().startswith("overall"))
    assert re.fullmatch(r" *overall( +\S+){5} +[-+]\d\.\d{3} [-+]\d\.\d{3}( +\S+){3} *", overall), overall


def test_a_part_of_the_questions_is_compared_aloud(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(monkeypatch, capsys, str(runs["a"]), str(runs["fewer"]))
    assert code == 0
    assert "LEFT OUT: 4 of the 9 questions that A answered are not among those of B" in out
    assert "eval.samples" in out


def test_refusals_say_what_to_do(runs: dict[str, Path], tmp_path: Path) -> None:
    a = runs["a"]
    with pytest.raises(ValueError, match="are the same export; name two runs"):
        compare(a, a / "export")
    with pytest.raises(FileNotFoundError, match="is not an export"):
        compare(a, tmp_path)
    with pytest.raises(ValueError, match=r"9 held-out questions and .* 4, none of them in common.*data\.val\.NAME"):
        compare(a, runs["renamed"])


def test_damaged_answers_are_named_and_a_copy_is_known(runs: dict[str, Path], tmp_path: Path) -> None:
    compare(runs["a"], runs["b"])
    copy = shutil.copytree(runs["a"], tmp_path / "copy")
    comparison = compare(copy, runs["a"])
    assert "Both exports hold the same weights, bit for bit." in comparison.notes
    assert comparison.verdict == [
        "No difference at all in accuracy over all questions: every question has the same score in both."
    ]
    answers, good = copy / "answers.jsonl", (copy / "answers.jsonl").read_text()
    answers.write_text(good.replace('"key"', '"k', 1))
    with pytest.raises(
        ValueError, match=r"answers\.jsonl line 1 is no answer.*answer again: timeviper eval .* --again"
    ):
        compare(copy, runs["b"])
    answers.write_text(good[: good.rindex('{"key"')])
    with pytest.raises(ValueError, match=r"holds 8 answers, but not those that eval\.json"):
        compare(copy, runs["b"])
    (copy / "eval.json").write_text('{"accuracy": {}')
    with pytest.raises(ValueError, match=r"eval\.json is no report of an evaluation.*--again"):
        compare(copy, runs["b"])


def test_runs_of_earlier_versions_are_answered_again(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare(runs["a"], runs["b"])
    old = shutil.copytree(runs["a"], tmp_path / "old")
    lineage = read_lineage(old / "export")
    for name in ("timeviper", "recipe", "weights", "data"):
        del lineage[name]
    (old / "export" / "lineage.json").write_text(json.dumps(lineage))
    report = json.loads((old / "eval.json").read_text())
    del report["answers"], report["weights"]
    (old / "eval.json").write_text(json.dumps(report))
    capsys.readouterr()
    assert compare(old, runs["b"]).rows == compare(runs["a"], runs["b"]).rows
    assert capsys.readouterr().err.count("has not answered yet") == 1
