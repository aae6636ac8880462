"""The command line as a person meets it: help, messages, exit codes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tree import ROOT

from timeviper.cli import main as module
from timeviper.package import VERSION

VERBS = ("train", "eval", "compare", "needles", "ask", "explain", "doctor", "preview", "import", "export", "shards")
STAGE2 = "recipes/tiny/stage2_instruct.yaml"


def invoke(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `timeviper args`, in this process."""
    monkeypatch.setattr(sys, "argv", ["timeviper", *args])
    with pytest.raises(SystemExit) as exit:
        module.main()
    out, err = capsys.readouterr()
    return int(exit.value.code or 0), out, err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *args: invoke(monkeypatch, capsys, *args)


def test_help_names_every_verb(run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert all(f" {verb} " in out for verb in VERBS)


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("train", ["RECIPE", "KEY=VALUE"]),
        ("eval", ["RUN", "KEY=VALUE", "--again"]),
        ("compare", ["RUN_A", "RUN_B", "KEY=VALUE", "--json"]),
        ("needles", ["RUN... [KEY=VALUE]...", "--lengths", "--depths", "--needles", "--also", "--json"]),
        ("ask", ["QUESTION", "--run", "--video", "--json"]),
        ("explain", ["RECIPE", "KEY=VALUE"]),
        ("preview", ["RECIPE", "--steps", "--ranks"]),
        ("import", ["HF_DIR", "OUT"]),
        ("export", ["RUN", "OUT"]),
        ("shards world", ["OUT", "--scale", "--workers", "--seed"]),
        ("shards needles", ["OUT", "--videos", "--images", "--lengths", "--depths", "--train"]),
        ("shards write", ["SOURCE", "OUT", "--samples-per-shard"]),
        ("shards index", ["FOLDER"]),
        ("shards check", ["FOLDER"]),
    ],
)
def test_help_of_each_verb(run, verb: str, words: list[str]) -> None:
    code, out, _ = run(*verb.split(), "--help")
    assert code == 0
    assert all(word in out for word in words), out


def test_help_is_quick_because_it_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['timeviper', '--help']\n"
        "from timeviper.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'lightning', 'av', 'omegaconf', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_recipe_with_problems_is_one_message_and_code_2(run) -> None:
    code, out, err = run("train", STAGE2, "optim.lrr=1", "--steps=3")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {STAGE2}: 2 problems")
    assert "Did you mean optim.lr?" in err
    assert "write steps=3" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["train", "recipes/tiny/stage2.yaml"], "did you mean"),
        (["explain", "nowhere/r.yaml"], "there is no recipe"),
        (["shards", "write", "nowhere.jsonl", "out"], "there is no nowhere.jsonl"),
    ],
)
def test_a_missing_file_is_one_message_and_code_1(run, args: list[str], says: str) -> None:
    code, _, err = run(*args)
    assert code == 1
    assert err.startswith("error: ")
    assert says in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["explain", "tiny/stage2_instruct"], 0, "recipes/tiny/stage2_instruct.yaml:"),
        (["explain", "tiny/stage2_instruct", "data.frame"], 2, "Did you mean data.frames?"),
        (["train", "--check", "tiny/stage2_instruct"], 2, "make shards"),
        (["train", "--fits", "tiny/stage2_instruct"], 0, ""),
        (["plan", "nano9b/stage2_instruct"], 3, ""),
        (["plan", "tiny/stage1_align", "nano9b/stage2_instruct", "--json"], 3, ""),
        (["train", "tiny/stage2_instruct"], 2, "data.sources.images.shards"),
        (["plan", "tiny/stage1_align", "tiny/stage2_instruct"], 0, "b: tiny/stage2_instruct"),
        (["plan", "tiny/stage1_align", "tiny/nothing"], 2, "write tiny/nothing=VALUE"),
        (["preview", "tiny/stage2_instruct"], 1, "data/world/train/images does not exist"),
        (["eval", "tiny/stage2_instruct"], 1, "runs/tiny/stage2_instruct is not an export"),
        (["shards", "features", "tiny/stage2_instruct", "out"], 2, "data.sources.images.shards"),
        (["shards", "check", "nowhere", "--recipe", "tiny/stage2"], 1, "did you mean tiny/stage2_instruct?"),
    ],
)
def test_every_verb_knows_the_shipped_recipes(
    run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, args: list[str], code: int, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ended, out, err = run(*args)
    assert ended == code
    assert says in (err if code else out)


def test_debug_shows_where_an_error_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["timeviper", "explain", "nowhere/r.yaml", "--debug"])
    with pytest.raises(FileNotFoundError):
        module.main()


def test_an_unknown_verb_is_refused(run) -> None:
    code, _, err = run("trian")
    assert code == 2
    assert "trian" in err


