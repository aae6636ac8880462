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
        assert whole.peak_mb - whole.start_mb > 3 * (long.peak_mb - long.start_mb), "whole, it would be more"


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
    env = os.environ | MALLOC
    return subprocess.run(command(cache, clip, "early"), cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def command(cache: Path, clip: Path, schedule: str) -> list[str]:
    run = ["--run", str(run_folder(cache, schedule)), "--video", str(clip), "--json", "--max-new-tokens", "4"]
    settings = ["data.frames.fps=1", "data.frames.max_frames=20000"]
    return [sys.executable, "-m", "timeviper.cli", "ask", "What is it?", *run, *settings]


@pytest.mark.slow
def test_ctrl_c_ends_at_once(cache: Path, tmp_path: Path) -> None:
    """When the first line of progress has come, after ten seconds."""
    words = [*command(cache, video(cache, HOURS), "published"), "eval.tokens_per_piece=512"]
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(words, cwd=ROOT, stdout=out, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = next((line for line in process.stderr if "/10,800 frames" in line), "")
    assert said
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert (process.returncode, (tmp_path / "out").read_text()) == (130, "")
    assert time.monotonic() - begun < 15  # with a piece of half a second in between, on a busy machine
