"""A check in parts, or stopped and begun again, says what one in a piece says, and examines nothing twice."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_lookalikes import copy
from shard_helpers import QUESTION, clip, picture

from timeviper.cli.check_shards import check as check_folder
from timeviper.config import FramesConfig
from timeviper.datamodules.checks import shards as module
from timeviper.datamodules.checks.kept import SUFFIX
from timeviper.datamodules.checks.sample import CheckConfig, Sample, examine
from timeviper.datamodules.checks.shards import Report, check_shards
from timeviper.datamodules.shards.index import index_path
from timeviper.datamodules.shards.pool import write_shards

SMALL = CheckConfig(image_size=32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two folders of shards of two samples each, with one of each finding on what is there twice."""
    other = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "here"}]
    media = clip(0)["mp4"]
    samples = [
        clip(0),
        picture(0),
        clip(1),
        {"__key__": "twin", "mp4": clip(1)["mp4"], "json": clip(1)["json"]},
        {"__key__": "again", "mp4": clip(1)["mp4"], "json": {"messages": other}},
        {"__key__": "alike", "mp4": copy(media, crf="30"), "json": {"messages": QUESTION}},
        picture(0) | {"__key__": "cut", "png": picture(0)["png"][:200]},
    ]
    write_shards(samples, tmp_path / "in" / "train", samples_per_shard=2)
    write_shards([clip(2), clip(1) | {"__key__": "leak"}], tmp_path / "in" / "val")
    index_path(tmp_path / "in" / "train" / "shard-00002.tar").unlink()
    return tmp_path / "in"


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the samples that are examined, from now on."""
    keys: list[str] = []

    def noted(sample: Sample, config: Any) -> Any:
        keys.append(sample.key)
        return examine(sample, config)

    monkeypatch.setattr(module, "examine", noted)
    return keys


def findings(report: Report) -> list[Any]:
    return [report.shards, report.samples, report.problems, report.notes, report.forecast["frames"]]


def test_parts_come_together(folder: Path, tmp_path: Path, examined: list[str]) -> None:
    whole = check_shards(folder, SMALL)
    assert [(p.key, p.kind) for p in whole.problems] == [
        ("twin", "duplicate"),
        ("", "index"),
        ("alike", "near-duplicate"),
        ("cut", "media"),
        ("leak", "duplicate"),
    ]
    assert [(n.key, n.kind) for n in whole.notes] == [("again", "stored-again")]
    state = tmp_path / "state"
    del examined[:]
    parts = [check_shards(folder, SMALL, 0, None, state, (i, 3)) for i in (2, 1, 3)]
    assert [p.waiting for p in parts] == [3, 1, 0]
    assert [len(p.problems) for p in parts] == [0, 1, 5]  # by itself, or beside all others
    assert findings(parts[2]) == findings(whole)
    assert len(examined) == 9
    assert findings(check_shards(folder, SMALL, 0, None, state)) == findings(whole)
    assert len(examined) == 9  # another number of parts finds all of it done


def stop_after(samples: int) -> Callable[[int, str], None]:
    def progress(done: int, _: str) -> None:
        if done == samples:
            raise KeyboardInterrupt

    return progress


def test_a_check_that_was_stopped_goes_on(folder: Path, tmp_path: Path, examined: list[str]) -> None:
    whole, state = findings(check_shards(folder, SMALL)), tmp_path / "state"
    for stopped in range(1, 6):
        with pytest.raises(KeyboardInterrupt):
            check_shards(folder, SMALL, 0, stop_after(min(stopped, 2) + (stopped > 2)), state)
    del examined[:]
    assert findings(check_shards(folder, SMALL, 0, None, state)) == whole
    assert 0 < len(examined) < 9
    assert not list(state.rglob("*.tmp")) + list(state.rglob(".looks*"))


@pytest.mark.parametrize("how", ["cut", "flipped", "foreign", "gone", "wants", "touched", "index"])
def test_what_is_remembered_of_something_else_counts_for_nothing(
    folder: Path, tmp_path: Path, examined: list[str], how: str
) -> None:
    state, config = tmp_path / "state", SMALL
    check_shards(folder, config, 0, None, state)
    tar = folder / "train" / "shard-00001.tar"
    path = state / "train" / f"shard-00001.tar{SUFFIX}"
    data = path.read_bytes()
    match how:
        case "cut":
            path.write_bytes(data[:-100])
        case "flipped":
            path.write_bytes(data[:2000] + bytes([data[2000] ^ 1]) + data[2001:])
        case "foreign":
            path.write_bytes((state / "train" / f"shard-00000.tar{SUFFIX}").read_bytes())
        case "gone":
            path.unlink()
        case "wants":
            config = replace(SMALL, frames=FramesConfig(fps=2.0))
        case "touched":
            os.utime(tar, ns=(1, 1))
        case "index":
            index_path(tar).unlink()
    del examined[:]
    again = check_shards(folder, config, 0, None, state)
    assert findings(again) == findings(check_shards(folder, config))


def test_the_state_of_a_whole_check_serves_what_is_accepted(folder: Path, tmp_path: Path, examined: list[str]) -> None:
    state = tmp_path / "state"
    check_shards(folder, SMALL, 0, None, state)
    del examined[:]
    accepting = replace(SMALL, accept=frozenset({"duplicate", "media"}))
    report = check_shards(folder, accepting, 0, None, state)
    assert [p.kind for p in report.problems] == ["index", "near-duplicate"]
    assert examined == []


def test_what_cannot_be(folder: Path, tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"part": "1/2"}, "--part 1/2 needs --state DIR"),
        ({"part": "3/2", "state": tmp_path}, "write I/N with I from 1 to N"),
        ({"part": "1/2", "state": tmp_path / "s", "fix": tmp_path / "out"}, "check all parts"),
        ({"state": folder / "state"}, "which holds the shards alone"),
    ]
    for bad, says in wrong:
        with pytest.raises(ValueError, match=says):
            check_folder(folder, SMALL, 0, **bad)
    assert sorted(p.name for p in folder.iterdir()) == ["train", "val"]


def test_command_line_in_parts(folder: Path, tmp_path: Path, cli: Any) -> None:
    args = ("shards", "check", str(folder), "--workers", "1", "--state", str(tmp_path / "s"), "--part")
    first = cli(*args, "1/2", check=False)
    assert "2 shards of other parts are not checked yet" in first.stdout
    assert "duplicate" not in first.stdout
    last = cli(*args, "2/2", check=False)
    assert "5 shards, 9 samples, 5 problems, 1 notes" in last.stdout
    assert (first.returncode, last.returncode) == (1, 1)
