"""Several questions of a model that is loaded once, typed or from a pipe."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from export_helpers import random_run
from shard_helpers import clip
from tree import ROOT

from timeviper.cli.chat import chat


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "a.mp4"
    path.write_bytes(clip(1)["mp4"])
    return path


def told(text: str, video: Path | None, monkeypatch: pytest.MonkeyPatch, person: bool) -> list[tuple[str, Any]]:
    asked: list[tuple[str, Any]] = []
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    chat(video, lambda question, about: asked.append((question, about)), person)
    return asked


def test_lines_are_questions_and_a_person_is_told_of_mistakes(
    video: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"What?\n\n/video {video.parent / 'none.mp4'}\n/video {video}\nWhen?\n/help\n/quit\nNever\n"
    assert told(text, None, monkeypatch, person=True) == [("When?", video)]
    said = capsys.readouterr().err
    assert "name a video first: /video FILE" in said
    assert "none.mp4" in said
    assert "there is no /help" in said


def test_a_mistake_in_a_pipe_ends_it(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert told("What?\nWhen?", video, monkeypatch, person=False) == [("What?", video), ("When?", video)]
    with pytest.raises(ValueError, match="name a video first"):
        told("What?\n", None, monkeypatch, person=False)


def test_the_command_line_answers_each_line(video: Path, tmp_path: Path) -> None:
    run = random_run(tmp_path / "run")
    command = [sys.executable, "-m", "timeviper.cli", "chat", str(run), "--video", str(video), "--max-new-tokens", "3"]
    done = subprocess.run(command, cwd=ROOT, input="What?\nWhen?\n", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 2
