"""A video watched while it is made: what is known of it so far is what one prefill of those frames gives."""

from __future__ import annotations

import io
import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_helpers import random_run
from rtsp_camera import camera
from safetensors import safe_open
from safetensors.torch import save_file
from torch.testing import assert_close
from video_helpers import write_clip

from timeviper import LoadedModel, VideoState, load, load_state
from timeviper.datamodules.build import pack_format
from timeviper.datamodules.frames.live import live_frames
from timeviper.datamodules.frames.video import Frames, VideoError, read_video
from timeviper.files import sole_writer
from timeviper.inference.live import LiveState
from timeviper.inference.prefill import Prefilled
from timeviper.inference.question import Question, read_question
from timeviper.inference.state_file import METADATA
from timeviper.inference.state_key import StateError

COUNT = 90
DENSE = ("data.frames.fps=10", "data.frames.max_frames=10800", "eval.max_new_tokens=6", "eval.tokens_per_piece=100")
STAGE = "model.transv.stages"
OFF = (f"{STAGE}.early=null", f"{STAGE}.late=null")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.ts", COUNT, options={"g": "12", "bf": "0"})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_run(tmp_path_factory.mktemp("live") / "run")


@pytest.fixture(scope="module")
def model(run: Path) -> LoadedModel:
    return load(run, device="cpu", overrides=DENSE)


def once(model: LoadedModel, frames: Frames, question: str) -> Prefilled:
    asked, form = Question([{"role": "user", "content": question}], [frames]), pack_format(model.recipe)
    return read_question(model.model, model.tokenizer, form, asked, tokens_per_piece=0, max_new_tokens=6)[1]


def until(whole: Frames, count: int, seconds: float) -> Frames:
    return Frames(whole.pixels[:count], whole.times[:count], seconds, count, count / seconds)


def watched(model: LoadedModel, frames: Frames, marks: tuple[int, ...] = (20, 50, 90)) -> LiveState:
    live, start = model.watch_live(), 0
    for end in marks:
        for a in range(start, end, 7):
            b = min(a + 7, end)
            live.add(frames.pixels[a:b], frames.times[a:b].tolist())
        live.mark(end / 10)
        start = end
    return live


@pytest.mark.parametrize(
    ("settings", "time"),
    [((), "frames"), ((), "sentence"), (OFF, "frames"), (OFF, "none"), ((f"{STAGE}.early=null",), "tokens")],
)
def test_every_mark_is_a_prefill_of_the_frames_until_then(
    settings: tuple[str, ...], time: str, clip: Path, tmp_path: Path
) -> None:
    run = random_run(tmp_path / "run", *settings, f"chat.time={time}", "chat.frames_per_time=3")
    model = load(run, device="cpu", overrides=DENSE)
    model.model.double()
    whole = model.read_video(clip)
    live = watched(model, whole)
    path = live.save(tmp_path / "live.state")
    for count, seconds in ((20, 2.0), (50, 5.0), (90, 9.0), (50, 7.3)):
        expected = once(model, until(whole, count, 5.0 if seconds == 7.3 else seconds), "What?")
        for state in (live.state(seconds), load_state(path, model, until=seconds)):
            found = state.prompt("What?")[1]
            assert found.kept == expected.kept
            assert_close(found.hidden, expected.hidden, rtol=0, atol=1e-10)
            assert state.frames == count
    again = load_state(path, model)
    assert again.frames == COUNT
    again.prompt("What?")
    settled = load_state(again.save(tmp_path / "settled.state"), model)  # cut where the question comes in
    assert_close(settled.prompt("What?")[1].hidden, once(model, until(whole, 90, 9.0), "What?").hidden)


def test_asking_does_not_disturb_the_watching(model: LoadedModel, clip: Path) -> None:
    whole = model.read_video(clip)
    live, early = model.watch_live(), list[VideoState]()
    for a in range(0, 90, 10):
        live.add(whole.pixels[a : a + 10], whole.times[a : a + 10].tolist())
        live.mark((a + 10) / 10)
        early.append(live.state())
        early[-1].ask("What?")
    assert live.state().ask("When?").text == model.ask("When?", clip).text
    for n, state in enumerate(early):
        assert state.ask("Who?") == watched(model, whole, ((n + 1) * 10,)).state().ask("Who?")


def test_a_budget_and_a_context_end_the_taking_and_not_the_asking(run: Path, model: LoadedModel, clip: Path) -> None:
    whole = model.read_video(clip)
    small = load(run, device="cpu", overrides=[*DENSE, "model.decoder.max_tokens=250"])
    for live, says in (
        (small.watch_live(), "max_tokens = 250"),
        (model.watch_live(max_bytes=350_000), r"budget of 0.3 MB|budget of 0.4 MB"),
    ):
        for a in range(0, 90, 5):
            live.add(whole.pixels[a : a + 5], whole.times[a : a + 5].tolist())
        live.mark(9.0)
        assert live.full
        assert re.search(says, live.full)
        assert live.marks[-1].frames in (32, 64)
        if live.max_bytes:
            assert live.num_bytes() <= live.max_bytes
            live.state().ask("What?")


