"""Evaluations of short and long questions: in groups and in pieces, on one rank and two, stopped and continued."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_helpers import random_run
from jobs import Job, die
from jobs import run as run_job
from shard_helpers import QUESTION, clip

from timeviper.cli import main as cli
from timeviper.cli.shards import STOPPED
from timeviper.config import FramesConfig
from timeviper.datamodules.mixture import Unit
from timeviper.datamodules.plan import Item
from timeviper.datamodules.shards.pool import write_shards
from timeviper.datamodules.world.render import encode_video
from timeviper.datamodules.world.scene import draw_video
from timeviper.inference.eval_report import ANSWERS, OTHERS, REPORT, Report, report_folder
from timeviper.inference.evaluate import changes_of, evaluate, finished
from timeviper.inference.held_out import BLIND, PURE_DROP, WHOLE, Evaluation
from timeviper.inference.journal import PARTIAL, Journal
from timeviper.inference.work import dealt, grouped
from timeviper.weights.export import load_export

LIMITS = ["eval.tokens_per_piece=130", "eval.batch=3", "eval.max_new_tokens=5"]
FRAMES = ["data.frames.fps=4", "data.frames.max_frames=10800", "data.workers=0"]
SETTINGS = [*LIMITS, *FRAMES]


def lasting(number: int, seconds: float) -> dict[str, Any]:
    scene = draw_video(np.random.default_rng(number), seconds, 4.0, 2, None)
    media = [{"type": "video", "member": "mp4", "duration": seconds, "fps": 4.0, "frames": round(4 * seconds)}]
    talk = [{"type": "when", "messages": QUESTION}, {"type": "shape", "messages": QUESTION}]
    return {
        "__key__": f"long{number}",
        "mp4": encode_video(scene),
        "json": {"media": media, "conversations": talk[: number % 2 + 1]},
    }


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven questions of 8 frames, and three of 100 to 140, one of which lies about its length."""
    folder = tmp_path_factory.mktemp("shards")
    liar = lasting(3, 30.0)
    liar["json"]["media"][0] |= {"duration": 300.0, "frames": 1200}
    write_shards([*map(clip, range(4)), lasting(1, 25.0), *map(clip, range(4, 7)), lasting(2, 35.0), liar], folder)
    return folder


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_run(tmp_path_factory.mktemp("evaluate"), val=shards)


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """The run, not yet evaluated."""
    return shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns(REPORT, ANSWERS, PARTIAL, OTHERS))


def there(run: Path, *more: str) -> Path:
    """Where the report of an evaluation with SETTINGS lies."""
    return report_folder(run / "export", [*SETTINGS, *more])


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (there(run) / ANSWERS).read_text().splitlines()]


