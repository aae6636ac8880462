"""Questions by lines of JSON: replies as `ask` gives them, one prefill for questions in a row, and bad lines."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from export_helpers import random_run
from video_helpers import write_clip

from timeviper.benchmarking.lines import answer_lines
from timeviper.benchmarking.protocol import protocol_of
from timeviper.cli import main as cli
from timeviper.inference.ask import load
from timeviper.model.viper import TimeViper


def test_lines_are_answered_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    clips = [write_clip(tmp_path / f"{n}.mp4", 20 + n) for n in range(2)]
    model = load(random_run(tmp_path / "run"), device="cpu")
    encoded: list[int] = []
    plain = TimeViper.encode
    monkeypatch.setattr(TimeViper, "encode", lambda self, *a: (encoded.append(len(a[0])), plain(self, *a))[1])
    asked: list[Any] = [{"video": str(clips[0]), "text": f"What {n}?", "max_new_tokens": 3} for n in range(4)]
    asked += [{"video": str(clips[1]), "text": "When?", "max_new_tokens": 3}]
    odd = [{**asked[-1], "frames": "uniform:3"}, {**asked[-1], "frames": "fast"}]
    lines = [*map(json.dumps, asked), "", "[]", "no json", json.dumps({"video": "gone.mp4", "text": "?"})]
    lines += map(json.dumps, odd)
    found = list(answer_lines(model, protocol_of("run", model.recipe.data.frames), lines))
    assert sum(encoded) == 4 + 3  # a frame a second, and three of one that says so
    assert [row["error"] for row in found[:5]] == [""] * 5
    for row, question in zip(found, asked):
        assert row["reply"] == model.ask(question["text"], question["video"], max_new_tokens=3).text
    assert found[5]["error"] == 'a line must be an object with "video" (a path) and "text"'
    assert found[6]["error"]
    assert "gone.mp4" in found[7]["error"]
    assert (found[8]["error"], found[8]["tokens"]["vision"]) == ("", 3 * found[4]["tokens"]["vision"] // 2)
    assert "is none of fps:F:N" in found[9]["error"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines[0] + "\n"))
    monkeypatch.setattr(sys, "argv", ["timeviper", "bench", "lines", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert said == [{"ready": True}, found[0]]
