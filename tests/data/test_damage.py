"""Damage from before an index was written, which decoders conceal; and videos in which there is nothing to see."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest
from av.video.stream import VideoStream
from shard_helpers import QUESTION, clip, raw_tar
from video_helpers import numbers, write_clip

from timeviper.config import FramesConfig
from timeviper.datamodules.checks.fix import DROPPED, fix_shards
from timeviper.datamodules.checks.shards import CheckConfig, Report, check_shards
from timeviper.datamodules.frames.container import Container
from timeviper.datamodules.frames.decode import FrameReader
from timeviper.datamodules.frames.draw import resized
from timeviper.datamodules.frames.timeline import read_timeline
from timeviper.datamodules.frames.video import Frames
from timeviper.datamodules.shards.index import index_shards, read_index, write_index
from timeviper.datamodules.shards.pool import write_shards
from timeviper.datamodules.world.render import draw, encode_image
from timeviper.datamodules.world.scene import draw_image

CONFIG = CheckConfig(FramesConfig(fps=4), image_size=64, accept=frozenset({"near-duplicate", "duplicate"}))
GROUPS: dict[str, object] = {"g": "8", "bf": "2"}


def sample(key: str, ending: str, data: bytes, **record: Any) -> dict[str, Any]:
    return {"__key__": key, ending: data, "json": {"messages": QUESTION, **record}}


def check(folder: Path, samples: list[dict[str, Any]]) -> Report:
    write_shards(samples, folder)
    return check_shards(folder, CONFIG)


def noise(path: Path, codec: str, options: dict[str, object]) -> bytes:
    """24 frames of moving noise, so that a frame has many bytes."""
    rng = np.random.default_rng(0)
    wide = np.kron(rng.integers(0, 255, (48, 96, 3)), np.ones((8, 8, 1), int)) + rng.integers(-9, 9, (384, 768, 3))
    with av.open(str(path), "w") as out:
        stream = cast(VideoStream, out.add_stream(codec, rate=12))
        stream.width, stream.height, stream.pix_fmt, stream.options = 320, 240, "yuv420p", cast(Any, options)
        for i in range(24):
            piece = wide[i : i + 240, 3 * i : 3 * i + 320].clip(0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(piece), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 12)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path.read_bytes()


def flipped(data: bytes, first: int, end: int, count: int, seed: int) -> bytes:
    rng, spoilt = np.random.default_rng(seed), bytearray(data)
    for at in rng.integers(first, end, count):
        spoilt[at] ^= 1 << int(rng.integers(8))
    return bytes(spoilt)


def test_pictures_that_are_cut(tmp_path: Path) -> None:
    """At a half of its bytes a JPEG was read as a whole one, with grey for the rest."""
    still = next(draw(draw_image(np.random.default_rng(0), 2, None)))[0]
    pixels = np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)
    whole = {"drawn": encode_image(still), "noise": encode_image(pixels)}
    good = [sample(name, "jpg", data + more) for name, data in whole.items() for more in (b"",)]
    good += [sample("more", "jpg", whole["noise"] + b"from a camera")]  # after the end, where thumbnails and films lie
    bad = [
        sample(f"{name}-{int(100 * share)}", "jpg", data[: int(share * len(data))])
        for name, data in whole.items()
        for share in (0.4, 0.6, 0.9)
    ]
    report = check(tmp_path, [*good, *bad])
    assert [(p.key, p.kind) for p in report.problems] == [(b["__key__"], "media") for b in bad]
    assert all("is cut or damaged: a part of it would be made up" in p.detail for p in report.problems)


@pytest.mark.parametrize(
    ("codec", "ending", "counts"), [("libx264", "mp4", (5, 50)), ("libx264", "ts", (5, 50)), ("mpeg4", "avi", (50,))]
)
def test_flipped_bits_from_before_the_index(tmp_path: Path, codec: str, ending: str, counts: tuple[int, ...]) -> None:
    """In the pictures of a video whose checksums came later, so that they are right."""
    whole = noise(tmp_path / f"a.{ending}", codec, GROUPS)
    with av.open(io.BytesIO(whole), "r") as file:
        packets = [p for p in file.demux(video=0) if p.size and p.pos]
    first, end = packets[3].pos or 0, packets[20].pos or 0
    bad = [
        sample(f"{count}-{seed}", ending, flipped(whole, first, end, count, seed))
        for count in counts
        for seed in range(3)
    ]
    report = check(tmp_path / "in", [sample("whole", ending, whole), *bad])
    found = {p.key: p.detail for p in report.problems}
    assert sorted(found) == sorted(b["__key__"] for b in bad)
    assert all("damaged" in detail or "cannot be decoded" in detail for detail in found.values())
    dropped = fix_shards(tmp_path / "in", tmp_path / "out", report, CONFIG)
    assert check_shards(tmp_path / "out", CONFIG).problems == []
    assert {d.key for d in dropped} == set(found)  # more than a hundredth of their frames would be made up
    assert "of its frames cannot be decoded" in (tmp_path / "out" / DROPPED).read_text()


def test_what_is_mended_shows_nothing_that_was_made_up(tmp_path: Path) -> None:
    """A damaged keyframe in a long video: from there to the next keyframe the frame before it stays."""
    path = write_clip(tmp_path / "a.mp4", 240, options={"g": "2", "bf": "0", "sc_threshold": "0"}, size=(128, 96))
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as file:
        packet = [p for p in file.demux(video=0) if p.size][100]
        assert packet.is_keyframe
    at = packet.pos or 0
    data[at + packet.size // 4 : at + packet.size // 2] = bytes(packet.size // 2 - packet.size // 4)
    report = check(tmp_path / "in", [sample("a", "mp4", bytes(data))])
    assert [(p.key, p.kind) for p in report.problems] == [("a", "media")]
    assert "2 of 240 packets are damaged, the first at 10.00 s" in report.problems[0].detail
    assert fix_shards(tmp_path / "in", tmp_path / "out", report, CONFIG) == []
    (tar,) = (tmp_path / "out").glob("*.tar")
    member = read_index(tar).samples[0].members["mp4"]
    mended = io.BytesIO(tar.read_bytes()[member.offset : member.offset + member.size])
    with Container(mended) as video:
        timeline = read_timeline(video)
        frames = {stamp: resized(frame, 64) for frame, stamp in FrameReader(video, timeline).every()}
        times = np.array([(stamp - timeline.start) * video.tick for stamp in frames])
    shown = [n for n in range(240) if n not in (100, 101)]
    assert numbers(Frames(np.stack([*frames.values()]), times, 24.0, len(times), 10.0)) == shown
    np.testing.assert_allclose(times, np.array(shown) / 10, atol=0.001)


def still_video(path: Path, pictures: list[np.ndarray], form: str = "rgb24") -> bytes:
    with av.open(str(path), "w") as out:
        stream = cast(VideoStream, out.add_stream("libx264", rate=4))
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.options = cast(Any, {"crf": "30"})
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format=form)
            frame.pts, frame.time_base = i, Fraction(1, 4)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path.read_bytes()


def test_videos_in_which_there_is_nothing_to_see(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scene = rng.integers(60, 200, (48, 64, 3), np.uint8)
    moved = [np.roll(scene, 2 * i, axis=1) for i in range(12)]
    dark = [rng.integers(0, 12, (48, 64, 3), np.uint8) for _ in range(12)]
    lawn = [np.roll(scene // 2 + np.array([20, 90, 30], np.uint8), i, 1) for i in range(12)]
    lost = np.zeros((72, 64), np.uint8)  # all planes of 4:2:0
    night = [np.where(np.arange(64)[None, :, None] == 5 * i, 255, 0) * np.ones((48, 1, 3)) for i in range(12)]
    videos = {
        "moving": still_video(tmp_path / "a.mp4", moved),
        "lawn": still_video(tmp_path / "b.mp4", lawn),
        "night": still_video(tmp_path / "c.mp4", [n.astype(np.uint8) for n in night]),
        "black": still_video(tmp_path / "d.mp4", dark),
        "frozen": still_video(tmp_path / "e.mp4", 12 * [scene]),
        "green": still_video(tmp_path / "f.mp4", 12 * [lost], "yuv420p"),
        "one-frame": still_video(tmp_path / "g.mp4", [scene]),
    }
    report = check(tmp_path / "in", [sample(name, "mp4", data) for name, data in videos.items()])
    assert report.problems == []
    said = {(n.key, n.kind) for n in report.notes if n.kind not in CONFIG.accept}
    assert said == {(n, n) for n in ("black", "frozen", "green", "one-frame")} | {("green", "frozen")}
    part = [{"type": "video", "member": "mp4", "start": 1.0, "end": 2.0}]
    report = check(tmp_path / "parts", [sample("part", "mp4", videos["black"], media=part)])
    assert {(n.kind, n.detail.partition(":")[0]) for n in report.notes} == {("black", "mp4")}


@pytest.mark.parametrize("value", ["2.0", [2], True, -1, {}, float("nan")])
def test_keyframe_spacing_of_a_wrong_type(tmp_path: Path, value: Any) -> None:
    """In a json, which an index is made from; and in an index that another program wrote."""
    medium = {"type": "video", "member": "mp4", "duration": 2.0, "fps": 4.0, "frames": 8, "keyframe_spacing": value}
    record = {"media": [medium], "messages": QUESTION}
    raw_tar(tmp_path / "x.tar", [("a.json", json.dumps(record).encode()), ("a.mp4", clip(0)["mp4"])])
    with pytest.raises(ValueError, match=r"keyframe_spacing is .*; it must be seconds from 0 on, or left out"):
        index_shards(tmp_path)
    assert ("a", "json") in [(p.key, p.kind) for p in check_shards(tmp_path, CONFIG).problems]


def test_an_index_with_a_keyframe_spacing_that_is_a_text(tmp_path: Path) -> None:
    write_shards([clip(0)], tmp_path)
    index = read_index(tmp_path / "shard-00000.tar")
    spoilt = replace(index.samples[0], keyframe_spacing=cast(Any, "2.0"))
    write_index(replace(index, samples=(spoilt,)))
    (problem,) = check_shards(tmp_path, CONFIG).problems
    assert problem.kind == "index"
    assert "sample 'clip000' has keyframe_spacing '2.0', which is no number" in problem.detail
