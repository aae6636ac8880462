"""Shared pieces: a small procedural world on disk, and a way to run the command line as a user does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from media_makers import Animal
from media_zoo import build
from tree import ROOT, Run

torch.set_num_threads(2)
# A job in the background of a shell ignores Ctrl-C, and so would what the tests start and stop by it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default data at a fiftieth of its size."""
    from timeviper.datamodules.world.world import build_world

    folder = tmp_path_factory.mktemp("world")
    build_world(folder, scale=0.02, workers=1)
    return folder


@pytest.fixture(scope="session")
def world_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six held-out videos of the world in the files of public sets: 16 items of Video-MME, 2 of Charades-STA ..."""
    from timeviper.benchmarking.world_sets import write_world_sets

    folder = tmp_path_factory.mktemp("sets")
    write_world_sets(folder, videos=6)
    return folder


@pytest.fixture(scope="session")
def media_zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Animal]:
    """Small files of every kind, with what a player shows of each."""
    return build(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def cli() -> Run:
    """`timeviper ...` in a process of its own, from the repository's root."""

    def run(*args: str, check: bool = True, timeout: float = 300, **options) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "timeviper.cli", *args],
            cwd=ROOT,
            text=True,
            capture_output=True,
            timeout=timeout,
            env=os.environ | options.pop("env", {}),
            **options,
        )
        if check and done.returncode:
            raise AssertionError(f"{args} ended with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
        return done

    return run
