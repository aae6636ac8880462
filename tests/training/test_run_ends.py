"""Ends of runs that people meet: a folder in use, a killed loader, an export that is missing, doubtful weights."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import Job, full_disk_for_exports, run, spoil_steps, weights, write_recipe
from safetensors.torch import load_file
from tree import ROOT

from timeviper.config.load import load_recipe
from timeviper.datamodules.processes import LostLoader
from timeviper.training import lock
from timeviper.training.ends import foreseen
from timeviper.training.lock import LOCK, Held, run_lock
from timeviper.training.restore import export_checkpoint
from timeviper.weights.export import starting_points
from timeviper.weights.hub.convert import export_hf

VAL = ["data.val.pictures.dataset=jobs:Pictures", "data.val.pictures.options={count: 5}"]
ALONE = [f"callbacks.{name}=null" for name in ("throughput", "memory", "transfer", "samples")]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("ends"))


@pytest.fixture(scope="module")
def done(recipe: Path) -> Path:
    """One rank, 8 steps, checkpoints of steps 6 and 8; asked to validate after more steps than there are."""
    out = recipe.parent / "done"
    job = run(recipe.parent, 1, "train", str(recipe), f"out={out}", "train.validate_every=100", *VAL)
    assert "small 8 held out: loss" in job.said(), "the last weights are validated whatever validate_every is"
    assert not (out / LOCK).exists()
    return out


def without_export(done: Path, folder: Path) -> Path:
    out = Path(shutil.copytree(done, folder / "run"))
    shutil.rmtree(out / "export")
    return out


# ---- one run a folder -----------------------------------------------------------------------------------

HOLDER = """
import sys, time
from pathlib import Path
from timeviper.training.lock import run_lock
with run_lock(Path(sys.argv[1]), ""):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that holds a folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_folder_in_use_is_refused_with_host_process_and_time(recipe: Path, tmp_path: Path, holder: Any) -> None:
    job = Job(tmp_path / "jobs", 1, "train", str(recipe), f"out={tmp_path}")
    assert job.end() == [1]
    said = " ".join(job.said().split())
    assert f"{tmp_path} is in use: process {holder.pid} on {socket.gethostname()}, since 20" in said
    assert "Traceback" not in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["jobs", LOCK], "nothing was written"


def test_all_ranks_of_another_job_are_refused(tmp_path: Path, holder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("MASTER_ADDR", "elsewhere")
    with pytest.raises(Held, match=f"process {holder.pid}"), run_lock(tmp_path, "go away"):
        pass


def test_other_ranks_of_the_same_job_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "here")
    with run_lock(tmp_path, ""):
        monkeypatch.setenv("RANK", "1")
        with run_lock(tmp_path, ""):
            pass
        assert (tmp_path / LOCK).exists()
    assert not (tmp_path / LOCK).exists()


