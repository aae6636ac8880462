"""The Python face: what a notebook does with `from timeviper import load, train, evaluate, ask`."""

from __future__ import annotations

import ast
import json
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from jobs import write_recipe
from stage_options import options
from tree import ROOT

import timeviper
from timeviper import Answer, LoadedModel, ask, evaluate, load, load_recipe, train
from timeviper.cli import main as cli
from timeviper.config import FramesConfig
from timeviper.datamodules.frames.video import VideoError, read_video
from timeviper.datamodules.world.render import encode_video
from timeviper.datamodules.world.scene import draw_video
from timeviper.errors import ConfigError
from timeviper.inference.eval_report import report_folder
from timeviper.inference.given import frames_of, media_of
from timeviper.package import NAMES

QUESTION = "What colour is the ring?"


def python(code: str, **options: Any) -> str:
    """What a script prints that was started in the repository's root."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages, trained one after the other in one process, a few steps each."""
    runs = tmp_path_factory.mktemp("face")
    _, *first = options(world, runs, "stage0_tower", 2)
    code = (
        "from timeviper import load_recipe, train\n"
        f"assert str(train('tiny/stage0_tower', {first})) == {str(runs / 'stage0_tower')!r}\n"
        f"path, *overrides = {options(world, runs, 'stage2_instruct', 2, 'stage0_tower')}\n"
        "recipe = load_recipe(path, overrides)\n"
        "assert train(recipe) == train(recipe)\n"
    )
    assert python(code, timeout=300).count("finished already, nothing to do") == 1
    return runs


@pytest.fixture(scope="module")
def model(runs: Path) -> LoadedModel:
    return load(runs / "stage2_instruct", device="cpu", overrides=["eval.max_new_tokens=12"])


