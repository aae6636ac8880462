"""Processes for many jobs: their order is kept, few are taken ahead, and none outlives who started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tree import ROOT

from timeviper.datamodules.ordered_pool import ordered
from timeviper.files import whole_file


def slow_if_even(job: int) -> int:
    time.sleep(0.2 * (job % 2 == 0))
    if job == 5:
        raise ValueError("job 5")
    return job


def test_results_and_errors_come_in_order_and_few_jobs_are_taken_ahead() -> None:
    taken: list[int] = []
    jobs = (taken.append(i) or i for i in range(100))
    results = ordered(slow_if_even, jobs, 2, ahead=2)
    for i in range(5):
        assert next(results) == (i, i)
        assert len(taken) <= i + 4
    with pytest.raises(ValueError, match="job 5"):
        next(results)
    assert len(taken) <= 9
    assert [*ordered(slow_if_even, [3, 2, 1], 0)] == [(3, 3), (2, 2), (1, 1)]


def write_without_end(path: Path) -> None:
    with whole_file(path) as partial:
        partial.touch()
        time.sleep(600)


def wait_for(folder: Path, files: int) -> None:
    end = time.monotonic() + 60
    while len(list(folder.iterdir())) != files:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_jobs_that_are_cut_short_clear_up(tmp_path: Path) -> None:
    def stop() -> None:
        wait_for(tmp_path, 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(ordered(write_without_end, [tmp_path / "a", tmp_path / "b"], 2, meanwhile=stop))
    assert list(tmp_path.iterdir()) == []


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from test_ordered_pool import ordered, write_without_end\n"
        f"if __name__ == '__main__': next(ordered(write_without_end, [Path({str(tmp_path)!r}, n) for n in 'ab'], 2))"
    )
    script = tmp_path.with_name("start.py")
    script.write_text(code)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests/support"), str(ROOT / "tests/data")])
    started = subprocess.Popen(
        [sys.executable, script], env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, start_new_session=True
    )
    wait_for(tmp_path, 2)
    os.kill(started.pid, signal.SIGKILL)
    started.communicate(timeout=60)  # returns when the last process of the group has gone
    assert list(tmp_path.iterdir()) == []
