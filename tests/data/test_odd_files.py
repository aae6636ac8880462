"""One odd file never ends a job: pictures of all sizes, animations where an image is meant, decoders' errors."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import av
import pytest
from av.error import InvalidDataError
from av.error import OSError as FFmpegOSError
from av.video.stream import VideoStream
from shard_helpers import QUESTION, clip
from tree import ROOT
from video_helpers import numbers, picture, write_clip

from timeviper.config import FramesConfig, SourceConfig
from timeviper.config.load import load_recipe
from timeviper.datamodules.checks import fix
from timeviper.datamodules.checks.shards import CheckConfig, check_shards
from timeviper.datamodules.datamodule import VideoDataModule
from timeviper.datamodules.frames import video
from timeviper.datamodules.frames.container import Container, Still, VideoError
from timeviper.datamodules.frames.stream import FrameStream
from timeviper.datamodules.frames.video import probe_video, read_video
from timeviper.datamodules.shards.pool import write_shards
from timeviper.datamodules.shards.tar import ShardError
from timeviper.inference.given import media_of
from timeviper.pack import StepBatch
from timeviper.tokenizer import Tokenizer

ALL = FramesConfig(fps=1000, max_frames=1000)


def write_picture(path: Path, side: int, codec: str = "mjpeg", form: str = "yuvj420p") -> Path:
    """Bars for the number 5 and much noise, so that a large one has many bytes."""
    plain = path.with_name("plain")  # a writer counts at %d
    with av.open(str(plain), "w", format="image2") as out:
        stream = cast(VideoStream, out.add_stream(codec, rate=1))
        stream.width = stream.height = side
        stream.pix_fmt = form
        out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(5, side, side), format="rgb24").reformat(format=form)))
        out.mux(stream.encode(None))
    return plain.rename(path)


@pytest.mark.parametrize("side", [32, 64, 300, 1500])
@pytest.mark.parametrize(
    ("name", "codec", "form"),
    [
        ("photo.jpg", "mjpeg", "yuvj420p"),
        ("PHOTO 100%d.JPEG", "mjpeg", "yuvj444p"),
        ("photo.png", "png", "rgb24"),
        ("photo.bmp", "bmp", "bgr24"),
        ("photo.tiff", "tiff", "rgb24"),
    ],
)
def test_pictures_of_all_sizes(tmp_path: Path, side: int, name: str, codec: str, form: str) -> None:
    """By path, as `ask` and Python classes give them, from memory, and as a stream."""
    path = write_picture(tmp_path / name, side, codec, form)
    for source in (path, str(path), io.BytesIO(path.read_bytes()), Still(path)):
        read = read_video(source, 64, FramesConfig(fps=5, min_frames=4))
        assert (read.kind, read.duration, read.count, read.times.tolist()) == ("image", 0.0, 1, [0.0])
        assert numbers(read) == [5]
    stream = FrameStream(path, 64, FramesConfig())
    assert (stream.kind, stream.times.tolist(), numbers(stream.read())) == ("image", [0.0], [5])
    assert probe_video(path).kind == "image"


ANIMATIONS = {"moving.gif": ("gif", "rgb8"), "moving.apng": ("apng", "rgb24")}


@pytest.mark.parametrize("name", ANIMATIONS)
def test_an_animation_is_one_picture_where_an_image_is_meant(tmp_path: Path, name: str) -> None:
    """Under the name of a still one, or called an image by the json: planned, read and checked as one frame."""
    codec, form = ANIMATIONS[name]
    path = write_clip(tmp_path / name, 12, codec, form=form)
    still = read_video(Still(path), 64, ALL)
    assert (still.kind, still.duration, still.times.tolist(), numbers(still)) == ("image", 0.0, [0.0], [0])
    assert len(read_video(path, 64, ALL).times) == 12
    asked = media_of(path.rename(tmp_path / "still.jpg"), 64, ALL)
    assert (asked.kind, asked.times.tolist()) == ("image", [0.0])
    path = tmp_path / "still.jpg"
    image = {"messages": QUESTION, "media": [{"type": "image", "member": "gif"}]}
    write_shards(
        [
            {"__key__": "named", "jpg": path, "json": {"messages": QUESTION}},
            {"__key__": "called", "gif": path, "json": image},
        ],
        tmp_path / "shards",
    )
    accept = frozenset({"duplicate"})
    report = check_shards(tmp_path / "shards", CheckConfig(FramesConfig(), 32, accept=accept))
    assert not report.problems
    assert [(n.key, n.kind) for n in report.notes if n.kind != "duplicate"] == [
        ("named", "animation"),
        ("called", "animation"),
    ]
    read = [pack for batch in batches_of(tmp_path / "shards") for pack in batch.packs]
    assert read
    assert all(set(pack.frame_counts) == {1} and not pack.frame_times.any() for pack in read)


def test_a_video_called_an_image_is_a_problem(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4")
    write_shards([{"__key__": "a", "png": path, "json": {"messages": QUESTION}}], tmp_path / "shards")
    (problem,) = check_shards(tmp_path / "shards", CheckConfig(FramesConfig(), 32)).problems
    assert (problem.kind, problem.detail) == ("media", "png: the json calls it an image, but it is a video (mov)")


ERRORS = [
    MemoryError(),
    OverflowError("too large for a C int"),
    NotImplementedError("a codec from tomorrow"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    RuntimeError("the decoder is in a bad state"),
    KeyError("SIDE_DATA"),
    AssertionError(),
    FFmpegOSError(95, "Operation not supported"),  # of the scaler
    InvalidDataError(1094995529, "Invalid data found when processing input"),
]


def samples(folder: Path) -> list[dict[str, Any]]:
    """Three, of which the second has another codec than the others."""
    other = write_clip(folder / "clip001.mp4", 20, "mpeg4")
    return [clip(0), {"__key__": "clip001", "mp4": other, "json": {"messages": QUESTION}}, clip(2)]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_an_error_of_any_class_is_that_file_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Raised late, by a decoder or scaler, or early, by a demuxer: the others are examined and written."""
    write_shards(three := samples(tmp_path), tmp_path / "shards")
    raised_for_mpeg4(monkeypatch, error, "draw")
    report = check_shards(tmp_path / "shards", CheckConfig(FramesConfig(), 32))
    assert [(p.key, p.kind) for p in report.problems] == [("clip001", "media")]
    assert report.samples == 3
    said = r"clip001.*: cannot be read as a video or image \(.+\)"
    with pytest.raises(VideoError, match=said):
        read_video(tmp_path / "clip001.mp4", 32, FramesConfig())
    raised_for_mpeg4(monkeypatch, error, "read_timeline")
    with pytest.raises(ShardError, match="clip001"):
        write_shards(three, tmp_path / "new")
    with pytest.raises(VideoError, match=said):
        FrameStream(tmp_path / "clip001.mp4", 32, FramesConfig())


