"""The program that a harness's adapter speaks to: lines there and back, and what is said when there is none."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tree import ROOT

FAKE = """
import json, sys
print("a warning of some library")
print(json.dumps({"ready": sys.argv[3] == "RUN"}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if asked["text"] == "end":
        sys.exit(3)
    print(json.dumps({"reply": asked["text"].upper(), "error": "", "args": sys.argv[1:]}), flush=True)
"""


@pytest.fixture(params=["lmms-eval/timeviper_lmms_eval", "vlmevalkit/timeviper_vlmevalkit"])
def door(request: pytest.FixtureRequest) -> ModuleType:
    path = ROOT / "integrations" / request.param / "door.py"
    spec = importlib.util.spec_from_file_location("door", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lines_go_there_and_back(door: ModuleType, tmp_path: Path) -> None:
    program = tmp_path / "fake.py"
    program.write_text(FAKE)
    command = f"{sys.executable} {program}"
    made = door.Door(command, "RUN", "fps:1:8", "a=1 b=2")
    found = made.ask(video="a.mp4", text="what?")
    assert found["reply"] == "WHAT?"
    assert found["args"] == ["bench", "lines", "RUN", "a=1", "b=2", "--frames", "fps:1:8"]
    with pytest.raises(door.DoorError, match="timeviper has ended"):
        made.ask(video="a.mp4", text="end")
    made.close()
    with pytest.raises(door.DoorError, match="did not say that it is ready"):
        door.Door(command, "OTHER")
    with pytest.raises(door.DoorError, match=r"there is no program no-timeviper: .*command="):
        door.Door("no-timeviper", "RUN")
