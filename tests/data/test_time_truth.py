"""The time that the model is told is the time at which a player shows the frame, through all three doors:
training, evaluation and `ask`.

Every clip carries its frames' numbers in the pixels, and its true times are known from how it was written. The
clock is a player's: 0 is the start of the file, whatever the container's own time stamps are.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest
from av.audio.stream import AudioStream
from av.video.stream import VideoStream
from tree import ROOT
from video_helpers import numbers, picture, shown_at, write_clip

from timeviper.cli import main as cli
from timeviper.config import Recipe, SourceConfig
from timeviper.config.load import load_recipe
from timeviper.datamodules.build import load_index, pack_format
from timeviper.datamodules.datamodule import VideoDataModule
from timeviper.datamodules.frames.video import Frames, read_video, sample_times
from timeviper.datamodules.shards.pool import write_shards
from timeviper.inference.held_out import Evaluation
from timeviper.model.viper import TimeViper
from timeviper.pack import Kind, Pack, StepBatch
from timeviper.tokenizer import Tokenizer
from timeviper.weights.export import build_model, write_export

VFR = [0, 1, 2, 10, 11, 30, 31, 32, 33, 60, 61]  # tenths of a second
NTSC = Fraction(24000, 1001)
B_FRAMES: dict[str, object] = {"bf": "3", "g": "12"}


def regular(path: Path, count: int = 40, fps: int | Fraction = 10, **options) -> list[float]:
    write_clip(path, count, fps=fps, **options)
    return [n / float(fps) for n in range(count)]


def varying(path: Path, **options) -> list[float]:
    write_clip(path, VFR, **options)
    return [stamp / 10 for stamp in VFR]


def late(path: Path) -> list[float]:
    """The first time stamp is 5 seconds, and nothing is there before."""
    write_clip(path, list(range(50, 90)), options=B_FRAMES)
    return [n / 10 for n in range(40)]


def trimmed(path: Path) -> list[float]:
    """Cut at 1.6 s without encoding anew, inside a group of pictures: an edit list hides the frames before."""
    whole = write_clip(path.with_name("whole.mp4"), options=B_FRAMES)
    with av.open(str(whole)) as source, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None and packet.pts is not None:
                shift = round(1.6 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                out.mux(packet)
    return [(n - 16) / 10 for n in range(40)]


def after_sound(path: Path) -> list[float]:
    """The picture begins 0.8 seconds after the sound, and players show 0:00 when the sound begins."""
    with av.open(str(path), "w") as out:
        video = cast(VideoStream, out.add_stream("libx264", rate=10))
        video.width, video.height, video.pix_fmt, video.options = 64, 48, "yuv420p", B_FRAMES
        audio = cast(AudioStream, out.add_stream("mp2", rate=16000, layout="mono"))
        for i in range(48):
            if i >= 8:
                frame = av.VideoFrame.from_ndarray(picture(i - 8, 64, 48), format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, 10)
                out.mux(video.encode(frame))
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.int16), layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = 16000, i * 1600, Fraction(1, 16000)
            out.mux(audio.encode(sound))
        out.mux(video.encode(None))
        out.mux(audio.encode(None))
    return [0.8 + n / 10 for n in range(40)]


CLIPS: dict[str, Callable[[Path], list[float]]] = {
    "one.mp4": lambda path: regular(path, 1),
    "two.webm": lambda path: regular(path, 2, codec="libvpx-vp9"),
    "three.mkv": lambda path: regular(path, 3),
    "b-frames.mp4": lambda path: regular(path, options=B_FRAMES),
    "open-gop.mp4": lambda path: regular(path, options=B_FRAMES | {"x264-params": "open-gop=1:scenecut=0"}),
    "ntsc.mp4": lambda path: regular(path, 60, NTSC, options=B_FRAMES),
    "ntsc.mkv": lambda path: regular(path, 60, NTSC, options=B_FRAMES),
    "varying.mp4": lambda path: varying(path, options={"bf": "2", "g": "4"}),
    "varying.mkv": lambda path: varying(path, options={"bf": "2", "g": "4"}),
    "varying.webm": lambda path: varying(path, codec="libvpx-vp9", options={"g": "4"}),
    "stream.ts": lambda path: regular(path, options=B_FRAMES),
    "late.mp4": late,
    "late.mkv": late,
    "late.ts": late,
    "trimmed.mp4": trimmed,
    "sound.mkv": after_sound,
    "sound.ts": after_sound,
}


@dataclass
class Shelf:
    """All clips in one shard, a recipe that reads it, and a run with a model of random weights."""

    folder: Path
    truth: dict[str, list[float]]
    """Seconds at which a player shows frame number i of a clip; negative: never."""
    recipe: Recipe
    tokenizer: Tokenizer
    run: Path

    def check(self, name: str, frames: np.ndarray, times: list[float], duration: float) -> None:
        """Every frame is the one that is shown at its sampling time, and its time is true within half a frame."""
        truth = np.array(self.truth[name])
        first, half = truth[truth >= 0][0], np.diff(truth).min(initial=0.1) / 2
        longest = np.diff(truth).max(initial=0.1)
        assert 0 < first + duration - truth[-1] <= longest + half, "it ends with its last frame"
        sampled = sample_times(duration, self.recipe.data.frames, int((truth >= 0).sum()))
        found = numbers(Frames(frames, sampled, 0, 0, 0))
        assert found == shown_at(truth, first + sampled)
        assert np.abs(truth[found] - times).max() < half

    def check_pack(self, pack: Pack, name: str) -> None:
        """A pack of one sequence; the prompt tells the times of its frames."""
        (record,) = (s for s in load_index(self.folder / "shards")[0].samples if s.key == name.replace(".", "-"))
        times = pack.frame_times.tolist()
        self.check(name, pack.frames.numpy(), times, record.duration)
        text = self.tokenizer.decode(pack.ids[pack.kind != Kind.VISION].tolist())
        assert re.findall(r"(\d+\.\d)s", text)[: len(times)] == [f"{t:.1f}" for t in times]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    folder = tmp_path_factory.mktemp("shelf")
    truth = {name: write(folder / name) for name, write in CLIPS.items()}
    talk = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "bars"}]
    samples = [
        {"__key__": name.replace(".", "-"), name.partition(".")[2]: folder / name, "json": {"messages": talk}}
        for name in CLIPS
    ]
    write_shards(samples, folder / "shards")
    recipe = load_recipe(
        ROOT / "recipes/tiny/stage2_instruct.yaml",
        ["data.frames.fps=3", "data.tokens_per_pack=400", "chat.time=frames", "eval.max_new_tokens=1"],
    )
    recipe.train.init_from = ""
    recipe.data.sources = recipe.data.val = {"clips": SourceConfig(shards=str(folder / "shards"))}
    tokenizer = Tokenizer.load(recipe.model.tokenizer)
    state = build_model(recipe).state_dict()
    write_export(folder / "run" / "export", state, recipe, tokenizer, step=0)
    return Shelf(folder, truth, recipe, tokenizer, folder / "run")


def sequences(batches: list[StepBatch]) -> dict[str, Pack]:
    """Clip -> the first pack that has it, cut out of its pack."""
    assert not any(batch.skipped or batch.truncated for batch in batches)
    found: dict[str, Pack] = {}
    for pack in (pack for batch in batches for pack in batch.packs):
        ids, kind, labels = (t.split(pack.lengths) for t in (pack.ids, pack.kind, pack.labels))
        frames, times = pack.frames.split(pack.frame_counts), pack.frame_times.split(pack.frame_counts)
        for i, key in enumerate(pack.keys):
            one = Pack(ids[i], labels[i], kind[i], [len(ids[i])], frames[i], times[i], [len(times[i])])
            found.setdefault(key.split("/")[-1].partition("#")[0], one)
    return found


@pytest.fixture(scope="module")
def trained_on(shelf: Shelf) -> dict[str, Pack]:
    """What training reads in an epoch: shards, plan, reader."""
    data = VideoDataModule(shelf.recipe, shelf.tokenizer)
    return sequences([data.reader[plan] for plan in islice(data.plan.steps(), 12)])


@pytest.fixture(scope="module")
def evaluated_on(shelf: Shelf) -> dict[str, Pack]:
    model = cast(TimeViper, build_model(shelf.recipe))
    evaluation = Evaluation(model, shelf.recipe, shelf.tokenizer)
    return sequences([evaluation.reader[plan] for plan in evaluation.plans])


@pytest.mark.parametrize("name", CLIPS)
def test_training(shelf: Shelf, trained_on: dict[str, Pack], name: str):
    shelf.check_pack(trained_on[name.replace(".", "-")], name)


@pytest.mark.parametrize("name", CLIPS)
def test_evaluation(shelf: Shelf, evaluated_on: dict[str, Pack], name: str):
    shelf.check_pack(evaluated_on[name.replace(".", "-")], name)


@pytest.mark.parametrize("name", CLIPS)
def test_ask(shelf: Shelf, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    path = shelf.folder / name
    command = ["timeviper", "ask", "--run", str(shelf.run), "--video", str(path), "--json", "What is it?"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, _ = capsys.readouterr()
    assert not ended.value.code
    told: dict[str, Any] = json.loads(out)
    read = read_video(path, pack_format(shelf.recipe).image_size, shelf.recipe.data.frames)
    assert told["frame_times"] == [round(t, 3) for t in read.times.tolist()]
    shelf.check(name, read.pixels, told["frame_times"], told["duration"])
