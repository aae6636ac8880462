"""Frames of a file as they are needed: what packets foretell is what the decoder gives, or the file is counted."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from av.video.frame import VideoFrame
from video_helpers import write_clip

from timeviper.config import FramesConfig
from timeviper.datamodules.frames import stream as module
from timeviper.datamodules.frames.stream import FramesDifferError, FrameStream
from timeviper.datamodules.frames.video import VideoError, read_video

CLIPS = {
    "plain.mp4": {},
    "b-frames.mp4": {"options": {"bf": "3", "g": "12"}},
    "b-frames.mkv": {"options": {"bf": "3", "g": "12"}},
    "open.ts": {"options": {"bf": "3", "g": "12", "x264-params": "open-gop=1:scenecut=0"}},
    "old.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "loop.gif": {"codec": "gif"},
    "vp9.webm": {"codec": "libvpx-vp9"},
}


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize(
    "wanted", [FramesConfig(fps=3.0, max_frames=500), FramesConfig(fps=0.5), FramesConfig(fps=40.0)]
)
def test_packets_foretell_what_the_decoder_gives(tmp_path: Path, name: str, wanted: FramesConfig) -> None:
    path = write_clip(tmp_path / name, 90, **CLIPS[name])
    whole, stream = read_video(path, 16, wanted), FrameStream(path, 16, wanted)
    foretold = (stream.times.tolist(), stream.duration, stream.kind, stream.missing)
    assert foretold == (whole.times.tolist(), whole.duration, whole.kind, 0)
    for count in (1, 32, 1000):
        pieces = list(stream.pieces(count))
        assert {len(piece) for piece in pieces[:-1]} <= {count}
        assert np.array_equal(np.concatenate(pieces), whole.pixels)
    stream.recount()
    assert stream.times.tolist() == whole.times.tolist()


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv"])
def test_a_file_that_breaks_off(tmp_path: Path, name: str) -> None:
    options = {"movflags": "faststart"} if name.endswith("mp4") else None
    clip = write_clip(tmp_path / name, 120, options={"g": "10"}, container=options)
    whole, wanted = clip.read_bytes(), FramesConfig(fps=2.0)
    read = read_video(cut(clip, 0.7), 16, wanted, 12.0)
    stream = FrameStream(clip, 16, wanted, 12.0)
    try:
        pixels = np.concatenate(list(stream.pieces(5)))
    except FramesDifferError as error:  # the last packet is there in part
        error.stream.recount()
        pixels = np.concatenate(list(stream.pieces(5)))
    assert 0 < read.missing == stream.missing < 12
    assert np.array_equal(pixels, read.pixels)
    assert stream.times.tolist() == read.times.tolist()
    clip.write_bytes(whole[: int(len(whole) * 0.3)])
    with pytest.raises(VideoError, match=r"only .* of 24 frames can be decoded"):
        FrameStream(clip, 16, wanted, 12.0)


def test_damage_inside_is_noticed_and_counted(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 90, codec="mpeg4", options={"g": "1"})
    data = bytearray(clip.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    clip.write_bytes(bytes(data))
    wanted = FramesConfig(fps=5.0)
    read, stream = read_video(clip, 16, wanted), FrameStream(clip, 16, wanted)
    assert read.missing > stream.missing == 0, "packets do not tell"
    with pytest.raises(FramesDifferError):
        list(stream.pieces(4))
    stream.recount()
    assert (stream.missing, stream.times.tolist()) == (read.missing, read.times.tolist())
    assert np.array_equal(np.concatenate(list(stream.pieces(4))), read.pixels)


def test_a_length_that_is_a_lie(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 40)
    for told in (4.6, 4.3):
        read, stream = (
            read_video(clip, 16, FramesConfig(fps=3.0), told),
            FrameStream(clip, 16, FramesConfig(fps=3.0), told),
        )
        assert (stream.times.tolist(), stream.missing) == (read.times.tolist(), read.missing)
    with pytest.raises(VideoError, match="of 1000 frames can be decoded"):
        FrameStream(clip, 16, FramesConfig(fps=1.0, max_frames=1000), 10_000.0)


def test_a_file_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 40)
    stream = FrameStream(clip, 16, FramesConfig(fps=3.0))
    write_clip(clip, 30)
    with pytest.raises(FramesDifferError):
        list(stream.pieces(4))
    stream.recount()
    write_clip(clip, 35)
    with pytest.raises(VideoError, match=r"clip\.mp4: gives other frames each time"):
        list(stream.pieces(4))


def test_frames_are_decoded_when_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, resized = write_clip(tmp_path / "clip.mp4", 200), module.iter_video
    made: list[int] = []

    def counting(*args):
        for piece in resized(*args):
            made.append(len(piece.times))
            yield piece

    monkeypatch.setattr(module, "iter_video", counting)
    stream = FrameStream(clip, 16, FramesConfig(fps=10.0))
    assert not made
    pieces = stream.pieces(8)
    next(pieces)
    assert made == [8]


def test_decoded_frames_are_let_go_at_once(tmp_path: Path) -> None:
    """Not at the next collection of garbage: hundreds of them take a gigabyte in Full HD."""
    clip = write_clip(tmp_path / "clip.mp4", 100)

    def alive() -> int:
        return sum(isinstance(thing, VideoFrame) for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    before = alive()
    try:
        for _ in FrameStream(clip, 16, FramesConfig(fps=10.0)).pieces(10):
            assert alive() <= before + 2
    finally:
        gc.enable()
