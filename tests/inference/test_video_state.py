"""A watched video: answers as those of the video itself, after saving and loading too, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_helpers import random_run
from safetensors import safe_open
from safetensors.torch import save_file
from torch.testing import assert_close
from video_helpers import write_clip

from timeviper import LoadedModel, VideoState, load, load_state
from timeviper.datamodules.build import pack_format
from timeviper.datamodules.frames.stream import FrameStream
from timeviper.inference.prefill import Prefilled
from timeviper.inference.question import Question, TooLongError, read_question
from timeviper.inference.state_file import METADATA
from timeviper.inference.state_key import StateError
from timeviper.inference.video_state import Tier
from timeviper.inference.watch import watching
from timeviper.model.state_size import frames_within, state_bytes
from timeviper.tokenizer import Message

COUNT = 90
DENSE = ("data.frames.fps=10", "data.frames.max_frames=10800", "eval.max_new_tokens=6", "eval.tokens_per_piece=100")
STAGE = "model.transv.stages"
OFF = (f"{STAGE}.early=null", f"{STAGE}.late=null")
SCHEDULES = {
    "published": (),
    "off": OFF,
    "uniform": (f"{STAGE}.late=null",),
    "question": (f"{STAGE}.late.query=question",),
    "mamba": (f"{STAGE}.late.layer=7", f"{STAGE}.late.select=mamba"),
    "progressive": (*OFF, "model.transv.schedule=progressive"),
    "drop": (f"{STAGE}.early.transfer=false", f"{STAGE}.late.transfer=false"),
}
QUESTIONS = ["What colour is the ring?", "When?", "How many of them are there, and where do they go? " * 6]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("states")


@pytest.fixture(scope="module")
def clip(folder: Path) -> Path:
    return write_clip(folder / "clip.mp4", COUNT, options={"g": "12", "bf": "2"})


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    return random_run(folder / "run")


@pytest.fixture(scope="module")
def model(run: Path) -> LoadedModel:
    return load(run, device="cpu", overrides=DENSE)


@pytest.fixture(scope="module")
def saved(model: LoadedModel, clip: Path, folder: Path) -> Path:
    return model.watch(clip).save(folder / "clip.state")


def once(model: LoadedModel, video: Any, messages: list[Message], size: int = 0) -> Prefilled:
    """One prefill of video and text."""
    medium = FrameStream(video, 32, model.recipe.data.frames) if isinstance(video, Path) else video
    question, form = Question(messages, [medium]), pack_format(model.recipe)
    return read_question(model.model, model.tokenizer, form, question, tokens_per_piece=size, max_new_tokens=6)[1]


def said(question: str) -> list[Message]:
    return [{"role": "user", "content": question}]


def same(a: Prefilled, b: Prefilled, atol: float = 1e-10) -> None:
    assert a.kept == b.kept
    assert_close(a.hidden, b.hidden, rtol=0, atol=atol * float(b.hidden.abs().max()))


@pytest.mark.parametrize("time", ["frames", "sentence", "none", "tokens"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_logits_are_those_of_one_prefill_after_save_and_load_too(
    schedule: str, time: str, folder: Path, clip: Path
) -> None:
    if time != "frames" and schedule not in ("published", "off"):
        return
    run = random_run(folder / f"{schedule} {time}", *SCHEDULES[schedule], f"chat.time={time}")
    model = load(run, device="cpu", overrides=DENSE)
    model.model.double()
    state = model.watch(clip)
    again = load_state(state.save(folder / "again.state"), model)
    assert (again.key, again.bytes, again.seconds) == (state.key, state.bytes, 9.0)
    for question in QUESTIONS:
        whole = once(model, clip, said(question))
        same(state.prompt(question)[1], whole)
        same(again.prompt(question)[1], whole)
    text = state.tokens - COUNT * 4
    formula = state_bytes(model.recipe.model, "state", COUNT, text, 8)
    assert state.bytes == formula


def test_twenty_questions_are_answered_as_with_the_video(model: LoadedModel, clip: Path, saved: Path) -> None:
    states = [model.watch(clip), load_state(saved, model), load_state(saved, model, on_host=True).to("cpu")]
    for n in range(20):
        question = f"What is the {n}-th thing?"
        expected = model.ask(question, clip)
        assert [state.ask(question) for state in states[: 1 if n > 3 else 3]] == [expected] * (1 if n > 3 else 3)
    whole = once(model, clip, said("When?"))
    same(states[0].prompt("When?")[1], whole, 2e-5)


def test_a_conversation_goes_on_with_its_text_run_again(model: LoadedModel, clip: Path) -> None:
    state = model.watch(clip)
    history = [*said("What?"), Message(role="assistant", content="A red ring."), *said("And when?")]
    history.append(Message(role="assistant", content="At 3 s."))
    whole = once(model, clip, [*history, *said("Why?")])
    same(state.prompt([*history, *said("Why?")])[1], whole, 2e-5)
    answer = state.ask("Why?", history=history)
    assert answer.prompt_tokens > model.ask("Why?", clip).prompt_tokens
    assert state.ask("Why?") == model.ask("Why?", clip)


def test_features_are_a_sixth_and_serve_any_schedule(run: Path, model: LoadedModel, clip: Path, folder: Path) -> None:
    state = model.watch(clip, tier="features")
    assert state.tier == "features"
    assert state.bytes == state_bytes(model.recipe.model, "features", COUNT, 0, 4)
    path = state.save(folder / "features.state")
    assert state.ask(QUESTIONS[0]) == model.ask(QUESTIONS[0], clip)
    for changes in ((), SCHEDULES["off"], ("chat.time=none",), ("chat.system=Be brief.",)):
        other = load(run, device="cpu", overrides=[*DENSE, *changes])
        assert load_state(path, other).ask(QUESTIONS[0]) == other.ask(QUESTIONS[0], clip)


@pytest.mark.parametrize("tier", ["state", "features"])
def test_bfloat16_is_kept_as_it_is(run: Path, clip: Path, tmp_path: Path, tier: Tier) -> None:
    model = load(run, device="cpu", dtype="bfloat16", overrides=DENSE)
    state = model.watch(clip, tier=tier)
    again = load_state(state.save(tmp_path / "half.state"))  # in the dtype that it was made in
    assert again.key.dtype == "bfloat16"
    assert torch.equal(again.prompt("What?")[1].hidden, state.prompt("What?")[1].hidden)
    assert again.bytes == state.bytes


def test_damage_in_the_middle_is_counted_before(model: LoadedModel, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", COUNT, codec="mpeg4", options={"g": "1"})
    data = bytearray(clip.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    clip.write_bytes(bytes(data))
    state = load_state(model.watch(clip).save(tmp_path / "clip.state"), model)
    assert 0 < COUNT - state.frames < COUNT / 2
    assert state.ask("What?") == model.ask("What?", clip)
    assert model.watch(clip, tier="features").ask("What?") == model.ask("What?", clip)


def test_text_before_the_video_is_part_of_the_key(model: LoadedModel, clip: Path, folder: Path) -> None:
    before: list[Message] = [{"role": "system", "content": "Be brief."}, *said("Look at <video> this.")]
    state = load_state(model.watch(clip, messages=before).save(folder / "before.state"), model)
    asked = [before[0], *said("Look at <video>\nWhat?")]
    same(state.prompt(asked)[1], once(model, clip, asked), 2e-5)
    same(state.prompt("What?")[1], once(model, clip, asked), 2e-5)
    with pytest.raises(StateError, match="another text stood before the video: its key has prefix = ") as found:
        state.prompt(said("What?"))
    assert found.value.field == "prefix"
    with pytest.raises(StateError, match="another text stood before the video"):  # a question before the video
        model.watch(clip).prompt(said("What happens here? <video>"))


def test_pictures_and_frames_in_memory(model: LoadedModel, clip: Path, folder: Path) -> None:
    frames = model.read_video(clip)
    assert model.watch(frames).ask("What?").text == model.ask("What?", clip).text
    assert model.watch(frames).key.digest != model.watch(clip).key.digest
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    state = load_state(model.watch(picture).save(folder / "picture.state"), model)
    assert state.ask("What?") == model.ask("What?", picture)
    assert (state.seconds, state.frames) == (0, 1)


def test_the_size_of_its_file_is_that_of_the_formula(model: LoadedModel, tmp_path: Path) -> None:
    times = np.arange(1024) + 0.5
    state = model.watch(np.zeros((1024, 32, 32, 3), np.uint8), times=times, duration=1024.0)
    formula = state_bytes(model.recipe.model, "state", 1024, state.tokens - 4096, 4)
    size = state.save(tmp_path / "long.state").stat().st_size
    assert state.bytes == formula
    assert abs(size - formula) < 0.01 * formula


# ---- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        (("model.transv.stages.late.keep=0.2",), "transv", "has transv.stages.late.keep = 0.1, but here it is 0.2"),
        (OFF[1:], "transv", "another schedule of TransV dropped its tokens"),
        (("chat.time=sentence",), "time", "its key has time.time = tokens, but here it is sentence"),
        (("model.decoder.norm_eps=1e-3",), "decoder", "decoder.norm_eps = 1e-05, but here it is 0.001"),
        (("chat.system=Be brief.",), "prefix", "another text stood before the video"),
    ],
)
def test_a_state_of_another_model_names_the_field(
    changes: tuple[str, ...], field: str, says: str, run: Path, saved: Path
) -> None:
    other = load(run, device="cpu", overrides=[*DENSE, *changes])
    with pytest.raises(StateError, match=says) as found:
        load_state(saved, other).prompt("What?")
    assert found.value.field == field


def test_a_state_of_other_weights_or_of_another_dtype(run: Path, saved: Path, folder: Path) -> None:
    other = load(random_run(folder / "other", seed=3), device="cpu", overrides=DENSE)
    with pytest.raises(
        StateError, match=r"clip.state: another vision tower encoded the frames: its key has tower.main.sha256 = "
    ):
        load_state(saved, other)
    key = other.state_key.with_(tower=load(run, device="cpu").state_key.tower)
    other.__dict__["state_key"] = key
    with pytest.raises(StateError, match="other weights read it") as found:
        load_state(saved, other)
    assert found.value.field == "weights"
    short = load(run, device="cpu", dtype="bfloat16", overrides=DENSE)
    with pytest.raises(
        StateError, match="computed in another dtype: its key has dtype = float32, but here it is bfloat16"
    ):
        load_state(saved, short)


def rewritten(saved: Path, path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> Path:
    with safe_open(saved, framework="pt") as file:
        header = json.loads(file.metadata()[METADATA])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(header, tensors)
    save_file(tensors, path, metadata={METADATA: json.dumps(header)})
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda h, t: h.update(version=99, timeviper="9.9"), r"from a newer version \(form 99, made by timeviper 9.9"),
        (lambda h, t: h.pop("key"), "its header lacks the key of a state"),
        (lambda h, t: h.update(messages=[7]), "its header lacks what a state's has"),
        (lambda h, t: h.update(duration="long"), "its header lacks what a state's has"),
        (lambda h, t: h.update(tier="best"), "its header lacks what a state's has"),
        (lambda h, t: h.update(vision=10**12), "its header says 1,000,000,000,000 vision tokens"),
        (lambda h, t: h.update(text=-1), "text = -1, which is no count"),
        (lambda h, t: h.update(cut=1, frames=COUNT), "boundary"),
        (lambda h, t: t.pop("boundary.x"), r"lacks boundary.x \(of 1\)"),
        (
            lambda h, t: t.update({"boundary.x": t["boundary.x"][:-1].clone()}),
            r"boundary.x is float32 \[\d+, 128\], not",
        ),
        (lambda h, t: t.update(times=t["times"].float()), "times is float32"),
    ],
)
def test_files_that_are_not_what_they_say(
    change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None],
    says: str,
    model: LoadedModel,
    saved: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(StateError, match=says):
        load_state(rewritten(saved, tmp_path / "odd.state", change), model)


def test_files_that_are_cut_off_or_no_states(model: LoadedModel, saved: Path, tmp_path: Path) -> None:
    whole, path = saved.read_bytes(), tmp_path / "cut.state"
    for size in (0, 4, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(StateError, match=r"cut.state: is truncated, or no state at all .*: make it anew"):
            load_state(path, model)
    save_file({"x": torch.zeros(3)}, path)
    with pytest.raises(StateError, match="is a safetensors file, but no video's state"):
        load_state(path, model)
    with pytest.raises(StateError, match="there is no such state"):
        load_state(tmp_path / "none.state", model)


def test_a_budget_of_bytes_is_kept_before_anything_is_decoded(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve hours at a frame a second; and a file of twelve hours with fewer frames."""
    long = write_clip(tmp_path / "long.mp4", [*range(0, 12 * 3600, 400)], fps=1)
    settings = ["data.frames.fps=1", "data.frames.max_frames=100000", "model.decoder.max_tokens=1000000"]
    twelve = load(model.export, device="cpu", overrides=settings)
    monkeypatch.setattr("timeviper.datamodules.frames.stream.iter_video", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr("timeviper.inference.reading.embed_frames", lambda *_: pytest.fail("encoded"))
    pictures = np.broadcast_to(np.zeros((1, 32, 32, 3), np.uint8), (12 * 3600, 32, 32, 3))
    times = np.arange(12 * 3600) + 0.5
    cases: list[tuple[Any, dict[str, Any]]] = [(long, {}), (pictures, {"times": times, "duration": 43200.0})]
    for (video, options), count, budget in zip(cases, (108, 43200), (200_000, 20_000_000)):
        with pytest.raises(TooLongError, match=f"the state of {count:,} frames takes .* are allowed") as found:
            twelve.watch(video, max_bytes=budget, **options)
        assert "--tier features" in str(found.value)
        fit = int(str(found.value).partition("max_frames=")[2].partition(")")[0])
        assert 0 < fit < count
        assert state_bytes(twelve.recipe.model, "state", fit, 0, 4) <= budget  # and with some text a frame
        assert state_bytes(twelve.recipe.model, "state", fit, fit * 9, 4) > budget
    frames = frames_within(twelve.recipe.model, "state", 100_000_000, 4)
    assert state_bytes(twelve.recipe.model, "state", frames, 0, 4) <= 100_000_000
    assert state_bytes(twelve.recipe.model, "state", frames + 1, 0, 4) > 100_000_000


def test_two_writers_leave_a_whole_file(model: LoadedModel, clip: Path, tmp_path: Path) -> None:
    path, state = tmp_path / "both.state", model.watch(clip)

    def write() -> None:
        for _ in range(20):
            state.save(path)

    writers = [get_context("fork").Process(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    seen = 0
    while any(writer.is_alive() for writer in writers):
        if path.is_file():
            seen += load_state(path, model).frames == COUNT
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert load_state(path, model).ask("When?") == model.ask("When?", clip)
    assert [p.name for p in tmp_path.iterdir()] == ["both.state"]


def test_steps_let_others_in_between(model: LoadedModel, clip: Path) -> None:
    steps = watching(model, model.media(clip), model.state_key, video=str(clip))
    told: list[tuple[int, int]] = []
    while True:
        try:
            told.append(next(steps))
        except StopIteration as end:
            state: VideoState = end.value
            break
        model.ask("When?", clip)
    assert len(told) > 3
    assert told[-1] == (COUNT, COUNT)
    assert state.ask("When?") == model.ask("When?", clip)
