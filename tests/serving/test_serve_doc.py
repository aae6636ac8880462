"""The examples of the page run as they are printed, but for the port."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from export_helpers import random_run
from served import Served, serving
from tree import ROOT
from video_helpers import write_clip

from timeviper.inference.ask import load

TEXT = (ROOT / "docs/ask-at-scale.md").read_text()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    model = load(random_run(tmp_path_factory.mktemp("run")), device="cpu", overrides=["eval.max_new_tokens=4"])
    with serving(model, tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_clip(tmp_path / "clip.mp4", 20)
    return tmp_path


def test_the_example_in_python(served: Served, folder: Path) -> None:
    (code,) = [b for b in re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S) if "from openai" in b]
    code = code.replace("http://127.0.0.1:8000", served.url)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, second = (int(line.split()[-1]) for line in done.stdout.splitlines()[:2])
    assert first == 0 < second


def test_the_examples_of_curl(served: Served, folder: Path) -> None:
    commands = re.findall(r"^curl .*$", TEXT, re.M)
    assert len(commands) >= 3
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", command.replace("http://127.0.0.1:8000", served.url)],
            cwd=folder, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert '"id"' in done.stdout, (command, done.stdout)