def test_the_lock_of_a_killed_process_is_taken_over_and_said(
    tmp_path: Path, holder: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    holder.kill()
    holder.wait()
    with run_lock(tmp_path, ""):
        pass
    assert f"process {holder.pid} on {socket.gethostname()}" in capsys.readouterr().out


@pytest.mark.parametrize("alive", [False, True])
def test_another_hosts_lock_counts_while_it_is_touched(
    tmp_path: Path, alive: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where file systems do not carry locks from host to host."""
    monkeypatch.setattr(lock, "WATCHED", 1.0)
    monkeypatch.setattr(lock, "BEAT", 0.1)
    (tmp_path / LOCK).write_text(json.dumps({"host": "node7", "process": 1, "since": "yesterday", "job": "x"}))
    beat = [sys.executable, "-c", f"import os, time\nwhile 1: time.sleep(0.1); os.utime({str(tmp_path / LOCK)!r})"]
    other = subprocess.Popen(beat if alive else ["true"])
    try:
        if alive:
            time.sleep(0.3)
            with pytest.raises(Held, match="process 1 on node7, since yesterday"), run_lock(tmp_path, ""):
                pass
        else:
            with run_lock(tmp_path, ""):
                pass
            assert "node7, since yesterday, ended without giving the folder back" in capsys.readouterr().out
    finally:
        other.kill()
        other.wait()


def test_a_file_system_without_locks_goes_by_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", none)
    about = {"host": socket.gethostname(), "process": os.getpid(), "since": "now", "job": "x"}
    (tmp_path / LOCK).write_text(json.dumps(about))
    with pytest.raises(Held), run_lock(tmp_path, ""):
        pass
    (tmp_path / LOCK).write_text(json.dumps(about | {"process": 2**22 + 1}))
    with run_lock(tmp_path, ""):
        pass


def test_what_is_refused_later_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x"), run_lock(tmp_path / "run", ""):
        raise ValueError("x")
    assert not (tmp_path / "run").exists()


# ---- loaders, memory, ranks -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("odd", "words"),
    [("die", "SIGKILL|Killed"), ("crash", "SIGSEGV|Segmentation"), ("leave", "it ended with exit code 3")],
)
def test_a_loader_process_that_ends_is_one_message_with_its_sample(
    recipe: Path, tmp_path: Path, odd: str, words: str
) -> None:
    options = ["data.workers=1", f"data.sources.pictures.options={{odd: {odd}}}", "train.checkpoint_every=1"]
    command = [sys.executable, "-m", "timeviper.cli", "train", str(recipe), f"out={tmp_path / 'run'}", *options]
    ended = subprocess.run(command, cwd=ROOT / "tests/support", capture_output=True, text=True, timeout=300)
    said = " ".join((ended.stdout + ended.stderr).split())
    assert ended.returncode == 1
    assert "Traceback" not in said
    assert any(f"is gone: {word}" in said for word in words.split("|")), said[-800:]
    assert "Being read then: pictures/jobs:Pictures/12#0." in said
    # Step 2 is to read it, after two that were read; the checkpoint of the last may not be there yet.
    assert re.search(r"The run continues from (step=[12]|its beginning) with: ", said), said[-800:]


def test_lost_loaders_and_what_torch_says_of_memory_are_understood() -> None:
    assert "SIGKILL, as the system does when memory runs out" in (foreseen(LostLoader(77, -9)) or "")
    assert "SIGSEGV, as happens when a damaged file" in (foreseen(LostLoader(7, -11)) or "")
    assert "pid 34) is gone: it ended with exit code 3." in (foreseen(LostLoader(34, 3)) or "")
    assert "tokens_per_pack" in (foreseen(torch.OutOfMemoryError("CUDA out of memory. Tried")) or "")
    assert "another rank is gone" in (foreseen(RuntimeError("[gloo] Connection closed by peer [::1]")) or "")
    assert foreseen(RuntimeError("shapes do not match")) is None
    assert foreseen(OSError("No space left on device")) is None


# ---- the export -----------------------------------------------------------------------------------------


def test_a_missing_export_is_written_by_the_same_command(recipe: Path, done: Path, tmp_path: Path) -> None:
    """As a kill between the last checkpoint and the export leaves it."""
    out = without_export(done, tmp_path)
    said = run(tmp_path, 1, "train", str(recipe), f"out={out}", "train.validate_every=100", *VAL).said()
    assert "continuing from step=8" in said
    assert "small 8 held out: loss" in said
    assert f"exported {out / 'export'}" in said
    assert all(torch.equal(a, weights(out)[k]) for k, a in weights(done).items())
    before, after = (json.loads((r / "export/lineage.json").read_text()) for r in (done, out))
    assert before == after


def test_a_disk_that_is_full_at_the_export_is_one_message_and_the_same_command_goes_on(
    recipe: Path, done: Path, tmp_path: Path
) -> None:
    out = without_export(done, tmp_path)
    options = ["train", str(recipe), f"out={out}", *VAL]
    job = Job(tmp_path, 1, *options, first=full_disk_for_exports)
    assert job.end() == [1]
    assert "could not write the export" in job.said()
    assert "No space left on device" in job.said()
    assert "Traceback" not in job.said()
    assert not list(out.glob("export*"))
    assert f"exported {out / 'export'}" in run(tmp_path, 1, *options).said()


@pytest.mark.slow
def test_two_ranks_write_a_missing_export(recipe: Path, done: Path, tmp_path: Path) -> None:
    out = without_export(done, tmp_path)
    run(tmp_path, 2, "train", str(recipe), f"out={out}", *VAL)
    assert all(torch.equal(a, weights(out)[k]) for k, a in weights(done).items())


def test_any_checkpoint_becomes_an_export_without_its_data(done: Path, tmp_path: Path) -> None:
    last = tmp_path / "last"
    export_checkpoint(done, "latest", last)
    assert all(torch.equal(a, load_file(last / "model.safetensors")[k]) for k, a in weights(done).items())
    for i, named in enumerate(("step=6", "6", str(done / "checkpoints/step=6"))):
        export_checkpoint(done, named, tmp_path / str(i))
        assert json.loads((tmp_path / str(i) / "lineage.json").read_text())["step"] == 6
    with pytest.raises(ValueError, match="no checkpoint '7'; there are step=6, step=8"):
        export_checkpoint(done, "7", tmp_path / "x")
    with pytest.raises(FileExistsError, match="not overwritten"):
        export_checkpoint(done, "6", last)
    export_hf(last, tmp_path / "hub")
    with pytest.raises(FileExistsError, match="not overwritten"):
        export_hf(last, tmp_path / "hub")
    torn = Path(shutil.copytree(done, tmp_path / "torn"))
    for file in (torn / "checkpoints/step=6").glob("*.distcp"):
        file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ValueError, match="damaged"):
        export_checkpoint(torn, "6", tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("step", ["2", "null"])
def test_a_stage_that_a_callback_ends_is_exported_and_finished(recipe: Path, tmp_path: Path, step: str) -> None:
    own = ["callbacks.own.stop.callback=own_callback:StopAt", f"callbacks.own.stop.options={{step: {step}}}"]
    options = ["train", str(recipe), f"out={tmp_path / 'run'}", "train.validate_every=2", *VAL, *ALONE, *own]
    said = run(tmp_path, 1, *options).said()
    assert "a callback ended the stage at step 2 of 8" in said
    assert said.count("held out: loss") == 1
    assert json.loads((tmp_path / "run/export/lineage.json").read_text())["step"] == 2
    assert (tmp_path / "run/checkpoints/step=2").is_dir()
    assert "finished already" in run(tmp_path, 1, *options).said()


def test_exported_files_have_the_mode_of_other_new_files(done: Path, tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    mode = stat.S_IMODE((tmp_path / "new").stat().st_mode)
    assert {stat.S_IMODE(p.stat().st_mode) for p in done.rglob("*.safetensors")} == {mode}


# ---- what is doubtful, what changes numbers -------------------------------------------------------------


def test_weights_that_can_hardly_be_right_are_exported_with_a_warning_and_a_code(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["train", str(recipe), f"out={out}", "train.steps=3", *VAL, *ALONE, "train.guard.policy=skip"]
    job = Job(tmp_path, 1, *options, first=spoil_steps)
    assert job.end() == [4], job.said()[-2000:]
    for line in ("3 of 3 steps were skipped", "the held-out loss at the end is nan"):
        assert line in job.said()
    again = Job(tmp_path, 1, *options)
    assert again.end() == [4]
    assert "finished already" in again.said()
    assert "3 of 3 steps were skipped" in again.said()


def test_other_numbers_on_the_way_are_refused_or_said(recipe: Path, done: Path, tmp_path: Path) -> None:
    out = without_export(done, tmp_path)
    job = Job(tmp_path, 1, "train", str(recipe), f"out={out}", "parallel.param_dtype=bfloat16", *VAL)
    assert job.end() == [2]
    assert "parallel.param_dtype: 'float32' there, 'bfloat16' here" in job.said()
    (out / "checkpoints/latest").write_text("step=6\n")
    said = run(tmp_path, 1, "train", str(recipe), f"out={out}", "model.kernel.ssd=reference", *VAL).said()
    assert "continuing with other kernels, so with other rounding: model.kernel.ssd: 'auto' there" in said


def test_a_stage_starts_from_a_run_folder_and_says_what_is_random(recipe: Path, done: Path, tmp_path: Path) -> None:
    options = ["train", str(recipe), "train.steps=1", *ALONE]
    run(tmp_path, 1, *options, f"out={tmp_path / 'a'}", f"train.init_from={done}")
    again = run(tmp_path, 1, *options, f"out={tmp_path / 'a'}", f"train.init_from={done / 'export'}")
    assert "finished already" in again.said()
    assert json.loads((tmp_path / "a/export/lineage.json").read_text())["from"]["step"] == 8
    longer = Job(tmp_path, 1, "train", str(recipe), f"out={done}", "train.steps=20", "train.validate_every=100", *VAL)
    assert longer.end() == [2]
    assert f"train.init_from={done}" in longer.said()


def test_where_first_values_come_from_is_said(recipe: Path, done: Path, tmp_path: Path) -> None:
    def told(*overrides: str) -> list[str]:
        return starting_points(load_recipe(recipe, overrides))

    begin, idle = told()
    assert begin == "starts with tower, projector, decoder, transv at random"
    assert idle.startswith("tower: random, and not in train.trainable")
    assert told(f"train.init_from={done}") == [f"starts with tower, projector, decoder, transv from {done}"]
    tower = Path(shutil.copytree(done / "export", tmp_path / "tower"))
    lineage = json.loads((tower / "lineage.json").read_text())
    (tower / "lineage.json").write_text(json.dumps(lineage | {"parts": ["projector", "tower"]}))
    begin, random = told(f"train.init_from={tower}")
    assert begin == f"starts with tower, projector from {tower}; decoder, transv at random"
    assert random.startswith("the decoder starts at random")
    assert "decoder, transv: random, and not in" in told(f"train.init_from={tower}", "train.trainable=[projector]")[2]