def test_what_does_not_fit_is_refused(model: LoadedModel, tmp_path: Path, clip: Path) -> None:
    live = model.watch_live(video="a camera")
    with pytest.raises(ValueError, match=r"frames are uint8 \[f, 3, 32, 32\] with f times"):
        live.add(np.zeros((2, 32, 32, 3), np.uint8), [0.0, 1.0])
    with pytest.raises(StateError, match=r"the state of a camera: has no mark yet"):
        live.state()
    live.add(np.zeros((2, 3, 32, 32), np.uint8), [0.0, 1.0])
    with pytest.raises(ValueError, match=r"a frame at 0.5 s comes after one at 1 s"):
        live.add(np.zeros((1, 3, 32, 32), np.uint8), [0.5])
    live.mark(2.0)
    with pytest.raises(StateError, match="has its first mark at 2 s, which is after 1 s"):
        live.state(1.0)
    path = live.save(tmp_path / "live.state")
    with pytest.raises(StateError, match="first mark at 2 s"):
        load_state(path, model, until=1.0)
    plain = model.watch(clip).save(tmp_path / "plain.state")
    with pytest.raises(StateError, match="was watched whole, without marks"):
        load_state(plain, model, until=3.0)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[METADATA])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for marks in ([{"seconds": 1}], [header["marks"][0] | {"frames": 99}], 7):
        save_file(tensors, path, metadata={METADATA: json.dumps(header | {"marks": marks})})
        with pytest.raises(StateError, match="marks that cannot be read"):
            load_state(path, model)


def test_two_writers_of_one_live_state(tmp_path: Path) -> None:
    path = tmp_path / "a.state"
    with (
        sole_writer(path),
        pytest.raises(OSError, match=r"a\.state is being written by another process"),
        sole_writer(path),
    ):
        pass
    with sole_writer(path):
        pass
    assert list(tmp_path.iterdir()) == []


# ---- where frames come from -----------------------------------------------------------------------------------


def same_frames(found: Iterator[Any], expected: Frames) -> None:
    frames = list(found)
    assert_close(np.array([f.seconds for f in frames]), expected.times, rtol=0, atol=1e-6)
    assert np.array_equal(np.stack([f.pixels for f in frames]), expected.pixels)


@pytest.mark.parametrize("name", ["a.ts", "a.mkv", "a.mp4", "a.flv"])
@pytest.mark.parametrize("fps", [10.0, 2.0, 3.0])
def test_a_finished_file_gives_the_frames_of_the_file(name: str, fps: float, tmp_path: Path) -> None:
    from timeviper.config import FramesConfig

    options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"} if name == "a.mp4" else {}
    path = write_clip(tmp_path / name, COUNT, options={"g": "12", "bf": "0"}, container=options)
    expected = read_video(path, 32, FramesConfig(fps=fps, max_frames=1000))
    same_frames(live_frames(path, 32, fps, patience=0.0), expected)
    if name != "a.mp4":
        same_frames(live_frames(io.BytesIO(path.read_bytes()), 32, fps), expected)


def test_a_file_that_grows(clip: Path, tmp_path: Path, model: LoadedModel) -> None:
    data, path = clip.read_bytes(), tmp_path / "growing.ts"
    path.write_bytes(data[:2000])

    def write() -> None:
        for start in range(2000, len(data), 20_000):
            time.sleep(0.02)
            with open(path, "ab") as file:
                file.write(data[start : start + 20_000])

    writer = threading.Thread(target=write)
    writer.start()
    same_frames(live_frames(path, 32, 10.0, patience=2.0), model.read_video(clip))
    writer.join()


def test_an_address_that_the_operator_gives(clip: Path, model: LoadedModel) -> None:
    class Camera(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "video/mp2t")
            self.end_headers()
            self.wfile.write(clip.read_bytes())

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Camera)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        same_frames(live_frames(f"http://127.0.0.1:{server.server_port}/live", 32, 10.0), model.read_video(clip))
    finally:
        server.shutdown()


def test_a_camera_over_rtsp(clip: Path, model: LoadedModel) -> None:
    """The last frame stays in FFmpeg's hands, which waits for the packet after it."""
    whole = model.read_video(clip)
    expected = Frames(whole.pixels[:-1], whole.times[:-1], whole.duration, COUNT - 1, 10.0)
    with camera(clip) as (address, asked):
        same_frames(live_frames(address, 32, 10.0), expected)
    assert asked == ["OPTIONS", "DESCRIBE", "SETUP", "PLAY"]
    with camera(clip, silent=True) as (address, _):
        same_frames(live_frames(address, 32, 10.0, patience=1.0), expected)


def test_stopping_does_not_wait_for_a_silent_camera(clip: Path) -> None:
    stop, found = threading.Event(), 0
    with camera(clip, silent=True) as (address, _):
        for _ in live_frames(address, 32, 10.0, patience=600.0, stop=stop):
            found += 1
            if found == COUNT - 10:
                threading.Timer(0.2, stop.set).start()
                began = time.monotonic()
    assert COUNT - 10 <= found < COUNT
    assert time.monotonic() - began < 5, "0.2 s until it is set, a look every 0.1 s, 1 s to take leave"  # pyright: ignore[reportPossiblyUnboundVariable]


def test_what_cannot_be_watched(tmp_path: Path) -> None:
    late = write_clip(tmp_path / "late.mp4", 200, size=(160, 120))  # its index stands at the end
    with pytest.raises(VideoError, match="no such file; it may grow, but must be there"):
        next(live_frames(tmp_path / "none.ts", 32, 1.0))
    (tmp_path / "noise.ts").write_bytes(np.random.default_rng(0).bytes(5000))
    for path in (late, tmp_path / "noise.ts"):
        with pytest.raises(VideoError, match=r"cannot be read as a video|ended before it showed"):
            list(live_frames(path, 32, 1.0, patience=0.0))


def test_a_playlist_is_no_camera(tmp_path: Path) -> None:
    """Text that names other files or addresses is not followed, whatever the door."""
    path = tmp_path / "list.m3u8"
    path.write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n")
    with pytest.raises(VideoError, match="cannot be read as a video"):
        next(live_frames(path, 32, 1.0, patience=0.0))