@pytest.fixture(scope="module")
def expected(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The report and the answers of one process that nobody stopped."""
    report = evaluate(run, SETTINGS, quiet=True).as_dict()
    assert not (run / PARTIAL).exists()
    return report, rows(run)


def same(run: Path, expected: tuple[dict[str, Any], list[dict[str, Any]]]) -> bool:
    report = json.loads((there(run) / REPORT).read_text())
    return (report | {"checkpoint": ""}, rows(run)) == (expected[0] | {"checkpoint": ""}, expected[1])


# ---- short and long -----------------------------------------------------------------------------------------


def test_long_questions_are_answered_as_short_ones_are(run: Path) -> None:
    found: dict[str, dict[str, Any]] = {}
    for name, limits in {"pieces": (130, 3), "whole": (0, 1), "together": (0, 100)}.items():
        sizes = [f"eval.tokens_per_piece={limits[0]}", f"eval.batch={limits[1]}"]
        evaluation = Evaluation(*load_export(run / "export", [*SETTINGS, *sizes]))
        found[name] = {v.name: evaluation.answers(v, quiet=True) for v in (WHOLE, BLIND, PURE_DROP)}
    assert [len(found["pieces"][v.name]) for v in (WHOLE, BLIND, PURE_DROP)] == [10, 10, 10]
    assert found["pieces"] == found["whole"] == found["together"]
    assert len({tuple(a.written for a in found["whole"][v.name]) for v in (WHOLE, BLIND, PURE_DROP)}) == 3


def test_a_length_that_is_a_lie_is_a_reason(expected: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    report, answers = expected
    assert len(report["skipped"]) == 2
    assert all("of 1200 frames can be decoded" in reason for reason in report["skipped"])
    assert report["n"]["overall"] == len(answers) == 10
    assert report["dtype"] == "float32"


def test_a_question_that_does_not_fit_is_a_reason(run: Path) -> None:
    """Of packs and of long ones alike: only the context counts, not the packs of training."""
    settings = [*SETTINGS, "model.decoder.max_tokens=400", "data.tokens_per_pack=1"]
    evaluation = Evaluation(*load_export(run / "export", settings))
    entries = [entry for part in evaluation.entries(WHOLE, evaluation.plans, quiet=True) for entry in part]
    reasons = {entry.answered.key.split("/")[-1]: entry.reason for entry in entries if entry.reason}
    assert reasons.keys() == {"long1#0", "long1#1", "long2#0", "long3#0", "long3#1"}
    assert "5 are to be written, but model.decoder.max_tokens = 400: take fewer frames" in reasons["long2#0"]
    tight = [*SETTINGS, "eval.tokens_per_piece=0", "model.decoder.max_tokens=50"]
    evaluation = Evaluation(*load_export(run / "export", tight))
    (entries,) = (list(evaluation.entries(WHOLE, evaluation.plans[:1], quiet=True)),)
    assert all("the context holds 45" in entry.reason for entry in entries[0])


def item(number: int, tokens: int) -> Item:
    unit = Unit("s", "shard.tar", None, number)  # type: ignore[arg-type]
    return Item(unit, 1, tokens, tokens, float(tokens))


def test_groups_depend_on_the_questions_alone() -> None:
    items = [item(i, n) for i, n in enumerate([40, 70, 200, 30, 90, 20, 20, 500, 20])]

    def sizes(batch: int, tokens: int) -> list[list[list[int]]]:
        plans = grouped(items, FramesConfig(), batch, tokens)
        assert [plan.step for plan in plans] == list(range(len(plans)))
        return [[[i.tokens for i in pack] for pack in plan.packs] for plan in plans]

    assert sizes(3, 100) == [[[40], [70, 30]], [[90], [20, 20]], [[20]], [[200]], [[500]]]
    assert sizes(100, 0) == [[[i.tokens for i in items]]]
    assert sizes(1, 100) == [[[n]] for n in (40, 70, 30, 90, 20, 20, 20, 200, 500)]
    works = [5.0, 1, 1, 1, 9, 3, 3]
    shares = [dealt(list(range(7)), works, rank, 3) for rank in range(3)]
    assert sorted(i for share in shares for i in share) == list(range(7))
    assert [sum(works[i] for i in share) for share in shares] == [9, 7, 7]


# ---- stopped and continued ----------------------------------------------------------------------------------


def stop_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Ctrl-C when so many groups are on the disk."""
    plain, left = Journal.add, [count]

    def add(journal: Journal, entries: Any) -> None:
        plain(journal, entries)
        left[0] -= bool(entries)
        if left[0] == 0:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Journal, "add", add)


