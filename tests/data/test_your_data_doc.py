"""docs/your-data.md: its commands run as printed, where the files that it names are there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from own_data import image, video
from tree import ROOT

from timeviper.datamodules.build import load_index
from timeviper.datamodules.checks.defects import NOTES, PROBLEMS

DOC = (ROOT / "docs" / "your-data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", DOC, re.MULTILINE | re.DOTALL)
WRITES = [block for block in BLOCKS if "timeviper shards write" in block]
SLOW = re.compile(r"\S*timeviper (train|preview|shards check) ")  # seconds each, tested elsewhere


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has: a video, an image, and the program."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "a.mp4").write_bytes(video())
    (folder / "b.jpg").write_bytes(image())
    program = folder / ".venv" / "bin" / "timeviper"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m timeviper.cli "$@"\n')
    program.chmod(0o755)
    return folder


@pytest.mark.parametrize("block", WRITES, ids=range(len(WRITES)))
def test_commands_work_as_printed(folder: Path, block: str) -> None:
    script = "\n".join(line for line in block.splitlines() if not SLOW.match(line))
    path = f"{folder}/.venv/bin:{os.environ['PATH']}"  # as `source .venv/bin/activate` leaves it
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": path}
    done = subprocess.run(["bash", "-eu", "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    for out in set(re.findall(r"shards write \S+ (\S+)", script)):
        assert sum(len(shard.samples) for shard in load_index(folder / out)) > 0


def test_the_document_shows_every_way_in() -> None:
    written = " ".join(WRITES)
    for source in ("clips.jsonl", "clips", "llava.json", "captions.csv", "moments.jsonl", "films", "webdataset"):
        assert f"shards write {source} data/" in written


def test_the_document_lists_all_that_the_doctor_finds() -> None:
    for kind, meaning in (PROBLEMS | NOTES).items():
        assert f"`{kind}`" in DOC
        assert meaning in DOC
