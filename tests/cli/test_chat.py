"""Several questions of a model that is loaded once, typed or from a pipe."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from export_helpers import random_run
from shard_helpers import clip
from tree import ROOT

from timeviper.cli.chat import talk
from timeviper.cli.clock import clock, clocks_in, read_clock, read_size
from timeviper.errors import ConfigError


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "a.mp4"
    path.write_bytes(clip(1)["mp4"])
    return path


@dataclass
class Watched:
    """A state that answers with what it was asked."""

    path: Path
    asked: list[tuple[str, Path, list[str]]]
    seconds: float = 75.0

    def ask(self, question: str, *, history: Sequence[dict[str, str]] = (), stream: bool = False) -> str:
        self.asked.append((question, self.path, [m["content"] for m in history]))
        return f"from 61.5 to 75.0 seconds: {question}"


def told(
    text: str, video: Path | None, monkeypatch: pytest.MonkeyPatch, person: bool, alone: bool = False
) -> list[tuple[str, Path, list[str]]]:
    asked: list[tuple[str, Path, list[str]]] = []
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    talk(video, lambda path: Watched(path, asked), person, alone)
    return asked


def test_lines_are_questions_and_a_person_is_told_of_mistakes(
    video: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"What?\n\n/video {video.parent / 'none.mp4'}\n/video {video}\nWhen?\n/help\n/quit\nNever\n"
    assert told(text, None, monkeypatch, person=True) == [("When?", video, [])]
    said = capsys.readouterr()
    assert "name a video first: /video FILE" in said.err
    assert "none.mp4" in said.err
    assert "there is no /help" in said.err
    assert "(1:15 of video)" in said.out
    assert "  = 1:01 to 1:15\n" in said.out


def test_a_mistake_in_a_pipe_ends_it(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = told("What?\nWhen?", video, monkeypatch, person=False, alone=True)
    assert asked == [("What?", video, []), ("When?", video, [])]
    with pytest.raises(ValueError, match="name a video first"):
        told("What?\n", None, monkeypatch, person=False)


def test_what_was_said_is_remembered_until_one_begins_anew(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = told("A?\nB?\n/new\nC?\nD?\n/video " + str(video) + "\nE?", video, monkeypatch, person=False)
    answers = {q: f"from 61.5 to 75.0 seconds: {q}" for q in ("A?", "C?")}
    assert [history for *_, history in asked] == [[], ["A?", answers["A?"]], [], ["C?", answers["C?"]], []]


def test_times_as_a_clock_shows_them() -> None:
    assert [clock(s) for s in (0, 5.9, 61, 2220, 3723.5)] == ["0:00", "0:05", "1:01", "37:00", "1:02:03"]
    assert clocks_in("from 2.0 to 65.0 seconds") == "0:02 to 1:05"
    assert clocks_in("at 3.5s, then 3700 s; 7 dogs in 12 frames") == "0:03, 1:01:40"
    assert clocks_in("3 red rings") == ""
    assert [read_clock(t, "--until") for t in ("37:00", "1:02:03.5", "90", "90s")] == [2220.0, 3723.5, 90.0, 90.0]
    for wrong in ("", "1:75", "-3", "nan", "1:2:3:4", "soon"):
        with pytest.raises(ConfigError, match="must be a time such as 37:00"):
            read_clock(wrong, "--until")
    sizes = ("800MB", "2GB", "1.5GiB", "1000000", "3 k")
    assert [read_size(t, "--max-bytes") for t in sizes] == [8 * 10**8, 2 * 10**9, 3 << 29, 10**6, 3000]
    for wrong in ("", "-1GB", "many", "0", "2XB"):
        with pytest.raises(ConfigError, match="must be a size above 0"):
            read_size(wrong, "--max-bytes")


def test_the_command_line_answers_each_line(video: Path, tmp_path: Path) -> None:
    run = random_run(tmp_path / "run")
    command = [sys.executable, "-m", "timeviper.cli", "chat", str(run), "--video", str(video), "--max-new-tokens", "3"]
    done = subprocess.run(command, cwd=ROOT, input="What?\nWhen?\n", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 2
