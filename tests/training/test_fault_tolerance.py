"""Whatever ends a run: what is on disk stays valid, a message says what to do, and the run goes on to the same end."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jobs import Job, Pictures, losses, no_grace, run, small_files, weights, write_recipe
from tree import ROOT

from timeviper.callbacks.watchdog import Watchdog
from timeviper.config import WatchdogConfig
from timeviper.config.load import load_recipe
from timeviper.datamodules.build import build_plan, class_datasets, pack_format
from timeviper.datamodules.loader import Loader
from timeviper.datamodules.reader import PackReader, Reading
from timeviper.tokenizer import Tokenizer
from timeviper.training.store import CheckpointStore, step_of


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Path:
    """Two ranks, not disturbed."""
    run(recipe.parent, 2, "train", str(recipe), f"out={recipe.parent / 'whole'}")
    return recipe.parent / "whole"


@pytest.fixture(scope="module")
def alone(recipe: Path) -> Path:
    """One rank, not disturbed."""
    run(recipe.parent, 1, "train", str(recipe), f"out={recipe.parent / 'alone'}")
    return recipe.parent / "alone"


def same_bits(a: Path, b: Path) -> bool:
    a_, b_ = weights(a), weights(b)
    return a_.keys() == b_.keys() and all(torch.equal(a_[k], b_[k]) for k in a_)


# ---- signals --------------------------------------------------------------------------------------------


def interrupt(recipe: Path, whole: Path, folder: Path, seed: int) -> None:
    """SIGTERM to one rank or both at a random moment of training; the run that follows has the same end."""
    draw = random.Random(seed)
    out = folder / f"cut{seed}"
    job = Job(folder, 2, "train", str(recipe), f"out={out}")
    job.until(f"small {draw.randint(1, 6)}/8")
    time.sleep(draw.random() * 0.1)
    for rank in draw.choice([[0], [1], [0, 1]]):
        os.kill(job.ranks[rank].pid or 0, signal.SIGTERM)
    assert job.end() == [130, 130], job.said() + job.said(1)
    assert f"saved {out}/checkpoints/step=" in job.said()
    assert "saved" not in job.said(1)
    saved = max(step_of(p) for p in (out / "checkpoints").glob("step=*"))
    assert (out / "checkpoints/latest").read_text() == f"step={saved}\n"
    assert f"continuing from step={saved}" in run(folder, 2, "train", str(recipe), f"out={out}").said()
    assert same_bits(out, whole)
    assert losses(out) == losses(whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_sigterm_at_a_random_step_and_the_run_ends_with_the_same_bits(
    recipe: Path, whole: Path, tmp_path: Path, seed: int
) -> None:
    interrupt(recipe, whole, tmp_path, seed)


@pytest.mark.slow
def test_a_deadline_that_cannot_be_met_is_said_with_what_a_kill_would_leave(recipe: Path, tmp_path: Path) -> None:
    options = ["data.sources.pictures.options={odd: hang}", "train.stop_within=0.3", "train.checkpoint_every=1"]
    job = Job(tmp_path, 1, "train", str(recipe), f"out={tmp_path}", *options)
    job.until("small 1/8")
    while not (tmp_path / "checkpoints/latest").is_file():
        time.sleep(0.01)
    os.kill(job.ranks[0].pid or 0, signal.SIGTERM)
    job.until("SIGTERM was 0.3 s ago (train.stop_within)")
    assert "Killed now, the run would continue from step=" in job.said()
    job.end(0)


# ---- writing checkpoints --------------------------------------------------------------------------------


def kill_while_writing(recipe: Path, whole: Path, folder: Path, world: int, times: int, **settings: bool) -> None:
    """kill -9 of all ranks in the middle of a write, again and again on one run, which still comes to the same end."""
    draw = random.Random(times)
    out = folder / "killed"
    options = ["train.checkpoint_every=1", "train.keep_checkpoints=1", *(f"{k}={v}" for k, v in settings.items())]
    checkpoints, reached = out / "checkpoints", 0
    for _ in range(times):
        job = Job(folder, world, "train", str(recipe), f"out={out}", *options)
        write = checkpoints / f"step={reached + 1}.tmp"
        while not write.is_dir() and job.ranks[0].is_alive():
            time.sleep(0.0005)
        time.sleep(draw.random() * 0.01)
        for rank in job.ranks:
            rank.kill()
        job.end()
        latest = CheckpointStore(checkpoints, 1, load_recipe(recipe)).latest()
        now = step_of(latest) if latest else 0
        assert now in (reached, reached + 1, reached + 2), "an earlier checkpoint was lost"
        reached = now if now < 6 else 0
        if now >= 6:
            shutil.rmtree(out)
    run(folder, world, "train", str(recipe), f"out={out}", *options)
    assert same_bits(out, whole)


def test_kill_9_while_a_checkpoint_is_written_leaves_the_one_before(recipe: Path, alone: Path, tmp_path: Path) -> None:
    kill_while_writing(recipe, alone, tmp_path, 1, 3)


@pytest.mark.slow
@pytest.mark.parametrize("background", [True, False])
def test_kill_9_twenty_times(recipe: Path, whole: Path, tmp_path: Path, background: bool) -> None:
    kill_while_writing(recipe, whole, tmp_path, 2, 20, **{"train.checkpoint_async": background})


@pytest.mark.slow
def test_one_rank_continues_what_two_began_with_the_same_losses(recipe: Path, whole: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "one"))
    shutil.rmtree(out / "export")
    (out / "checkpoints/latest").write_text("step=6\n")
    assert "continuing from step=6" in run(tmp_path, 1, "train", str(recipe), f"out={out}").said()
    assert losses(out) == pytest.approx(losses(whole), rel=1e-6)


@pytest.mark.slow
def test_four_ranks_continue_on_one_and_on_two_with_the_same_losses(recipe: Path, whole: Path, tmp_path: Path) -> None:
    four = tmp_path / "four"
    job = Job(tmp_path, 4, "train", str(recipe), f"out={four}")
    job.until("small 3/8")
    os.kill(job.ranks[2].pid or 0, signal.SIGUSR1)
    assert job.end() == [130] * 4
    for world in (1, 2):
        out = Path(shutil.copytree(four, tmp_path / str(world)))
        run(tmp_path, world, "train", str(recipe), f"out={out}")
        assert losses(out) == pytest.approx(losses(whole), rel=1e-6)


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_no_space_is_one_message_and_the_checkpoint_before_stays(
    recipe: Path, alone: Path, tmp_path: Path, world: int
) -> None:
    out = Path(shutil.copytree(alone, tmp_path / "full"))
    shutil.rmtree(out / "export")
    (out / "checkpoints/latest").write_text("step=6\n")  # back to it: what is newer stays until it is reached again
    before = sorted(p.name for p in (out / "checkpoints").iterdir())
    job = Job(tmp_path, world, "train", str(recipe), f"out={out}", "train.checkpoint_every=1", first=small_files)
    assert job.end() == [1] * world
    assert "continuing from step=6" in job.said()
    assert "could not write the checkpoint of step 7" in job.said()
    assert "File too large" in job.said() or "a file could not be written whole" in job.said()
    assert "step=6 is still valid" in job.said()
    assert "Traceback" not in job.said() + job.said(1)
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == before


def test_latest_decides_and_retention_spares_what_is_newer(recipe: Path, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 2, load_recipe(recipe))
    assert store.latest() is None

    def save(step: int) -> None:
        store.begin(step)
        (store.partial(step) / "tensors").write_bytes(bytes(step))
        store.commit(step, 1, {})

    for step in (1, 2, 10):
        save(step)
    assert [p.name for p in store.whole()] == ["step=2", "step=10"]
    (tmp_path / "latest").write_text("step=2\n")
    assert store.latest() == tmp_path / "step=2"
    save(3)
    assert [p.name for p in store.whole()] == ["step=2", "step=3", "step=10"]
    assert store.latest() == tmp_path / "step=3"
    save(10)
    assert [p.name for p in store.whole()] == ["step=3", "step=10"]
    (tmp_path / "latest").write_text("step=99\n")
    assert store.latest() == tmp_path / "step=10"
    store.begin(11)
    assert store.latest() == tmp_path / "step=10"


# ---- what is refused ------------------------------------------------------------------------------------


def test_checkpoints_of_another_recipe_seed_or_newer_program_are_refused(
    recipe: Path, alone: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(alone, tmp_path / "run"))
    shutil.rmtree(out / "export")

    def refused(*args: str) -> str:
        job = Job(tmp_path, 1, "train", str(recipe), f"out={out}", *args)
        assert job.end() == [2]
        assert job.said().count("error: ") == 1
        assert "Traceback" not in job.said()
        return job.said()

    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert "seed: 0 there, 5 here" in refused("seed=5")
    assert "optim.lr: 0.01 there, 0.5 here" in refused("optim.lr=0.5")
    about = out / "checkpoints/step=8/about.json"
    written = about.read_text()
    about.write_text(json.dumps(json.loads(written) | {"format": 99, "timeviper": "9.9"}))
    assert "written by timeviper 9.9 in format 99" in refused()
    about.write_text(written)
    assert {p for p in out.rglob("*")} == set(before)


# ---- ranks that hang or die -----------------------------------------------------------------------------


def test_the_watchdog_names_rank_step_and_sample_and_ends_the_job(recipe: Path, tmp_path: Path) -> None:
    options = ["data.sources.pictures.options={odd: hang}", "train.watchdog.seconds=0.4", "train.watchdog.abort=true"]
    job = Job(tmp_path, 2, "train", str(recipe), f"out={tmp_path}", *options, first=no_grace)
    codes = job.end()
    assert 75 in codes
    reader = next(rank for rank in (0, 1) if f"Being read: {Pictures.KEY} for" in job.said(rank))
    said = job.said(reader)
    assert f"watchdog: rank {reader} has been waiting for data before step " in said
    assert "in open" in said, "the stack of the main thread"
    other = job.said(1 - reader)
    assert f"watchdog: rank {1 - reader} has been in step " in other
    assert "Samples of the step: pictures/" in other


def test_validation_and_checkpoints_do_not_alarm_the_watchdog(capfd: pytest.CaptureFixture[str]) -> None:
    watchdog = Watchdog(WatchdogConfig(seconds=0.2), lambda step: f"Samples of step {step}")
    trainer: Any = SimpleNamespace(global_rank=3, global_step=7, should_stop=False, max_steps=9)
    module: Any = None
    watchdog.on_fit_start(trainer, module)
    watchdog.on_train_batch_start(trainer, module)
    with watchdog.pause():
        time.sleep(0.5)
    watchdog.on_train_batch_end(trainer, module)
    watchdog.on_validation_start(trainer, module)
    time.sleep(0.5)
    watchdog.on_validation_end(trainer, module)
    trainer.global_step = 9
    watchdog.on_train_batch_end(trainer, module)
    time.sleep(0.5)
    assert capfd.readouterr().err == ""
    trainer.global_step = 8
    watchdog.on_train_batch_end(trainer, module)
    time.sleep(0.5)
    watchdog.stop()
    said = capfd.readouterr().err
    assert "watchdog: rank 3 has been waiting for data before step 8 for 0 s (train.watchdog.seconds=0.2)" in said
    assert "Samples of step 8" in said
    assert said.count("watchdog: ") == 1
    assert "test_validation_and_checkpoints" in said, "the stack of the main thread"


def test_the_watchdogs_default_follows_the_planned_and_the_longest_step() -> None:
    def made(seconds: float | None, planned: float) -> Watchdog:
        return Watchdog(WatchdogConfig(seconds=seconds), str, planned)

    assert made(None, 0.0).seconds == 600
    assert made(None, 30.0).seconds == 600
    assert made(None, 900.0).seconds == 4500
    assert made(20.0, 900.0).seconds == 20
    assert made(0.0, 900.0).seconds == 0
    trainer: Any = SimpleNamespace(global_step=1, should_stop=False, max_steps=9)
    for seconds, limit in ((None, 2500.0), (700.0, 700.0)):
        watchdog = made(seconds, 0.0)
        watchdog.on_train_batch_start(trainer, trainer)
        watchdog._began -= 500
        watchdog.on_train_batch_end(trainer, trainer)
        assert watchdog._limit == pytest.approx(limit, rel=1e-3)


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_others_with_one_message(recipe: Path, tmp_path: Path) -> None:
    job = Job(tmp_path, 2, "train", str(recipe), f"out={tmp_path}", "data.sources.pictures.options={odd: die}")
    codes = job.end()
    dead = codes.index(-signal.SIGKILL)
    assert codes[1 - dead] == 1
    said = job.said(1 - dead)
    assert said.count("error: another rank is gone") == 1
    assert "Traceback" not in said


@pytest.mark.slow
def test_under_torchrun_messages_come_once_and_the_dead_rank_is_named(recipe: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    command = [*torchrun, "-m", "timeviper.cli", "train", str(recipe), f"out={tmp_path / 'run'}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def said(*args: str) -> str:
        done = subprocess.run(
            [*command, *args], cwd=ROOT / "tests/support", env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode
        return done.stdout + done.stderr

    assert said("data.packs_per_step=3").count("must be a multiple of the 2 ranks") == 1
    died = said("data.sources.pictures.options={odd: die}")
    assert died.count("error: another rank is gone") == 1
    assert "Signal 9 (SIGKILL)" in died
    assert "rank      : " in died


def test_a_process_that_hangs_is_seen_with_its_sample_and_ends_with_the_loader(recipe: Path) -> None:
    made = load_recipe(recipe, ["data.sources.pictures.options={odd: hang}"])
    tokenizer, reading = Tokenizer.load(made.model.tokenizer), Reading(2)
    reader = PackReader(tokenizer, pack_format(made), class_datasets(made.data.sources), reading=reading)
    items = iter(Loader(reader, build_plan(made, tokenizer).steps, workers=2, prefetch=8))
    next(items)
    end = time.monotonic() + 60
    while dict(reading.now()).get(Pictures.KEY, 0) < 1 and time.monotonic() < end:
        time.sleep(0.01)
    assert dict(reading.now())[Pictures.KEY] >= 1
    processes = [child for child in multiprocessing.active_children() if child.daemon]
    assert len(processes) == 2
    del items
    assert not any(child.is_alive() for child in processes)