def test_training_goes_on_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(samples(tmp_path), tmp_path / "shards")
    raised_for_mpeg4(monkeypatch, MemoryError(), "draw")
    batches = batches_of(tmp_path / "shards")
    assert {lost.key.partition("#")[0].split("/")[-1] for batch in batches for lost in batch.skipped} == {"clip001"}
    assert any(batch.packs for batch in batches)


def raised_for_mpeg4(monkeypatch: pytest.MonkeyPatch, error: Exception, function: str) -> None:
    """`function` of video.py raises `error` for files of that codec."""
    draw, timeline, odd = video.draw, video.read_timeline, False

    def opening(container: Container) -> Any:
        nonlocal odd
        odd = container.context.name == "mpeg4"
        if odd and function == "read_timeline":
            raise error
        return timeline(container)

    def drawing(frame: av.VideoFrame, picture: Any) -> None:
        if odd and function == "draw":
            raise error
        draw(frame, picture)

    monkeypatch.setattr(video, "draw", drawing)
    monkeypatch.setattr(video, "read_timeline", opening)


def batches_of(shards: Path) -> list[StepBatch]:
    """Some steps of training on them."""
    recipe = load_recipe(ROOT / "recipes/tiny/stage2_instruct.yaml", ["data.frames.fps=10"])
    recipe.train.init_from = ""
    recipe.data.sources = recipe.data.val = {"clips": SourceConfig(shards=str(shards))}
    data = VideoDataModule(recipe, Tokenizer.load(recipe.model.tokenizer))
    return [data.reader[plan] for plan in islice(data.plan.steps(), 2)]


def test_what_a_disk_says_is_not_the_file_s_fault() -> None:
    with pytest.raises(OSError, match="stale"), Container(io.BytesIO(clip(0)["mp4"])):
        raise OSError(116, "stale file handle")


def test_what_plays_and_cannot_be_encoded_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "a.webm", codec="libvpx-vp9", options={"g": "40"})
    write_shards([{"__key__": "a", "webm": path, "json": {"messages": QUESTION}}], tmp_path / "shards")

    def fails(*_: object) -> float:
        raise VideoError("a", "the encoder refuses it")

    monkeypatch.setattr(fix, "reencode", fails)
    config = CheckConfig(FramesConfig(), 32)
    report = check_shards(tmp_path / "shards", config)
    assert fix.fix_shards(tmp_path / "shards", tmp_path / "out", report, config) == []
    (old,), (new,) = ([*(tmp_path / folder).glob("*.tar")] for folder in ("shards", "out"))
    assert path.read_bytes() in new.read_bytes()
    assert path.read_bytes() in old.read_bytes()


def test_a_cut_matroska_file_is_not_taken_for_one_that_holds_its_last_frame(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", 60, options={"g": "10"})
    data = path.read_bytes()
    cut = read_video(io.BytesIO(data[: len(data) // 2]), 64, replace(ALL, max_frames=20))
    assert cut.duration == pytest.approx(6.0, abs=0.01)
    assert 5 < cut.missing < 12
