"""Asking about videos longer than a piece: the same answer as whole, whatever the file, the sizes and the dtype."""

from __future__ import annotations

import logging
import math
import signal
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_helpers import random_run
from torch.testing import assert_close
from video_helpers import write_clip

from timeviper.cli import main as cli
from timeviper.cli.shards import STOPPED
from timeviper.console import ProgressLine
from timeviper.datamodules.build import pack_format
from timeviper.datamodules.frames import stream
from timeviper.datamodules.frames.stream import FrameStream
from timeviper.datamodules.frames.video import Frames, VideoError
from timeviper.errors import ConfigError
from timeviper.inference.ask import LoadedModel, load
from timeviper.inference.prefill import Prefilled
from timeviper.inference.question import Question, TooLongError, read_question
from timeviper.weights.export import pick_dtype

QUESTION = "What colour is the ring?"
DENSE = ("data.frames.fps=10", "data.frames.max_frames=10800", "eval.max_new_tokens=6")
COUNT = 90  # frames, which with their times take 465 tokens


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_run(tmp_path_factory.mktemp("ask"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", COUNT, options={"g": "12", "bf": "2"})


@pytest.fixture(scope="module")
def model(run: Path) -> LoadedModel:
    return load(run, device="cpu", overrides=DENSE)


def sized(model: LoadedModel, tokens_per_piece: int, **changes: Any) -> LoadedModel:
    cfg = replace(model.recipe.eval, tokens_per_piece=tokens_per_piece, **changes)
    return replace(model, recipe=replace(model.recipe, eval=cfg))


def prefilled(model: LoadedModel, medium: Frames | FrameStream, size: int) -> Prefilled:
    question = Question([{"role": "user", "content": QUESTION}], [medium])
    form = pack_format(model.recipe)
    _, start = read_question(model.model, model.tokenizer, form, question, tokens_per_piece=size, max_new_tokens=6)
    return start


@pytest.mark.parametrize("size", [17, 63, 64, 100, 364])
def test_pieces_of_any_size_answer_as_the_whole(model: LoadedModel, clip: Path, size: int) -> None:
    """Smaller than a chunk of the scan (64) and of the tower (32 frames), and sizes that divide nothing."""
    whole = sized(model, 0).ask(QUESTION, clip)
    assert whole.prompt_tokens > 364
    assert len(whole.frame_times) == COUNT
    assert sized(model, size).ask(QUESTION, clip) == whole
    stream = FrameStream(clip, 32, model.recipe.data.frames)
    a, b = prefilled(model, stream, 0), prefilled(model, stream, size)
    assert a.kept == b.kept
    assert_close(b.hidden, a.hidden, rtol=0, atol=2e-5 * float(a.hidden.abs().max()))


def test_memory_and_files_are_asked_alike(model: LoadedModel, clip: Path) -> None:
    frames, small = model.read_video(clip), sized(model, 100)
    answer = small.ask(QUESTION, clip)
    assert replace(small.ask(QUESTION, frames), video=str(clip)) == answer
    pixels = frames.pixels.transpose(0, 2, 3, 1)
    again = small.ask(QUESTION, pixels, times=frames.times, duration=frames.duration)
    assert replace(again, video=str(clip)) == answer


def test_few_frames_are_in_memory_at_a_time(model: LoadedModel, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, alive, most = stream.iter_video, set[int](), [0]

    def watched(*args: Any) -> Any:
        for piece in plain(*args):
            alive.add(id(piece))
            most[0] = max(most[0], len(alive))
            weakref.finalize(piece.pixels, alive.discard, id(piece))
            yield piece

    monkeypatch.setattr(stream, "iter_video", watched)
    sized(model, 64).ask(QUESTION, clip)
    assert most[0] == 2, "of three groups: the one at hand, and the one being filled"


def test_damage_in_the_middle(model: LoadedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clip = write_clip(tmp_path / "clip.mp4", COUNT, codec="mpeg4", options={"g": "1"})
    data = bytearray(clip.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    clip.write_bytes(bytes(data))
    with caplog.at_level(logging.WARNING, "timeviper"):
        answer = sized(model, 100).ask(QUESTION, clip)
    assert "some frames cannot be decoded; they are counted, then it begins again" in caplog.text
    assert 0 < COUNT - len(answer.frame_times) < COUNT / 2
    assert replace(sized(model, 0).ask(QUESTION, model.read_video(clip)), video=str(clip)) == answer


def test_a_video_that_breaks_off(model: LoadedModel, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", 3 * COUNT, options={"g": "10"})
    whole = clip.read_bytes()
    clip.write_bytes(whole[: len(whole) * 2 // 3])
    answer = sized(model, 200).ask(QUESTION, clip)
    assert COUNT < len(answer.frame_times) < 3 * COUNT
    assert replace(sized(model, 0).ask(QUESTION, model.read_video(clip)), video=str(clip)) == answer
    clip.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(VideoError, match=r"only \d+ of 270 frames can be decoded"):
        model.ask(QUESTION, clip)


def test_a_question_that_does_not_fit(run: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(run, overrides=[*DENSE, "model.decoder.max_tokens=250"])
    monkeypatch.setattr(stream, "iter_video", lambda *_: pytest.fail("decoded before it was known to fit"))
    with pytest.raises(TooLongError, match=r"360 for 90 frames.* 6 are to be written, .*max_tokens = 250.*max_frames="):
        model.ask(QUESTION, clip)
    frames = int(str(_error(model, clip)).partition("max_frames=")[2].partition(")")[0])
    monkeypatch.undo()
    fits = load(run, overrides=[*DENSE, "model.decoder.max_tokens=250", f"data.frames.max_frames={frames - 4}"])
    assert 200 < fits.ask(QUESTION, clip).prompt_tokens < 250


def _error(model: LoadedModel, clip: Path) -> TooLongError:
    with pytest.raises(TooLongError) as found:
        model.ask(QUESTION, clip)
    return found.value


def test_weights_that_give_no_numbers(run: Path, clip: Path) -> None:
    model = sized(load(run, overrides=DENSE), 100)
    model.model.decoder.norm_f.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="logits after the prompt are not finite"):
        model.ask(QUESTION, clip)


# ---- dtypes -------------------------------------------------------------------------------------------------


def test_bfloat16_leaves_norms_gates_and_the_scan_alone(run: Path, model: LoadedModel, clip: Path) -> None:
    short = load(run, device="cpu", dtype="bfloat16", overrides=DENSE)
    wide = {name for name, p in short.model.named_parameters() if p.dtype == torch.float32}
    assert {name.rpartition(".")[2] for name in wide} == {"A_log", "D", "dt_bias", "alpha", "weight"}
    assert all("norm" in name for name in wide if name.endswith("weight"))
    assert len(wide) == 10 + 4 * 4 + 1 + 2 * 2  # norms of blocks, four scans with gated norms, the last norm, transfers
    assert {p.dtype for name, p in short.model.named_parameters() if name not in wide} == {torch.bfloat16}
    for (name, p), q in zip(short.model.named_parameters(), model.model.parameters()):
        assert torch.equal(p, q.to(p.dtype)), name
    stream = FrameStream(clip, 32, model.recipe.data.frames)
    full, half = prefilled(model, stream, 0).hidden, prefilled(short, stream, 100).hidden
    assert half.dtype == torch.bfloat16
    assert float((half - full).norm() / full.norm()) < 0.1
    assert sized(short, 100).ask(QUESTION, clip).kept == sized(short, 0).ask(QUESTION, clip).kept


def test_a_dtype_that_there_is_not(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(model.recipe, parallel=replace(model.recipe.parallel, param_dtype="bfloat16"))
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert pick_dtype(recipe, cpu) == torch.float32
    with pytest.raises(ConfigError, match=r"--dtype = half\n.*must be float32 or bfloat16"):
        pick_dtype(recipe, cpu, "half")
    with pytest.raises(ConfigError, match="bfloat16 is not used on mps: take float32, or another device"):
        pick_dtype(recipe, torch.device("mps"), "bfloat16")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "An Old One")
    monkeypatch.setattr(torch.cuda, "device", lambda _: __import__("contextlib").nullcontext())
    for fine in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, fine=fine: fine)
        assert pick_dtype(recipe, gpu) == (torch.bfloat16 if fine else torch.float32)
    with pytest.raises(ConfigError, match="An Old One has no bfloat16"):
        pick_dtype(recipe, gpu, "bfloat16")
    assert pick_dtype(recipe, gpu, "float32") == torch.float32


# ---- the command --------------------------------------------------------------------------------------------


def call(monkeypatch: pytest.MonkeyPatch, run: Path, clip: Path, *args: str) -> int:
    command = ["timeviper", "ask", QUESTION, "--run", str(run), "--video", str(clip), *DENSE, *args]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_command_line_draws_by_its_seed(
    run: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for seed in ("1", "1", "2"):
        options = ("--temperature", "5", "--top-p", "0.99", "--seed", seed, "--max-new-tokens", "20")
        assert call(monkeypatch, run, clip, "eval.tokens_per_piece=200", *options) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--temperature", "-1"), "temperature = -1.0\n      must be 0 (greedy) or above."),
        (("--top-p", "0"), "top_p = 0.0\n      must be above 0 and at most 1"),
        (("--top-p", "nan"), "top_p = nan"),
        (("--dtype", "half"), "--dtype = half\n      must be float32 or bfloat16."),
        (("--max-new-tokens", "0"), "--max-new-tokens"),
        (("eval.tokens_per_piece=-1",), "0 (prompts are always taken whole) or more"),
    ],
)
def test_what_is_out_of_range(
    run: Path,
    clip: Path,
    args: tuple[str, ...],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, run, clip, *args) == 2
    assert says in capsys.readouterr().err


def test_ctrl_c_in_a_long_prompt_ends_at_once(
    run: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[int, int]] = []

    def count(line: ProgressLine, done: int, total: int, unit: str) -> None:
        told.append((done, total))
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ProgressLine, "count", count)
    before = sorted(run.rglob("*"))
    assert call(monkeypatch, run, clip, "eval.tokens_per_piece=100") == STOPPED
    assert told == [(32, COUNT)], "one group of frames, and no more"
    assert capsys.readouterr().out == ""
    assert sorted(run.rglob("*")) == before


def test_progress_is_told_in_frames(
    model: LoadedModel, clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("timeviper.console.PLAIN", 0.0)
    sized(model, 64).ask(QUESTION, clip, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("  ")[0] for line in lines] == ["32/90 frames", "64/90 frames", "90/90 frames"]
    sized(model, 0).ask(QUESTION, np.zeros((3, 8, 8, 3), np.uint8), fps=1)
    assert capsys.readouterr().err == ""
