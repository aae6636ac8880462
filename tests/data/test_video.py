"""Which frames are read, at which times, with which pixels, from good, odd and broken files."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
from av.video.stream import VideoStream
from video_helpers import all_frames, numbers, picture, shown_at, write_clip

from timeviper.config import FramesConfig
from timeviper.datamodules.frames.container import Container
from timeviper.datamodules.frames.video import (
    VideoError,
    frame_count,
    iter_video,
    probe_video,
    read_video,
    sample_times,
)

ALL = FramesConfig(fps=1000, max_frames=1000)


# ----- which times -----------------------------------------------------------------------------------


def test_times_are_the_centres_of_equal_bins():
    assert sample_times(8.0, FramesConfig(fps=0.5)).tolist() == [1, 3, 5, 7]
    assert sample_times(100.0, FramesConfig(fps=1, max_frames=2)).tolist() == [25, 75]
    assert sample_times(1.0, FramesConfig(fps=1, min_frames=4)).tolist() == [0.125, 0.375, 0.625, 0.875]
    assert sample_times(0.0, FramesConfig()).tolist() == [0]


def test_frame_count_needs_no_file():
    assert frame_count(10.0, FramesConfig(fps=2)) == 20
    assert frame_count(3600.0, FramesConfig(fps=1, max_frames=256)) == 256
    assert frame_count(0.2, FramesConfig(fps=1, min_frames=8)) == 8
    assert frame_count(0.2, FramesConfig(fps=1, min_frames=8), available=3) == 3
    assert frame_count(0.0, FramesConfig(min_frames=8), available=1) == 1


@pytest.mark.parametrize("frames", [FramesConfig(2), FramesConfig(0.5), FramesConfig(1, 8, 12), ALL])
@pytest.mark.parametrize("count", [1, 2, 3, 11, 40])
def test_plan_and_reader_agree(tmp_path: Path, frames: FramesConfig, count: int):
    path = write_clip(tmp_path / "clip.mp4", count)
    info = probe_video(path)
    assert info.frames == count
    assert info.duration == pytest.approx(count / 10)
    read = read_video(path, 64, frames, info.duration)
    assert len(read.times) == frame_count(info.duration, frames, info.frames)
    assert len(read.times) == len(read_video(path, 64, frames).times)


# ----- which frames ----------------------------------------------------------------------------------

FORMATS = {
    "b-frames.mp4": {"options": {"bf": "3", "g": "12"}},
    "open-gop.mp4": {"options": {"bf": "3", "g": "12", "x264-params": "open-gop=1:scenecut=0"}},
    "fragments.mp4": {"options": {"g": "12"}, "container": {"movflags": "frag_keyframe+empty_moov"}},
    "matroska.mkv": {"options": {"bf": "3", "g": "12"}},
    "start-offset.ts": {"options": {"bf": "3", "g": "12"}},
    "no-stamps.h264": {"options": {"bf": "2", "g": "12"}, "fps": 25},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "keyint=12:bframes=3:log-level=none"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "12"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"g": "12"}},
    "reordered.avi": {"options": {"bf": "3", "g": "12"}},
    "intra.avi": {"codec": "mjpeg"},
    "mpeg.mpg": {"codec": "mpeg2video", "fps": 25, "options": {"bf": "2", "g": "12"}},
    "png.mov": {"codec": "png"},
    "23.976.mp4": {"fps": Fraction(24000, 1001), "options": {"bf": "2", "g": "12"}},
    "odd-size.mp4": {"size": (65, 47)},
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("wanted", [3, 7, 40])
def test_frame_is_the_one_shown_at_its_time(tmp_path: Path, name: str, wanted: int):
    path = write_clip(tmp_path / name, **FORMATS[name])
    read = read_video(path, 64, FramesConfig(fps=1000, max_frames=wanted))
    fps = float(FORMATS[name].get("fps", 10))
    assert read.count == 40
    assert read.missing == 0
    assert read.fps == pytest.approx(fps, rel=0.03)
    expected = shown_at(np.arange(40) / fps, sample_times(40 / fps, FramesConfig(fps=1000, max_frames=wanted)))
    assert numbers(read) == expected
    np.testing.assert_allclose(read.times, np.array(expected) / fps, atol=0.002)


def test_variable_frame_rate(tmp_path: Path):
    stamps = [0, 1, 2, 10, 11, 30, 31, 32, 33, 60, 61]
    path = write_clip(tmp_path / "vfr.mp4", stamps, options={"bf": "2", "g": "4"})
    read = read_video(path, 64, FramesConfig(fps=1, min_frames=7), duration=7.0)
    assert numbers(read) == shown_at(np.array(stamps) / 10, np.arange(7) + 0.5)
    np.testing.assert_allclose(read.times, np.array(stamps)[numbers(read)] / 10)


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv"])
def test_trimmed_start(tmp_path: Path, name: str):
    """A copy without re-encoding starts inside a group of pictures: the first frames are decoded, not shown."""
    path = write_clip(tmp_path / "whole.mp4", options={"bf": "2", "g": "12"})
    with av.open(str(path)) as source, av.open(str(tmp_path / name), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None and packet.pts is not None:
                shift = round(1.6 / packet.time_base) if name.endswith("mp4") else 0
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                out.mux(packet)
    stamps, frames = all_frames(tmp_path / name)
    assert len(frames) == (24 if name.endswith("mp4") else 40)
    read = read_video(tmp_path / name, 64, ALL)
    assert numbers(read) == list(range(40 - len(frames), 40))
    np.testing.assert_allclose(read.times, stamps - stamps[0])


@pytest.mark.parametrize("name", ["b-frames.mp4", "open-gop.mp4", "start-offset.ts", "vp9.webm"])
def test_pixels_equal_sequential_decoding(tmp_path: Path, name: str):
    path = write_clip(tmp_path / name, 120, **FORMATS[name])
    _, frames = all_frames(path)
    whole = read_video(path, 32, ALL)
    assert len(whole.times) == len(frames) == 120
    for wanted in (2, 5, 9, 30):
        read = read_video(path, 32, FramesConfig(fps=1000, max_frames=wanted))
        assert len(read.times) == wanted
        np.testing.assert_array_equal(read.pixels, whole.pixels[np.searchsorted(whole.times, read.times - 1e-6)])


def test_only_what_is_needed_is_read(tmp_path: Path):
    path = write_clip(
        tmp_path / "long.mp4", 1000, options={"g": "20", "preset": "ultrafast"}, container={"movflags": "faststart"}
    )

    class Counting(io.BytesIO):
        bytes_read = 0

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            Counting.bytes_read += len(data)
            return data

    source = Counting(path.read_bytes())
    read = read_video(source, 64, FramesConfig(fps=1000, max_frames=3))
    assert [n % 256 for n in (166, 500, 833)] == numbers(read)
    assert Counting.bytes_read < 0.3 * path.stat().st_size


@pytest.mark.parametrize("chunk", [1, 7, 20, 64])
def test_pieces_are_the_whole(tmp_path: Path, chunk: int):
    path = write_clip(tmp_path / "clip.mp4", options={"g": "8"})
    frames = FramesConfig(fps=5)
    whole = read_video(path, 64, frames)
    pieces = list(iter_video(path, 64, frames, chunk=chunk))
    assert max(len(p.times) for p in pieces) == min(chunk, 20)
    np.testing.assert_array_equal(np.concatenate([p.pixels for p in pieces]), whole.pixels)
    np.testing.assert_array_equal(np.concatenate([p.times for p in pieces]), whole.times)


def test_sources_are_alike(tmp_path: Path):
    path = write_clip(tmp_path / "a:b 100%d.mp4")
    by_path = read_video(path, 64, FramesConfig(2))
    for source in (str(path), io.BytesIO(path.read_bytes())):
        np.testing.assert_array_equal(read_video(source, 64, FramesConfig(2)).pixels, by_path.pixels)


# ----- how they look ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rotation", "corner"),
    [
        ((0,), (0, 0)),
        ((90,), (1, 0)),
        ((-90,), (0, 1)),
        ((180,), (1, 1)),
        ((0, True), (0, 1)),
        ((0, False, True), (1, 0)),
    ],
)
def test_pictures_are_upright(tmp_path: Path, rotation: tuple, corner: tuple[int, int]):
    """The bright upper left corner goes where a player shows it (rotation is counterclockwise)."""
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as out:
        stream = cast(VideoStream, out.add_stream("libx264", rate=10))
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        stream.set_display_rotation(*rotation)
        image = np.zeros((32, 64, 3), np.uint8)
        image[:16, :32] = 255
        out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
    pixels = read_video(path, 32, FramesConfig()).pixels[0].mean(axis=0)
    quarters = pixels.reshape(2, 16, 2, 16)[:, 4:12, :, 4:12].mean(axis=(1, 3))
    assert np.argwhere(quarters > 200).tolist() == [list(corner)]
    assert np.sort(quarters.ravel())[2] < 50


@pytest.mark.parametrize(
    ("name", "codec", "form"), [("i.jpg", "mjpeg", "yuvj420p"), ("i.png", "png", "rgb24"), ("g.png", "png", "gray")]
)
@pytest.mark.parametrize("in_memory", [False, True])
def test_image_is_one_frame_at_zero(tmp_path: Path, name: str, codec: str, form: str, in_memory: bool):
    path = tmp_path / name
    with av.open(str(path), "w", format="image2") as out:
        stream = cast(VideoStream, out.add_stream(codec, rate=1))
        stream.width, stream.height, stream.pix_fmt = 64, 48, form
        out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(5, 64, 48), format="rgb24").reformat(format=form)))
        out.mux(stream.encode(None))
    read = read_video(io.BytesIO(path.read_bytes()) if in_memory else path, 64, FramesConfig(fps=5, min_frames=4))
    assert (read.kind, read.duration, read.count, read.times.tolist()) == ("image", 0.0, 1, [0.0])
    assert numbers(read) == [5]


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (1, 1)), (6, (0, 1)), (8, (1, 0))])
def test_photos_are_upright(tmp_path: Path, orientation: int, corner: tuple[int, int]):
    image = np.zeros((32, 64, 3), np.uint8)
    image[:16, :32] = 255
    with av.open(str(tmp_path / "photo.jpg"), "w", format="image2") as out:
        stream = cast(VideoStream, out.add_stream("mjpeg", rate=1))
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuvj420p"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
    jpeg = (tmp_path / "photo.jpg").read_bytes()
    exif = b"Exif\0\0II*\0" + struct.pack("<IHHHIII", 8, 1, 0x112, 3, 1, orientation, 0)
    jpeg = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]
    pixels = read_video(io.BytesIO(jpeg), 32, FramesConfig()).pixels[0].mean(axis=0)
    quarters = pixels.reshape(2, 16, 2, 16)[:, 4:12, :, 4:12].mean(axis=(1, 3))
    assert np.argwhere(quarters > 200).tolist() == [list(corner)]


def test_colours_are_right(tmp_path: Path):
    path = tmp_path / "colour.mp4"
    with av.open(str(path), "w") as out:
        stream = cast(VideoStream, out.add_stream("libx264", rate=10))
        stream.width, stream.height, stream.pix_fmt, stream.options = 32, 32, "yuv444p", {"qp": "1"}
        out.mux(
            stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), (200, 90, 20), np.uint8), format="rgb24"))
        )
        out.mux(stream.encode(None))
    colour = read_video(path, 16, FramesConfig()).pixels[0].mean(axis=(1, 2))
    np.testing.assert_allclose(colour, (200, 90, 20), atol=4)


# ----- what cannot be read ---------------------------------------------------------------------------


def refusal(source: Path | io.BytesIO) -> str:
    with pytest.raises(VideoError) as caught:
        read_video(source, 64, FramesConfig(2))
    return str(caught.value)


def test_missing_empty_and_foreign_files(tmp_path: Path):
    assert refusal(tmp_path / "none.mp4") == f"{tmp_path}/none.mp4: no such file"
    (tmp_path / "empty.mp4").touch()
    assert "is empty (0 bytes)" in refusal(tmp_path / "empty.mp4")
    assert "is empty (0 bytes)" in refusal(io.BytesIO())
    (tmp_path / "text.mp4").write_text("This is not a video. " * 50)
    assert "cannot be read as a video or image" in refusal(tmp_path / "text.mp4")
    assert str(tmp_path) in refusal(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path):
    path = write_clip(tmp_path / "clip.mp4")
    path.chmod(0)
    assert "no permission" in refusal(path)


def test_sound_only(tmp_path: Path):
    with av.open(str(tmp_path / "sound.wav"), "w") as out:
        stream = out.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        sound.sample_rate = 8000
        out.mux(stream.encode(sound))
    assert refusal(tmp_path / "sound.wav").endswith("has no video stream (only: audio)")


def test_no_frames(tmp_path: Path):
    path = write_clip(tmp_path / "clip.mkv", container={"cluster_time_limit": "100"})
    data = path.read_bytes()
    assert "sound" not in refusal(io.BytesIO(data[: data.index(b"\x1f\x43\xb6\x75")]))  # only the header is left


def test_absurd_size_is_refused_before_memory_is_taken(tmp_path: Path):
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    assert "134,217,728 pixels" in refusal(io.BytesIO(png))


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv", "cut.webm"])
@pytest.mark.parametrize(("share", "enough"), [(0.75, True), (0.3, False)])
def test_truncated(tmp_path: Path, name: str, share: float, enough: bool):
    codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
    container = {"movflags": "faststart"} if name.endswith("mp4") else {}
    path = write_clip(
        tmp_path / f"whole-{name}",
        120,
        codec,
        options={"g": "10"},
        container=container,
    )
    data = path.read_bytes()
    cut = tmp_path / name
    cut.write_bytes(data[: int(len(data) * share)])
    if enough:
        read = read_video(cut, 64, FramesConfig(2), duration=12.0)
        assert 2 <= read.missing <= 12
        assert len(read.times) == len(read.pixels) == 24 - read.missing
        expected = [int(5 * (i + 0.5)) for i in range(24 - read.missing)]
        np.testing.assert_allclose(numbers(read), expected, atol=1)  # the last one may stand in for its neighbour
    else:
        with pytest.raises(VideoError, match=r"only \d+ of 24 frames can be decoded"):
            read_video(cut, 64, FramesConfig(2), duration=12.0)


def test_flipped_bytes_cost_few_frames(tmp_path: Path):
    path = write_clip(tmp_path / "clip.mp4", 200, options={"g": "10"}, container={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for position in rng.integers(len(data) // 3, len(data), 30):
        data[position] ^= 0xFF
    read = read_video(io.BytesIO(bytes(data)), 64, FramesConfig(4))
    assert read.missing <= 20
    assert len(read.times) + read.missing >= 70  # the index itself is hit: some frames are no longer in it
    assert np.all(np.diff(read.times) > 0)


def test_errors_survive_a_process_boundary():
    error = pickle.loads(pickle.dumps(VideoError("shard.tar/key", "holds no frames")))
    assert (error.where, error.reason, str(error)) == (
        "shard.tar/key",
        "holds no frames",
        "shard.tar/key: holds no frames",
    )


@pytest.mark.parametrize("damage", range(20))
def test_random_damage_never_escapes(tmp_path: Path, damage: int):
    """Whatever happens to a file: frames or a VideoError, no other exception."""
    rng = np.random.default_rng(damage)
    name = ("clip.mp4", "clip.mkv", "clip.ts", "clip.avi")[damage % 4]
    data = bytearray(write_clip(tmp_path / name, 30).read_bytes())
    for position in rng.integers(0, len(data), 40):
        data[position] = rng.integers(256)
    try:
        read = read_video(io.BytesIO(bytes(data[: rng.integers(len(data) // 2, len(data))])), 32, FramesConfig(4))
    except VideoError:
        return
    assert len(read.pixels) == len(read.times) > 0


def test_coarse_ticks_cost_no_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Matroska's milliseconds: the mean step in whole ticks is wrong, here by 40%, and adds up over a long video."""
    path = write_clip(tmp_path / "clip.mkv", 900, fps=600, options={"g": "10"})
    decoded = 0

    def counted(self: Container, packet: av.Packet | None) -> list[av.VideoFrame]:
        nonlocal decoded
        decoded += packet is not None
        return plain(self, packet)

    plain = Container.decode
    monkeypatch.setattr(Container, "decode", counted)
    read = read_video(path, 32, FramesConfig(fps=1000, max_frames=15))
    assert len(read.times) == 15
    assert decoded <= 15 * (10 + 3)  # a group of pictures each, and what reordering looks ahead
