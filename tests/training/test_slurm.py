"""`recipes/slurm.sbatch` with stand-ins for SLURM's commands: ranks find each other, a signal leads to the queue."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import losses, weights, write_recipe
from tree import ROOT

SCRIPT = ROOT / "recipes/slurm.sbatch"


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """A folder with a `.venv`, `srun` and `scontrol`, and the variables of a batch job on one node."""
    commands = {
        "bin/srun": f'exec {sys.executable} {ROOT / "tests/support/stand_in_srun.py"} "$@"',
        "bin/scontrol": f'test "$1" = show && echo 127.0.0.1 || echo "$@" >> {tmp_path}/scontrol.log',
        ".venv/bin/timeviper": f'exec {sys.executable} -m timeviper.cli "$@"',
    }
    for name, line in commands.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"#!/bin/bash\n{line}\n")
        file.chmod(0o755)
    job = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "here",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_NTASKS_PER_NODE": "2",
    }
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    python = f"{ROOT}:{ROOT / 'tests/support'}"
    return os.environ | job | {"PATH": path, "PYTHONPATH": python, "OMP_NUM_THREADS": "1"}


def test_a_job_that_is_told_to_stop_goes_back_into_the_queue_and_continues(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path)
    job = subprocess.Popen(
        ["bash", str(SCRIPT), str(recipe), "out=whole"],
        cwd=tmp_path,
        env=slurm,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert job.stdout is not None
    for line in job.stdout:
        if "small 2/8" in " ".join(line.split()):
            os.kill(int((tmp_path / "srun.pid").read_text()), signal.SIGUSR1)
            break
    said = job.stdout.read()
    assert job.wait(60) == 0, said
    assert "asked to stop: back into the queue" in said
    assert (tmp_path / "scontrol.log").read_text() == f"requeue {slurm['SLURM_JOB_ID']}\n"
    again = subprocess.run(
        ["bash", str(SCRIPT), str(recipe), "out=whole"], cwd=tmp_path, env=slurm, capture_output=True, text=True
    )
    assert "continuing from step=" in again.stdout, again.stderr
    assert sorted(losses(tmp_path / "whole")) == list(range(8))
    assert weights(tmp_path / "whole")


@pytest.mark.parametrize(
    ("arguments", "missing", "says"),
    [
        ([], "", "which recipe?"),
        (["a.yaml"], "SLURM_NTASKS_PER_NODE", "give --ntasks-per-node"),
        (["a.yaml"], ".venv", "run make setup there"),
    ],
)
def test_what_is_missing_is_said(
    slurm: dict[str, str], tmp_path: Path, arguments: list[str], missing: str, says: str
) -> None:
    slurm.pop(missing, None)
    folder = tmp_path / "empty" if missing == ".venv" else tmp_path
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["bash", str(SCRIPT), *arguments], cwd=folder, env=slurm, capture_output=True, text=True)
    assert done.returncode == 2
    assert says in done.stdout


def test_a_recipe_that_fails_fails_the_job(slurm: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(["bash", str(SCRIPT), "no.yaml"], cwd=tmp_path, env=slurm, capture_output=True, text=True)
    assert done.returncode not in (0, 130)
    assert done.stderr.count("no.yaml") == 1
