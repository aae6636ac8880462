"""Three hours of video, asked about and evaluated in processes of their own, in the memory of five minutes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tree import ROOT

from timeviper.kernels.attention import MASK_BUDGET

BENCH = ROOT / "benchmarks" / "bench_ask.py"
sys.path.insert(0, str(BENCH.parent))

from bench_ask import MALLOC, Case, Result, in_own_process, run_folder, video  # noqa: E402

HOURS = 3 * 3600
# Attention of a piece to the tokens before it goes through a mask on a CPU, of a size that does not grow any more: as
# bool, and as float.
MASKS_MB = 5 * MASK_BUDGET / 2**20


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hours")


def rest(result: Result) -> float:
    return result.peak_mb - result.kept_mb


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["ask", "eval"])
def test_three_hours_take_the_memory_of_five_minutes(cache: Path, verb: str) -> None:
    short, long = (in_own_process(Case(verb, "early", seconds), cache) for seconds in (300, HOURS))
    print(short, long, sep="\n")
    assert long.frames == HOURS
    assert rest(long) < 1.2 * rest(short)
    if verb == "ask":
        whole = in_own_process(Case(verb, "early", HOURS, 0), cache)
        assert whole.text == long.text
        assert whole.peak_mb > 1.5 * long.peak_mb, "whole, it would be more"


@pytest.mark.slow
def test_three_hours_with_the_published_schedule(cache: Path) -> None:
    short, long = (in_own_process(Case("ask", "published", seconds), cache) for seconds in (300, HOURS))
    print(short, long, sep="\n")
    assert rest(long) - MASKS_MB < 1.2 * rest(short)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.75, 0.4])
def test_a_video_that_breaks_off_in_hour_two(cache: Path, tmp_path: Path, share: float) -> None:
    """More than half is asked about, less than half is refused; before any of it goes through the model."""
    whole = video(cache, HOURS).read_bytes()
    import av

    source, cut = tmp_path / "whole.mkv", tmp_path / "cut.mkv"
    (tmp_path / "whole.mp4").write_bytes(whole)
    with av.open(str(tmp_path / "whole.mp4")) as file, av.open(str(source), "w") as out:  # mp4 has its index at the end
        stream = out.add_stream_from_template(file.streams.video[0])
        for packet in file.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    data = source.read_bytes()
    cut.write_bytes(data[: int(len(data) * share)])
    done = ask(cache, cut)
    if share < 0.5:
        assert done.returncode == 1
        assert "of 10800 frames can be decoded" in done.stderr
    else:
        told: dict[str, Any] = json.loads(done.stdout)
        assert 0.7 < len(told["frame_times"]) / HOURS < 0.8


def ask(cache: Path, clip: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "timeviper.cli", *arguments(cache, clip)]
    env = os.environ | MALLOC
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def arguments(cache: Path, clip: Path) -> list[str]:
    settings = ["data.frames.fps=1", "data.frames.max_frames=20000", "--json", "--max-new-tokens", "4"]
    return ["ask", "What is it?", "--run", str(run_folder(cache, "early")), "--video", str(clip), *settings]


@pytest.mark.slow
def test_ctrl_c_ends_at_once(cache: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "timeviper.cli",
        *arguments(cache, video(cache, HOURS)),
        "eval.tokens_per_piece=512",
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "/10,800 frames" in line:
            break
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert time.monotonic() - begun < 5
