"""Every command of README and the pages, in order, in one clone: each works from the state that those before it leave.

What is typed is what is printed; only the program in `.venv/bin` shortens stages to a few steps and draws the small
world. The page on extending has a test of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from doc_commands import blocks, lines
from own_data import image, video
from tree import ROOT

PAGES = ("README.md", "docs/your-data.md", "docs/features.md", "docs/recipes.md", "docs/planning.md")
FEW = "train.steps=3 train.validate_every=0 train.validate_samples=4 data.workers=0"
PHASES = {
    "stage1_align": "train.phases.videos.start=1",
    "ramp": "train.phases.close.start=1 train.phases.close.ramp=1",
}
FILES = re.MULTILINE | re.DOTALL
# Not here, and why.
ELSEWHERE = {
    r"make test": "this is a part of it",
    r"NNODES=|sbatch": "several machines",
    r"s3:|aws ": "a bucket",
    r"timeviper import models/": "weights of 18 GB",
    r"incidents/step=412": "a step that went wrong",
    r"runs/tiny/chains/": "make bench-seeds, which trains for an hour",
    r"bench/videos": "somebody's held-out videos",
    r"tensorboard": "does not end",
    r"make serve|timeviper serve|curl |serve\.key": "does not end; tests/serving/test_serve_doc.py runs what asks it",
}
PROGRAM = f"""#!/bin/bash
case "$1 $2" in
  "shards world") set -- "$@" --scale small ;;
  train\\ *) case " $* " in *" --fits "*|*" --check "*) ;; *)
    set -- "$@" {FEW}
{"".join(f'    case "$2" in *{name}.yaml) set -- "$@" {more} ;; esac{chr(10)}' for name, more in PHASES.items())}
    ;; esac ;;
esac
exec "{sys.executable}" -m timeviper.cli "$@"
"""


@pytest.mark.slow
def test_every_command_works_in_order(tmp_path: Path) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for name in filter(None, listed):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / name, follow_symlinks=False)
    programs = tmp_path / ".venv/bin"
    programs.mkdir(parents=True)
    (programs / "timeviper").write_text(PROGRAM)
    (programs / "timeviper").chmod(0o755)
    for name in ("python", "torchrun"):
        (programs / name).symlink_to(Path(sys.executable).parent / name)
    for name in (".ready", ".tested"):
        (tmp_path / ".venv" / name).touch()
    for name in ("a.mp4", "clip.mp4"):
        (tmp_path / name).write_bytes(video())
    (tmp_path / "b.jpg").write_bytes(image())
    path = f"{programs}:{os.environ['PATH']}"
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PATH": path, "OMP_NUM_THREADS": "1"}
    for page in PAGES:
        for name, code in re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", (ROOT / page).read_text(), FILES):
            (tmp_path / name).write_text(code)
        for block in blocks(page):
            script = block.replace("\\\n", " ")
            for line in lines(block):
                if any(re.search(pattern, line) for pattern in ELSEWHERE):
                    script = script.replace(f"{line}\n", "")
            done = subprocess.run(
                ["bash", "-euc", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
            )
            assert done.returncode == 0, f"{page}:\n{script}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            print(f"{page}: {script}{done.stdout[-500:]}")