@pytest.fixture(scope="module")
def clip(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A held-out video with a constant rate of frames."""
    with tarfile.open(min((world / "val" / "videos").glob("*.tar"))) as tar:
        member = next(m for m in tar if m.name.endswith(".mp4"))
        tar.extract(member, folder := tmp_path_factory.mktemp("clip"), filter="data")
    return folder / member.name


# ---- the names ----------------------------------------------------------------------------------------------


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = {"torch", "lightning", "transformers", "omegaconf", "numpy", "av", "yaml", "rich"}
    assert python(f"import sys, timeviper\nprint(sorted({heavy} & set(sys.modules)))") == "[]\n"


def test_every_name_is_there_for_people_and_for_type_checkers() -> None:
    tree = ast.parse(Path(timeviper.__file__).read_text())
    seen = next(node for node in tree.body if isinstance(node, ast.If))  # if TYPE_CHECKING
    imports = [node for node in seen.body if isinstance(node, ast.ImportFrom)]
    typed = {alias.name: node.module for node in imports for alias in node.names}
    filled = {name: f"timeviper.{module}" for module, listed in NAMES.items() for name in listed.split()}
    assert {*typed, "__version__"} == set(timeviper.__all__)
    assert typed == filled
    for name in typed:
        assert name in dir(timeviper)
        assert getattr(timeviper, name).__name__ == name
        assert getattr(timeviper, name).__doc__, name


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(AttributeError, match="module 'timeviper' has no attribute 'lode'"):
        getattr(timeviper, "lode")  # noqa: B009


# ---- training -----------------------------------------------------------------------------------------------


def test_what_a_recipe_lacks_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"data\.sources\.images\.shards"):
        train("tiny/stage0_tower")
    with pytest.raises(ConfigError, match=r"Did you mean optim\.lr\?"):
        train("tiny/stage0_tower", ["optim.lrr=1"])
    with pytest.raises(ConfigError, match=r"1 problem\n(.*\n)*.*Did you mean optim\.lr\?"):
        train("tiny/stage0_tower", "optim.lrr=1")  # one, not its letters
    with pytest.raises(ValueError, match="stage0_tower is loaded already: give the overrides to load_recipe"):
        train(load_recipe("tiny/stage0_tower"), ["optim.lr=1"])
    assert list(tmp_path.iterdir()) == []


def test_a_signal_stops_a_script_when_the_state_is_saved(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    code = (
        "import sys\n"
        f"sys.path.append({str(ROOT / 'tests/support')!r})\n"
        "from timeviper import train\n"
        f"try: train({str(path)!r}, ['out={tmp_path / 'run'}', 'train.steps=5000'])\n"
        "except KeyboardInterrupt as stop: print('told:', stop)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if " 3/5000" in line:
            process.send_signal(signal.SIGINT)
            break
    said = process.stdout.read()
    assert process.wait(timeout=60) == 0
    assert f"told: stopped and saved in {tmp_path / 'run'}; the same call continues" in said
    assert "To continue: the same call" in said
    assert list((tmp_path / "run" / "checkpoints").iterdir())


# ---- asking -------------------------------------------------------------------------------------------------


def test_asking_a_file_is_what_the_command_line_does(
    runs: Path, model: LoadedModel, clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, overrides = runs / "stage2_instruct", ["eval.max_new_tokens=12"]
    command = ["timeviper", "ask", QUESTION, "--run", str(run), "--video", str(clip), *overrides]
    monkeypatch.setattr(sys, "argv", [*command, "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    shown = json.loads(capsys.readouterr().out)
    answer = model.ask(QUESTION, clip)
    assert answer.as_dict() == shown
    assert answer.text == str(answer) == shown["answer"]
    assert ask(run, QUESTION, clip, overrides) == ask(model, QUESTION, str(clip)) == answer
    assert capsys.readouterr().out == ""
    assert model.ask(QUESTION, clip, stream=True) == answer
    assert capsys.readouterr().out == f"{answer}\n"
    assert answer.prompt_tokens > answer.vision_tokens == 4 * len(answer.frame_times)
    assert list(answer.kept) == ["early", "late"]
    assert len(model.tokenizer.encode(model.ask(QUESTION, clip, max_new_tokens=2).text)) <= 2


def same(a: Answer, b: Answer) -> bool:
    return (a.text, a.frame_times, a.duration, a.kept) == (b.text, b.frame_times, b.duration, b.kept)


def test_frames_in_memory_give_the_answer_of_their_file(model: LoadedModel, clip: Path) -> None:
    answer = model.ask(QUESTION, clip)
    frames = read_video(clip, 64, model.recipe.data.frames)
    pixels = frames.pixels.transpose(0, 2, 3, 1)
    again = model.ask(QUESTION, pixels, times=frames.times)
    assert same(again, answer)
    assert again.video == ""
    assert same(model.ask(QUESTION, torch.from_numpy(pixels.copy()), times=torch.from_numpy(frames.times)), answer)
    assert same(model.ask(QUESTION, pixels, times=list(frames.times), duration=frames.duration), answer)
    assert same(model.ask(QUESTION, model.read_video(clip)), answer)
    other = model.ask(QUESTION, np.zeros_like(pixels), times=frames.times)
    assert (other.frame_times, other.prompt_tokens) == (answer.frame_times, answer.prompt_tokens)


def test_of_a_clip_the_frames_are_taken_that_are_taken_of_its_file(model: LoadedModel, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(encode_video(draw_video(np.random.default_rng(0), 8.0, 2.0, 2, False)))
    with av.open(str(clip)) as file:
        fps = float(file.streams.video[0].average_rate or 0)
        pixels = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    assert len(pixels) > len(model.read_video(clip).times)
    taken, answer = model.ask(QUESTION, pixels, fps=fps), model.ask(QUESTION, clip)
    assert taken.frame_times == pytest.approx(answer.frame_times)
    assert (taken.duration, taken.prompt_tokens) == (pytest.approx(answer.duration), answer.prompt_tokens)


def test_what_is_drawn_follows_its_generator(model: LoadedModel, clip: Path) -> None:
    drawn = [model.ask(QUESTION, clip, temperature=5.0, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_loaded_model_is_named_by_its_folder(runs: Path, model: LoadedModel) -> None:
    assert repr(model) == f"LoadedModel(export={runs / 'stage2_instruct/export'!r}, device=device(type='cpu'))"
    with pytest.raises(ValueError, match="is loaded already: give the overrides to load"):
        ask(model, QUESTION, "clip.mp4", ["eval.max_new_tokens=2"])
    with pytest.raises(FileNotFoundError, match="It appears when a training stage has finished"):
        load(runs)
    with pytest.raises(ValueError, match="is a vision tower without a language model"):
        load(runs / "stage0_tower")
    with pytest.raises(TypeError, match="question must be text, got ndarray; the video comes after it"):
        model.ask(np.zeros((64, 64, 3), np.uint8), QUESTION)  # type: ignore[arg-type]


# ---- frames in memory ---------------------------------------------------------------------------------------

CLIP = np.random.default_rng(0).integers(0, 256, (6, 20, 30, 3), np.uint8)
CONFIG = FramesConfig(fps=1, max_frames=4)


def test_frames_of_any_size_are_resized_and_a_picture_has_no_time() -> None:
    frames = frames_of(CLIP, 16, CONFIG, times=[0, 1, 2, 3, 4, 5])
    assert (frames.pixels.shape, frames.pixels.dtype, frames.kind) == ((6, 3, 16, 16), np.uint8, "video")
    flat = frames_of(np.full((1, 40, 50, 3), (10, 100, 200), np.uint8), 16, CONFIG, times=[3.0])
    assert (flat.pixels == np.array([10, 100, 200], np.uint8)[:, None, None]).all()
    picture = frames_of(torch.from_numpy(CLIP[0]), 16, CONFIG)
    assert (picture.kind, picture.duration, picture.times.tolist()) == ("image", 0.0, [0.0])
    assert np.array_equal(picture.pixels[0], frames.pixels[0])


@pytest.mark.parametrize(
    ("times", "duration"), [([0, 1, 2, 3, 4, 5], 6), ([1, 3, 5, 7, 9, 11], 12), ([50, 51, 52, 53, 54, 55], 55)]
)
def test_the_length_of_a_video_follows_from_even_times(times: list[float], duration: float) -> None:
    assert frames_of(CLIP, 16, CONFIG, times=times).duration == duration
    assert frames_of(CLIP, 16, CONFIG, times=times, duration=60).duration == 60


@pytest.mark.parametrize(("fps", "taken"), [(1, [0, 2, 3, 5]), (2, [0.5, 1.5, 2.5]), (30, [0.1])])
def test_of_a_clip_as_many_are_taken_as_of_a_file(fps: float, taken: list[float]) -> None:
    frames = frames_of(CLIP, 16, CONFIG, fps=fps)
    assert (frames.times.tolist(), frames.duration, frames.fps) == (taken, 6 / fps, fps)


@pytest.mark.parametrize(
    ("video", "told", "says"),
    [
        (CLIP.astype(np.float32), {"fps": 1}, r"uint8 \[F, H, W, 3\], RGB from 0 to 255.*got float32 \[6, 20, 30, 3\]"),
        (torch.zeros(6, 20, 30, 3, dtype=torch.bfloat16), {"fps": 1}, r"got bfloat16 \[6, 20, 30, 3\]"),
        (CLIP.transpose(0, 3, 1, 2), {"fps": 1}, r"got uint8 \[6, 3, 20, 30\]: channels come last"),
        (CLIP[..., 0], {"fps": 1}, r"got uint8 \[6, 20, 30\]$"),
        (CLIP[:0], {"fps": 1}, r"got uint8 \[0, 20, 30, 3\]"),
        (CLIP, {}, "give the times of the 6 frames in seconds, or their fps alone"),
        (CLIP, {"fps": 1, "times": [0, 1, 2, 3, 4, 5]}, "or their fps alone"),
        (CLIP, {"fps": 0}, "above 0, got 0"),
        (CLIP, {"times": [0, 1, 2]}, r"times must be \[6\], the second of each frame, got \[3\]"),
        (CLIP, {"times": [0, 1, 2, 3, 5, 4]}, "0 or more, and in order"),
        (CLIP, {"times": [0, 1, 2, 3, 4, np.nan]}, "0 or more, and in order"),
        (CLIP, {"times": [0, 1, 2, 3, 4, 5], "duration": 4}, "duration is 4 seconds, but a frame is shown at 5"),
        (CLIP[0], {"fps": 1}, r"a picture has no fps; a video of one frame is \[1, H, W, 3\]"),
        ("clip.mp4", {"times": [0]}, "times is for frames in memory"),
    ],
)
def test_frames_that_do_not_fit_say_what_is_allowed(video: Any, told: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        media_of(video, 16, CONFIG, **told)


def test_videos_of_another_kind_are_refused(clip: Path) -> None:
    with pytest.raises(TypeError, match="a path, a numpy array, a torch tensor, or what read_video gave, got list"):
        media_of([CLIP[0]], 16, CONFIG)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="read at 16 pixels, but this model sees 32"):
        frames_of(read_video(clip, 16, CONFIG), 32, CONFIG)
    with pytest.raises(VideoError, match="no such file"):
        media_of("nowhere.mp4", 16, CONFIG)


# ---- evaluating ---------------------------------------------------------------------------------------------


def test_an_evaluation_is_what_its_file_says(runs: Path) -> None:
    run, overrides = runs / "stage2_instruct", ["eval.samples=4", "eval.max_new_tokens=4", "data.workers=0"]
    report = evaluate(run, overrides, quiet=True)
    assert report.as_dict() == json.loads((report_folder(run / "export", overrides) / "eval.json").read_text())
    assert report.n["overall"] == 4
    assert list(report.columns()) == ["TimeViper", "pure drop", "blind", "chance"]
    assert set(report.scores.accuracy) == set(report.n)
