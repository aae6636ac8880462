"""Whole stages through the command line: hand-over, interruption, resume, refusals, ranks."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stage_options import options
from tree import ROOT, Run


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "export" / "model.safetensors")


def losses(run: Path) -> list[float]:
    found: dict[int, float] = {}
    for file in sorted((run / "logs").glob("from-step-*/metrics.csv")):
        header, *rows = [line.split(",") for line in file.read_text().splitlines()]
        for row in rows:
            if value := row[header.index("train/loss")]:
                found[int(row[header.index("step")])] = float(value)
    return [found[s] for s in sorted(found)]


@pytest.fixture(scope="module")
def stages(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stages 0 and 1, a few steps each."""
    runs = tmp_path_factory.mktemp("runs")
    for args in (options(world, runs, "stage0_tower", 3), options(world, runs, "stage1_align", 3, "stage0_tower")):
        subprocess.run([sys.executable, "-m", "timeviper.cli", "train", *args], cwd=ROOT, check=True, timeout=300)
    return runs


def test_a_stage_takes_over_the_previous_one_and_keeps_frozen_parts(stages: Path, cli: Run) -> None:
    tower, aligned = weights(stages / "stage0_tower"), weights(stages / "stage1_align")
    shared = [k for k in tower if k.startswith("towers.")]
    assert shared
    for key in shared:
        assert torch.equal(tower[key], aligned[key]), key
    lineage = json.loads((stages / "stage1_align/export/lineage.json").read_text())
    assert lineage["from"]["name"] == "stage0_tower"
    assert lineage["step"] == 3


def test_a_finished_stage_is_not_repeated_and_other_settings_are_refused(stages: Path, world: Path, cli: Run) -> None:
    args = options(world, stages, "stage1_align", 3, "stage0_tower")
    before = (stages / "stage1_align/export/model.safetensors").stat().st_mtime_ns
    assert "finished already" in cli("train", *args).stdout
    refused = cli("train", *args, "optim.lr=0.5", check=False)
    assert refused.returncode
    assert "optim.lr" in refused.stderr
    assert "0.5 here" in refused.stderr
    assert (stages / "stage1_align/export/model.safetensors").stat().st_mtime_ns == before


def test_a_signal_to_all_processes_then_the_same_command_ends_with_the_same_bits(
    stages: Path, world: Path, tmp_path: Path, cli: Run
) -> None:
    for previous in ("stage1_align",):
        (tmp_path / previous).symlink_to(stages / previous)
    # With several threads, products were seen to round differently after a restart (1e-7); with one they do not.
    one_thread = {"OMP_NUM_THREADS": "1"}
    whole = options(world, tmp_path, "stage2_instruct", 10, "stage1_align")
    cli("train", *whole, env=one_thread)
    cut = [a.replace(f"out={tmp_path / 'stage2_instruct'}", f"out={tmp_path / 'cut'}") for a in whole]
    process = subprocess.Popen(
        [sys.executable, "-m", "timeviper.cli", "train", *cut],
        cwd=ROOT,
        env=os.environ | one_thread,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "stage2_instruct  4/10" in line:
            os.killpg(process.pid, signal.SIGUSR1)  # as SLURM does: loader processes and their helpers, too
            break
    said = process.stdout.read()
    assert process.wait(120) != 0, "make must not go on to the next stage"
    assert "To continue" in said
    saved = list((tmp_path / "cut/checkpoints").glob("step=*"))
    assert len(saved) == 1
    assert not (tmp_path / "cut/export").exists()
    assert f"continuing from {saved[0].name}" in cli("train", *cut, env=one_thread).stdout
    a, b = weights(tmp_path / "stage2_instruct"), weights(tmp_path / "cut")
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key
    assert losses(tmp_path / "cut") == losses(tmp_path / "stage2_instruct")


def test_a_checkpoint_that_cannot_be_written_leaves_the_previous_one(
    stages: Path, world: Path, tmp_path: Path, cli: Run
) -> None:
    (tmp_path / "stage1_align").symlink_to(stages / "stage1_align")
    args = [
        *options(world, tmp_path, "stage2_instruct", 6, "stage1_align"),
        "train.checkpoint_every=2",
        "data.workers=0",
    ]

    def full_disk_after_4_mb() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, 4 << 20))

    run = tmp_path / "stage2_instruct"
    first = subprocess.Popen(
        [sys.executable, "-m", "timeviper.cli", "train", *args], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    for line in first.stdout:
        if "stage2_instruct 2/6" in line:
            first.send_signal(signal.SIGTERM)
            break
    first.stdout.read()
    first.wait(120)
    kept = sorted(p.name for p in (run / "checkpoints").iterdir())
    failed = cli("train", *args, check=False, preexec_fn=full_disk_after_4_mb)
    assert failed.returncode
    assert "could not write the checkpoint" in failed.stderr
    assert f"{kept[-1]} is still valid" in failed.stderr
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == kept
    assert f"continuing from {kept[-1]}" in cli("train", *args).stdout


def test_another_model_is_refused_with_a_sentence(stages: Path, world: Path, tmp_path: Path, cli: Run) -> None:
    (tmp_path / "stage1_align").symlink_to(stages / "stage1_align")
    args = options(world, tmp_path, "stage2_instruct", 3, "stage1_align")
    other = cli("train", *args, "model.decoder.mlp_width=256", check=False)
    assert other.returncode
    assert "model.decoder.mlp_width: 384 there, 256 here" in other.stderr
    missing = cli("train", *args, f"train.init_from={tmp_path / 'nowhere'}", check=False)
    assert missing.returncode
    assert "there is no such export" in missing.stderr
    assert not (tmp_path / "stage2_instruct").exists()


def test_no_write_permission_is_one_message(stages: Path, world: Path, cli: Run) -> None:
    args = options(world, stages, "stage2_instruct", 3, "stage1_align")
    refused = cli("train", *args, "out=/proc/no/such/place", check=False)
    assert refused.returncode
    assert "/proc/no" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("cut", ["data.packs_per_step=3"])
def test_a_world_that_does_not_divide_the_packs_is_refused(stages: Path, world: Path, tmp_path: Path, cut: str) -> None:
    (tmp_path / "stage1_align").symlink_to(stages / "stage1_align")
    args = [*options(world, tmp_path, "stage2_instruct", 3, "stage1_align"), cut]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    done = subprocess.run(
        [*torchrun, "-m", "timeviper.cli", "train", *args], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode
    assert "must be a multiple of the 2 ranks" in done.stderr


def test_two_ranks_have_the_losses_of_one(stages: Path, world: Path, tmp_path: Path, cli: Run) -> None:
    (tmp_path / "stage1_align").symlink_to(stages / "stage1_align")
    # With AdamW: Muon finds directions in bfloat16 (tests/training/test_optim.py compares its ranks).
    one = [*options(world, tmp_path, "stage2_instruct", 5, "stage1_align"), "optim.name=adamw"]
    cli("train", *one)
    two = [a.replace(f"out={tmp_path / 'stage2_instruct'}", f"out={tmp_path / 'two'}") for a in one]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    subprocess.run([*torchrun, "-m", "timeviper.cli", "train", *two], cwd=ROOT, check=True, timeout=300)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "stage2_instruct"), rel=1e-5)
    tower = weights(stages / "stage0_tower")
    after = weights(tmp_path / "two")
    assert all(torch.equal(v, after[k]) for k, v in tower.items() if k.startswith("towers."))