def groups(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The keys that are answered from now on, by group."""
    found: list[list[str]] = []
    plain = Journal.add

    def add(journal: Journal, entries: Any) -> None:
        found.append([entry.answered.key for entry in entries])
        plain(journal, entries)

    monkeypatch.setattr(Journal, "add", add)
    return found


@pytest.mark.parametrize("count", [1, 4, 8, 12])
def test_what_was_stopped_continues(
    copy: Path, expected: Any, count: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the first group, at a long question, between variants; with a line that was torn."""
    stop_after(monkeypatch, count)
    monkeypatch.setattr(sys, "argv", ["timeviper", "eval", str(copy), *SETTINGS])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == STOPPED
    assert "stopped: the answers so far are kept" in capsys.readouterr().err
    assert not (there(copy) / REPORT).exists()
    file = copy / PARTIAL / "rank-0.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines)[:-7])
    monkeypatch.undo()
    answered = groups(monkeypatch)
    evaluate(copy, SETTINGS)
    said = capsys.readouterr().err
    assert (f"continues: {len(lines) - 1} of 36 answers are there" in said) == (len(lines) > 1)
    assert sum(map(len, answered)) == 36 - (len(lines) - 1)
    assert same(copy, expected)
    assert not (copy / PARTIAL).exists()


def test_answers_of_two_checkpoints_are_never_mixed(
    copy: Path,
    shards: Path,
    tmp_path: Path,
    expected: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = random_run(tmp_path / "other", val=shards, seed=1)
    stop_after(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        evaluate(other, SETTINGS, quiet=True)
    monkeypatch.undo()
    shutil.copytree(other / PARTIAL, copy / PARTIAL)
    answered = groups(monkeypatch)
    with caplog.at_level(logging.WARNING, "timeviper"):
        evaluate(copy, SETTINGS, quiet=True)
    assert "started anew:" in caplog.text
    assert "are of another checkpoint, other settings or another dtype" in caplog.text
    assert sum(map(len, answered)) == 36
    assert same(copy, expected)


def test_other_settings_and_dtypes_start_anew_too(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for changes, dtype in (([], None), (["eval.max_new_tokens=4"], None), ([], "bfloat16")):
        stop_after(monkeypatch, 1)
        with pytest.raises(KeyboardInterrupt):
            evaluate(copy, [*SETTINGS, *changes], quiet=True, dtype=dtype)
        monkeypatch.undo()
        assert len((copy / PARTIAL / "rank-0.jsonl").read_text().splitlines()) == 3


def test_again_starts_anew_and_is_continued(
    run: Path, tmp_path: Path, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    assert finished(copy, SETTINGS) == finished(copy, SETTINGS, "float32") == Report.from_dict(expected[0])
    assert finished(copy, SETTINGS, "bfloat16") is None
    assert finished(copy, LIMITS) is None
    for count in (2, 4):
        stop_after(monkeypatch, count)
        with pytest.raises(KeyboardInterrupt):
            evaluate(copy, SETTINGS, quiet=True, again=True)
        monkeypatch.undo()
        assert len((copy / PARTIAL / "rank-0.jsonl").read_text().splitlines()) == (6 if count == 2 else 8)
        assert finished(copy, SETTINGS) is None, "what was asked for again is not there yet"
    evaluate(copy, SETTINGS, quiet=True)
    assert same(copy, expected)
    assert isinstance(finished(copy, SETTINGS), Report)


def test_options_are_part_of_what_was_asked(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*args: str) -> int:
        monkeypatch.setattr(sys, "argv", ["timeviper", "eval", str(copy), *SETTINGS, "eval.samples=3", *args])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    assert call("--max-new-tokens", "2", "--dtype", "bfloat16") == 0
    more = "eval.samples=3", "eval.max_new_tokens=2"
    report = json.loads((there(copy, *more) / REPORT).read_text())
    assert report["overrides"] == [*SETTINGS, "eval.samples=3", "eval.max_new_tokens=2"]
    assert report["dtype"] == "bfloat16"
    answered = groups(monkeypatch)
    assert call("--max-new-tokens", "2") == call("--max-new-tokens", "2", "--dtype", "bfloat16") == 0
    assert answered == []
    assert call("--max-new-tokens", "2", "--dtype", "float32") == 0
    assert sum(map(len, answered)) == 9, "three questions, three variants"
    assert call("--dtype", "half") == 2
    assert "must be float32 or bfloat16" in capsys.readouterr().err


def test_overrides_leave_the_full_report_as_it_is(copy: Path, shards: Path) -> None:
    part = ["eval.samples=2"]
    whole = evaluate(copy, ["data.workers=0", *LIMITS], quiet=True)
    plain = report_folder(copy / "export", ["data.workers=0", *LIMITS])
    before = (plain / REPORT).read_bytes(), (plain / ANSWERS).read_bytes()
    assert evaluate(copy, ["data.workers=0", *LIMITS, *part], quiet=True).n["overall"] == 2
    assert before == ((plain / REPORT).read_bytes(), (plain / ANSWERS).read_bytes())
    assert finished(copy, [*reversed(LIMITS), "data.workers=0"]) == whole  # in any order
    assert report_folder(copy / "export", []) == copy


def test_overrides_of_a_recipe_that_it_was_not_trained_with_change_the_evaluation(copy: Path) -> None:
    assert changes_of(copy, ["train.steps=3", "eval.samples=2", "eval.batch=16"]) == ["eval.samples=2"]
    assert changes_of(copy.parent, ["eval.samples=2"]) == []


# ---- several ranks ------------------------------------------------------------------------------------------


def test_two_ranks_give_what_one_gives(copy: Path, expected: Any) -> None:
    job = run_job(copy.parent, 2, "eval", str(copy), *SETTINGS)
    assert same(copy, expected)
    assert job.said(0).count("held-out answers") == 1
    assert "held-out answers" not in job.said(1)
    assert not (copy / PARTIAL).exists()


def test_a_rank_that_dies_costs_no_answers(
    copy: Path, expected: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Job(copy.parent, 2, "eval", str(copy), *SETTINGS, first=die, who=1, count=2)
    assert job.end(seconds=60) == [1, -9]
    assert "another rank is gone" in job.said(0)
    assert f"All answers so far are kept in {copy / PARTIAL}: the same command goes on from there" in job.said(0)
    known = sum(len(file.read_text().splitlines()) for file in (copy / PARTIAL).iterdir()) - 1
    assert not (there(copy) / REPORT).exists()
    answered = groups(monkeypatch)
    evaluate(copy, SETTINGS)
    assert f"continues: {known} of 36 answers are there" in capsys.readouterr().err
    assert sum(map(len, answered)) == 36 - known < 30
    assert same(copy, expected)