def test_explain_shows_a_part_in_lines_that_a_program_can_read(run) -> None:
    code, out, _ = run("explain", STAGE2, "data.frames", "data.turns", "data.frames.fps=2")
    assert code == 0
    settings = dict(line.split("  # ")[0].split(" = ") for line in out.splitlines())
    assert settings == {
        "data.frames.fps": "2.0",
        "data.frames.min_frames": "1",
        "data.frames.max_frames": "12",
        "data.turns": "whole",
    }
    assert out.splitlines()[0].endswith("until `max_frames` binds. [command line]")


@pytest.mark.parametrize("module", ["timeviper", "timeviper.cli"])
def test_the_version_and_completion_of_the_program_as_a_module(module: str) -> None:
    program = [sys.executable, "-m", module]
    done = subprocess.run([*program, "--version"], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == f"timeviper {VERSION}\n"
    asked = {
        "_TIMEVIPER_COMPLETE": "complete_bash",
        "COMP_WORDS": "timeviper expl",
        "COMP_CWORD": "1",
    }
    code = "import sys; sys.argv = ['timeviper']; from timeviper.cli.main import app; app(prog_name='timeviper')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=os.environ | asked
    )
    assert done.stdout.split() == ["explain"]


def test_check_says_what_it_checked(run, tmp_path: Path, world: Path) -> None:
    data = [f"data.sources.{name}.shards={world / 'train' / name}" for name in ("images", "clips", "videos")]
    data += [f"data.sources.{name}.shards={world / 'train' / 'videos'}" for name in ("questions", "motion")]
    data.append(f"data.val.videos.shards={world / 'val'}/videos")
    args = ("train", "--check", STAGE2, *data, f"out={tmp_path / 'run'}")
    code, _, err = run(*args)
    assert code == 2
    assert err.count("there is no such export") == 1, "and nothing else is missing"
    code, out, err = run(*args, f"train.init_from={tmp_path}")
    assert code == 0, err
    assert f"is there: data.val.videos = {world / 'val'}/videos" in out
    assert "packs a step can be dealt to 1 rank" in out
    assert "not checked: " in out
    assert not (tmp_path / "run").exists()


def test_explain_prints_every_setting(run) -> None:
    code, out, _ = run("explain", STAGE2, "optim.lr=3e-3")
    assert code == 0
    line = next(line for line in out.splitlines() if "optim.lr " in line)
    assert "0.003" in line
    assert "command line" in line
    assert "Peak learning rate" in line
    assert "model.transv.stages.late.select" in out


def test_doctor_tells_the_machine_and_the_kernels(run) -> None:
    code, out, _ = run("doctor")
    assert code == 0
    for word in (
        "python",
        "torch",
        "memory",
        "gpu",
        "ffmpeg",
        "libx264",
        "ssd",
        "attention",
        "varlen_attn",
        "brings",
        "nvcc",
    ):
        assert word in out


def test_a_folder_of_media_becomes_shards_that_pass_the_check(run, world: Path, tmp_path: Path) -> None:
    import tarfile

    shard = next((world / "val" / "clips").glob("*.tar"))
    with tarfile.open(shard) as tar:
        videos = [m for m in tar.getmembers() if m.name.endswith(".mp4")][:3]
        tar.extractall(tmp_path / "media", members=videos, filter="data")
    for i, video in enumerate(videos):
        (tmp_path / "media" / video.name).with_suffix(".txt").write_text(f"caption {i}")
    code, out, err = run("shards", "write", str(tmp_path / "media"), str(tmp_path / "out"))
    assert code == 0, err
    assert "3 samples in 1 shards" in out
    code, out, _ = run("shards", "check", str(tmp_path / "out"))
    assert code == 0
    assert "3 samples, 0 problems" in out
    (tmp_path / "out" / "shard-00000.idx.json").unlink()
    assert run("shards", "index", str(tmp_path / "out"))[0] == 0
    assert (tmp_path / "out" / "shard-00000.idx.json").is_file()


def test_preview_shows_the_packs_of_each_rank(run, world: Path) -> None:
    data = [f"data.sources.{name}.shards={world / 'train' / name}" for name in ("images", "clips", "videos")]
    data += [f"data.sources.{name}.shards={world / 'train' / 'videos'}" for name in ("questions", "motion")]
    code, out, err = run("preview", STAGE2, *data, "data.packs_per_step=2", "--steps", "2", "--ranks", "2")
    assert code == 0, err
    rows = [line for line in out.splitlines() if "shard-" in line]
    assert len(rows) == 4
    assert re.search(r"questions\W+[\d,]+\W+\d+\W+\d\.\d\d\W+[\d.]+%\W+[\d.]+%", out)
    assert "ranks wait for the most loaded one: " in out
    code, out, _ = run("preview", STAGE2, *data, "--steps", "1", "--start", "3", "--keys")
    assert out.count("shard-") > 4
    code, _, err = run("preview", STAGE2, *data, "data.packs_per_step=3", "--ranks", "2")
    assert code != 0
    assert "must be a multiple of the 2 ranks" in err
