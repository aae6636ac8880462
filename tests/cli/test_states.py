"""`prefill`, `watch`, and `ask` and `chat` about what they keep, as one types them."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from export_helpers import random_run
from rtsp_camera import camera
from tree import ROOT
from video_helpers import write_clip

from timeviper.cli import main as cli
from timeviper.config.load import load_recipe
from timeviper.config.shape import tokens_per_frame
from timeviper.model.state_size import boundary_bytes, frames_within, state_bytes
from timeviper.planning.hardware import GPUS
from timeviper.planning.state_table import hours_held, plan_states

QUESTION = "What colour is the ring?"
DENSE = ("data.frames.fps=10", "data.frames.max_frames=1000", "eval.max_new_tokens=4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("states")


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    return random_run(folder / "run")


@pytest.fixture(scope="module")
def clip(folder: Path) -> Path:
    return write_clip(folder / "clip.ts", 60, options={"g": "12", "bf": "0"})


class Typed:
    """Runs a command in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *words: Any, code: int = 0) -> tuple[str, str]:
        """What it prints to stdout and stderr."""
        self.monkeypatch.setattr(sys, "argv", ["timeviper", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = self.capsys.readouterr()
        assert int(ended.value.code or 0) == code, said.err
        return said.out, said.err


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    return Typed(monkeypatch, capsys)


@pytest.fixture(scope="module")
def kept(folder: Path, run: Path, clip: Path) -> Path:
    command = ["prefill", "--run", str(run), "--video", str(clip), "-o", str(folder / "clip.state"), *DENSE]
    subprocess.run([sys.executable, "-m", "timeviper", *command], cwd=ROOT, check=True, timeout=120)
    return folder / "clip.state"


def test_a_question_about_a_state_is_answered_as_about_the_video(
    typed: Typed, run: Path, clip: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = typed("ask", QUESTION, "--run", run, "--video", clip, *DENSE)
    assert typed("ask", QUESTION, "--state", kept)[0] == expected, "run and settings are those of the state"
    told = json.loads(typed("ask", QUESTION, "--state", kept, "--json")[0])
    assert expected.strip() in told["answer"]  # half a character at the end is not shown
    assert told["tokens"]["vision"] == 240
    assert len(told["frame_times"]) == 60
    monkeypatch.setattr(sys, "stdin", __import__("io").StringIO(f"{QUESTION}\nWhen?\n"))
    said = typed("chat", "--state", kept)[0].strip("\n").split("\n")  # an answer may hold other ends of lines
    assert said[0].strip() == expected.strip()
    assert len(said) == 2


def test_prefill_says_what_it_keeps_and_reads_nothing_twice(
    typed: Typed, run: Path, clip: Path, kept: Path, tmp_path: Path
) -> None:
    again = typed("prefill", "--run", run, "--video", clip, "-o", kept, *DENSE)[0]
    assert again.startswith(f"{kept} is there already, of this video and model: 60 frames of 0:06, ")
    before = kept.stat().st_mtime_ns
    mine = tmp_path / "mine.state"
    mine.write_bytes(kept.read_bytes())
    told = json.loads(typed("prefill", "--run", run, "--video", clip, "-o", mine, "--json", *DENSE[:-1])[0])
    assert (told["frames"], told["tier"]) == (60, "state")
    assert kept.stat().st_mtime_ns == before
    fewer = typed("prefill", "--run", run, "--video", clip, "-o", mine, "data.frames.max_frames=9")[0]
    assert fewer.startswith(f"{mine}: 6 frames of 0:06, ")  # other frames: made anew
    other = typed("prefill", "--run", run, "--video", clip, "-o", mine, "--tier", "features", *DENSE)[0]
    assert other.endswith("(features)\n")
    assert mine.stat().st_size < kept.stat().st_size / 2


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("ask", "Q", "--run", "RUN"), 2, "--video = null\n      a question is about a video of a run"),
        (("ask", "Q"), 2, "about a state (--state)"),
        (
            ("ask", "Q", "--run", "RUN", "--video", "CLIP", "--until", "1:00"),
            2,
            "--until = 1:00\n      is for the state",
        ),
        (("ask", "Q", "--state", "KEPT", "--until", "0:03"), 1, "clip.state: was watched whole, without marks"),
        (("ask", "Q", "--state", "KEPT", "--until", "soon"), 2, "must be a time such as 37:00"),
        (("ask", "Q", "--state", "none.state"), 1, "there is no such state; `timeviper prefill` makes one"),
        (("ask", "Q", "--state", "KEPT", "model.transv.stages.late.keep=0.3"), 1, "transv.stages.late.keep = 0.1, but"),
        (("ask", "Q", "--state", "KEPT", "chat.system=Hush."), 1, "another text stood before the video"),
        (("ask", "Q", "--state", "KEPT", "--run", "OTHER"), 1, "another vision tower encoded the frames"),
        (("ask", "Q", "--state", "KEPT", "--run", "RUN", "--video", "CLIP"), 1, "other frames of the video were taken"),
        (("ask", "Q", "--state", "new.state", "--video", "CLIP"), 2, "say which model is to watch the video"),
        (("chat",), 2, "name a run, or the state of a video"),
        (("prefill", "--run", "RUN"), 2, "say which video"),
        (("prefill", "--run", "RUN", "--video", "CLIP"), 2, "where its state goes (-o FILE)"),
        (("prefill", "--run", "RUN", "--video", "CLIP", "-o", "x", "--tier", "all"), 2, "must be state or features"),
        (("prefill", "--run", "RUN", "--video", "CLIP", "-o", "x", "--max-bytes", "lots"), 2, "must be a size above 0"),
        (
            ("prefill", "--run", "RUN", "--video", "CLIP", "-o", "x", "--max-bytes", "9KB"),
            1,
            "are allowed (--max-bytes)",
        ),
        (("watch", "none.ts", "--run", "RUN", "-o", "x"), 1, "none.ts: no such file; it may grow"),
        (("watch", "CLIP", "--run", "RUN", "-o", "x", "--every", "0"), 2, "must be more than no time"),
    ],
)
def test_what_is_refused(
    words: tuple[str, ...],
    code: int,
    says: str,
    typed: Typed,
    run: Path,
    clip: Path,
    kept: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    other = folder / "other"
    if "OTHER" in words and not other.is_dir():
        random_run(other, seed=5)
    names = {"RUN": run, "CLIP": clip, "KEPT": kept, "OTHER": other}
    assert says in typed(*(names.get(word, word) for word in words), code=code)[1]
    assert list(tmp_path.iterdir()) == []


def test_a_state_whose_run_is_gone(typed: Typed, clip: Path, tmp_path: Path) -> None:
    run = random_run(tmp_path / "run")
    typed("prefill", "--run", run, "--video", clip, "-o", tmp_path / "a.state", *DENSE)
    run.rename(tmp_path / "moved")
    says = typed("ask", QUESTION, "--state", tmp_path / "a.state", code=1)[1]
    assert "which is not there any more: say where it is (--run)" in says
    typed("ask", QUESTION, "--state", tmp_path / "a.state", "--run", tmp_path / "moved")


def small_disk() -> None:
    """No file of more than 100 kB."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_full_disk_costs_no_answer(typed: Typed, run: Path, clip: Path, tmp_path: Path) -> None:
    expected, _ = typed("ask", QUESTION, "--run", run, "--video", clip, *DENSE)
    command = [sys.executable, "-m", "timeviper", "ask", QUESTION, "--run", str(run), "--video", str(clip), *DENSE]
    options: dict[str, Any] = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 120}
    state = tmp_path / "clip.state"
    done = subprocess.run([*command, "--state", str(state)], preexec_fn=small_disk, **options)
    assert (done.returncode, done.stdout) == (0, expected), done.stderr
    assert "the state is not kept, the answer does not need it: " in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert typed(*command[3:], "--state", state)[0] == expected
    assert typed(*command[3:], "--state", state)[0] == expected  # now from the state
    assert state.is_file()


# ---- watching -----------------------------------------------------------------------------------------------


def test_a_pipe_is_watched_and_asked_up_to_a_time(
    typed: Typed, run: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "live.state"
    command = ["watch", "-", "--run", str(run), "-o", str(state), "--every", "2", *DENSE]
    with open(clip, "rb") as file:
        done = subprocess.run(
            [sys.executable, "-m", "timeviper", *command],
            cwd=ROOT, stdin=file, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{state}: 60 frames of 0:06, ")
    assert done.stdout.endswith("(the source has ended)\n")
    assert [p.name for p in tmp_path.iterdir()] == ["live.state"]
    expected, _ = typed("ask", QUESTION, "--run", run, "--video", clip, *DENSE)
    assert typed("ask", QUESTION, "--state", state)[0] == expected
    told = json.loads(typed("ask", QUESTION, "--state", state, "--until", "0:05", "--json")[0])
    assert (len(told["frame_times"]), told["duration"]) == (40, 4.0)
    assert "first mark at 2 s, which is after 1 s" in typed("ask", "Q", "--state", state, "--until", "0:01", code=1)[1]


def test_ctrl_c_keeps_what_was_seen(typed: Typed, run: Path, clip: Path, tmp_path: Path) -> None:
    state, growing = tmp_path / "live.state", tmp_path / "growing.ts"
    growing.write_bytes(clip.read_bytes())
    command = ["watch", str(growing), "--run", str(run), "-o", str(state), "--every", "1", "--patience", "60", *DENSE]
    watching = subprocess.Popen(
        [sys.executable, "-m", "timeviper", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 100
    while not state.is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    says = typed("watch", growing, "--run", run, "-o", state, *DENSE, code=1)[1]
    assert f"{state} is being written by another process" in says
    watching.send_signal(signal.SIGINT)
    out, _ = watching.communicate(timeout=60)
    assert watching.returncode == 0
    assert out.endswith("(stopped)\n")
    typed("ask", QUESTION, "--state", state)
    assert sorted(os.listdir(tmp_path)) == ["growing.ts", "live.state"]


@pytest.mark.parametrize("frames", [60, 0])
def test_ctrl_c_while_a_camera_says_nothing(typed: Typed, run: Path, clip: Path, tmp_path: Path, frames: int) -> None:
    """After its last frame, or before its first: FFmpeg waits, and would for ten minutes."""
    state = tmp_path / "live.state"
    (tmp_path / "none.ts").touch()
    with camera(clip if frames else tmp_path / "none.ts", silent=True) as (address, asked):
        command = ["watch", address, "--run", str(run), "-o", str(state), "--every", "1", "--patience", "600", *DENSE]
        watching = subprocess.Popen(
            [sys.executable, "-m", "timeviper", *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        deadline = time.monotonic() + 100
        while not (state.is_file() if frames else "PLAY" in asked) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.5)
        watching.send_signal(signal.SIGINT)
        out, err = watching.communicate(timeout=20)
    assert watching.returncode == 0, err
    assert "(stopped)" in (out if frames else err)
    assert "Traceback" not in err
    if frames:
        typed("ask", QUESTION, "--state", state)


def test_watching_ends_where_it_was_told_to(typed: Typed, run: Path, clip: Path, tmp_path: Path) -> None:
    words = ("watch", clip, "--run", run, "-o", tmp_path / "a.state", "--patience", "0", *DENSE)
    assert "20 frames of 0:02" in typed(*words, "--for", "2")[0]
    said = typed(*words, "--max-bytes", "250KB", "--every", "1")[0]
    assert "the budget of 0.2 MB is full (--max-bytes)" in said or "the budget of 0.3 MB is full (--max-bytes)" in said
    typed("ask", QUESTION, "--state", tmp_path / "a.state")


# ---- sizes --------------------------------------------------------------------------------------------------


def test_the_sizes_of_the_published_model() -> None:
    """By hand, in MB of 10^6 bytes: 101.0 of Mamba-2 states, 4,096 bytes a token and attention block, and so on."""
    recipe = load_recipe(ROOT / "recipes/nano9b/stage3_long.yaml")
    plan = plan_states(recipe)
    assert (plan.asked_from, plan.blocks) == (39, 56)
    by_hand = {1024: 308.6, 3600: 830.9, 4096: 931.5, 10240: 2177.0}
    for row in plan.rows:
        assert row.state / 1e6 == pytest.approx(by_hand[row.frames], rel=0.001)
        assert row.state == sum(boundary_bytes(recipe.model.decoder, recipe.model.transv, row.vision, 0, 2).values())
        half = row.vision // 2
        exact = 19 * (5_242_880 + 73_728) + half * (3 * 4096 + 4096 + 4480 * 2 + 5)
        assert row.state == exact
        assert row.features == row.frames * 16 * 1152 * 2
    whole = {1024: (268.4, 107.4, 412.0, 250.9), 10240: (2684.4, 1073.7, 2827.9, 1217.3)}
    for frames, figures in whole.items():
        row = next(row for row in plan.rows if row.frames == frames)
        found = (row.keys_whole, row.keys, row.decode_whole, row.decode)
        assert [value / 1e6 for value in found] == pytest.approx(figures, abs=0.06)
    room = (141 - 2) / 1.05 * 1e9 - plan.weights - (1 << 30)  # an H200, see `Assumptions`
    hours = hours_held(recipe, plan, GPUS["h200"])
    by_hand = {"state": 830.9e6, "no_transv": 1087.3e6, "features": 132.7e6}  # an hour at a frame a second
    assert hours == pytest.approx({kind: room / size for kind, size in by_hand.items()}, rel=0.001)
    assert frames_within(recipe.model, "state", 10**9, 2) == pytest.approx(4432, abs=1)
    assert tokens_per_frame(recipe.model) == 16
    assert state_bytes(recipe.model, "features", 10, 0, 2) == 10 * (16 * 1152 * 2 + 8)


def test_the_plan_is_printed_for_recipes_and_runs(typed: Typed, run: Path) -> None:
    out = typed("prefill", "--plan", "--run", "nano9b/stage3_long")[0]
    assert "a question joins it at block 39 of 56" in out
    page = re.sub(" +", " ", (ROOT / "docs/ask-at-scale.md").read_text())
    rows = [re.sub(" +", " ", line) for line in out.splitlines() if re.match(r"\| [^|]*\d", line)]
    assert len(rows) == 9
    assert not [row for row in rows if row not in page]
    told = json.loads(typed("prefill", "--plan", "--run", run, "--json", "model.transv.stages.late=null")[0])
    assert (told["asked_from"], told["blocks"]) == (10, 10)
