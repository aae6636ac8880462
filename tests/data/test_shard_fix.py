"""Mended shards: what can be repaired is, what cannot is left out by name, and every frame keeps its time."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from shard_helpers import QUESTION, clip, cut_inside_member, flip_bit, picture, spoil_header
from video_helpers import numbers, write_clip

from timeviper.cli.check_shards import check
from timeviper.config import FramesConfig
from timeviper.datamodules.build import load_index
from timeviper.datamodules.checks.fix import fix_shards
from timeviper.datamodules.checks.reencode import reencode
from timeviper.datamodules.checks.shards import CheckConfig, check_shards
from timeviper.datamodules.frames.video import probe_video, read_video
from timeviper.datamodules.shards.pool import write_shards
from timeviper.datamodules.shards.tar import read_member

ALL = FramesConfig(fps=1000, max_frames=1000)
SPARSE = FramesConfig(fps=1)
SMALL = CheckConfig(SPARSE, image_size=32)

CLIPS: dict[str, dict[str, Any]] = {
    "b-frames.mp4": {"options": {"bf": "3", "g": "100"}},
    "start-offset.ts": {"options": {"bf": "3", "g": "12"}},
    "no-stamps.h264": {"options": {"bf": "2", "g": "12"}, "fps": 25},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "100"}},
    "reordered.avi": {"options": {"bf": "3", "g": "12"}},
    "23.976.mp4": {"fps": Fraction(24000, 1001), "options": {"bf": "2", "g": "100"}},
    "odd-size.mp4": {"size": (65, 47)},
    "one.mp4": {"stamps": 1},
    "variable.mp4": {"stamps": [0, 1, 2, 10, 11, 30, 31, 32, 33, 60, 61], "options": {"bf": "2", "g": "4"}},
    "variable.mkv": {"stamps": [5, 6, 7, 10, 11, 30, 31, 32, 33, 60, 61], "options": {"bf": "2", "g": "4"}},
}


def keyframe_times(path: Path) -> set[float]:
    with av.open(str(path)) as file:
        keys = [p for p in file.demux(video=0) if p.is_keyframe]
        return {round(float(p.pts * p.time_base), 3) for p in keys if p.pts is not None}


@pytest.mark.parametrize("name", CLIPS)
def test_every_frame_keeps_its_time_and_sampled_ones_are_keyframes(tmp_path: Path, name: str) -> None:
    source, target = write_clip(tmp_path / name, **CLIPS[name]), tmp_path / "new.mp4"
    with source.open("rb") as file:
        assert reencode(file, target, SPARSE) == 0
    before, after = read_video(source, 64, ALL), read_video(target, 64, ALL)
    assert numbers(after) == numbers(before)
    np.testing.assert_allclose(after.times, before.times, atol=0.0011)  # a tick of mkv
    assert probe_video(target).duration == pytest.approx(probe_video(source).duration, abs=0.002)
    sampled = read_video(target, 64, SPARSE).times
    np.testing.assert_allclose(sampled, read_video(source, 64, SPARSE).times, atol=0.0011)
    keys = keyframe_times(target)
    assert {round(t, 3) for t in sampled.tolist()} <= keys
    stamps = after.times.tolist()
    for time in stamps:  # the frame of each moment needs at most 2 s of others
        assert time - max(key for key in keys if key <= time + 0.001) <= 2.001
    with av.open(str(target)) as file:
        context = file.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, context.width % 2, context.height % 2) == ("h264", "yuv420p", 0, 0)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_turned_video_is_stored_upright(tmp_path: Path, degrees: int) -> None:
    source, target = write_clip(tmp_path / "a.mp4", 4, turned=degrees), tmp_path / "new.mp4"
    with source.open("rb") as file:
        reencode(file, target, SPARSE)
    before, after = read_video(source, 64, ALL).pixels, read_video(target, 64, ALL).pixels
    assert np.abs(before.astype(int) - after).mean() < 8
    with av.open(str(target)) as file:
        frame = next(file.decode(video=0))
        assert (frame.rotation, (frame.width, frame.height)) == (0, (64, 48) if degrees == 180 else (48, 64))


@pytest.mark.parametrize("colours", [{"pix_fmt": "yuvj420p"}, {"pix_fmt": "yuv420p", "colorspace": 1}])
def test_colours_stay(tmp_path: Path, colours: dict[str, Any]) -> None:
    """Full range, and the matrix of HD: read wrongly, either shifts colours by 10 levels and more."""
    source, target = tmp_path / "a.mp4", tmp_path / "new.mp4"
    flat = np.full((48, 64, 3), (200, 60, 30), np.uint8)
    with av.open(str(source), "w") as out:
        stream: Any = out.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, colours["pix_fmt"]
        if "colorspace" in colours:
            stream.codec_context.colorspace = colours["colorspace"]
        for _ in range(5):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(flat, format="rgb24")))
        out.mux(stream.encode(None))
    with source.open("rb") as file:
        reencode(file, target, SPARSE)
    before, after = read_video(source, 16, ALL).pixels, read_video(target, 16, ALL).pixels
    assert np.abs(before.astype(int) - after).max() <= 3


def test_sound_that_begins_first_leaves_the_times_where_they_were(tmp_path: Path) -> None:
    source, target = tmp_path / "a.mkv", tmp_path / "new.mp4"
    with av.open(str(source), "w") as out:
        video: Any = out.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound: Any = out.add_stream("pcm_s16le", rate=8000, layout="mono")
        for i in range(30):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
            samples.sample_rate, samples.pts, samples.time_base = 8000, i * 800, Fraction(1, 8000)
            out.mux(sound.encode(samples))
            if i >= 10:  # the picture comes a second later
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 8 * i, np.uint8), format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, 10)
                out.mux(video.encode(frame))
        out.mux(video.encode(None))
    with source.open("rb") as file:
        assert reencode(file, target, SPARSE) == 0
    before = read_video(source, 16, ALL)
    assert before.times[0] == pytest.approx(1.0, abs=0.01)
    with av.open(str(target)) as file:
        assert [stream.type for stream in file.streams] == ["video"]
        times = [frame.time for frame in file.decode(video=0)]
    np.testing.assert_allclose(times, [0.0, *before.times], atol=0.002)


def corpus(tmp_path: Path) -> list[dict[str, Any]]:
    """Samples to keep, to repair and to leave out, in this order."""
    wrong, late = clip(1), clip(2)
    wrong["json"]["media"][0] |= {"duration": 3.0, "frames": 12}
    late["json"] |= {"segments": [{"start": 1, "end": 9, "text": "after the end"}]}
    del late["json"]["media"]
    short = clip(3)
    short["mp4"] = short["mp4"][:-400]
    rare = write_clip(tmp_path / "rare.webm", 100, codec="libvpx-vp9", options={"g": "1000"})
    media = [{"type": "video", "member": "0.mp4"}, {"type": "image", "member": "1.png"}]
    several = {"messages": QUESTION, "media": media}
    return [
        clip(0),
        picture(0),
        wrong,
        {"__key__": "rare", "webm": rare, "json": {"messages": QUESTION, "source": "web"}},
        {"__key__": "several", "0.mp4": clip(5)["mp4"], "1.png": picture(5)["png"], "json": several},
        late,
        short,
        clip(0) | {"__key__": "twin"},
    ]


def test_mended_shards_are_clean_and_what_is_left_out_is_listed(tmp_path: Path) -> None:
    write_shards(corpus(tmp_path), tmp_path / "in" / "part", samples_per_shard=3)
    originals = {p: p.read_bytes() for p in (tmp_path / "in").rglob("*") if p.is_file()}
    before = check_shards(tmp_path / "in", SMALL)
    assert [(p.key, p.kind) for p in before.problems] == [
        ("clip001", "duration"),
        ("clip002", "segments"),
        ("clip003", "media"),
        ("twin", "duplicate"),
    ]
    dropped = fix_shards(tmp_path / "in", tmp_path / "out", before, SMALL)
    assert [(p.key, p.kind) for p in dropped] == [("clip002", "segments"), ("clip003", "media"), ("twin", "duplicate")]
    lines = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert [(line["shard"], line["key"]) for line in lines] == [(p.shard, p.key) for p in dropped]
    after = check_shards(tmp_path / "out", SMALL)
    assert (after.problems, after.samples) == ([], 5)
    assert {p: p.read_bytes() for p in (tmp_path / "in").rglob("*") if p.is_file()} == originals
    assert not [p for p in (tmp_path / "out").rglob("*") if p.name.endswith("tmp") or p.name.startswith(".")]
    records = {s.key: (shard.path, s) for shard in load_index(tmp_path / "out" / "part") for s in shard.samples}
    assert (records["clip001"][1].duration, records["clip001"][1].frames) == (2.0, 8)
    path, rare = records["rare"]
    assert set(rare.members) == {"json", "mp4"}
    assert json.loads(read_member(path, *rare.members["json"]))["source"] == "web"
    assert rare.keyframe_spacing == pytest.approx(1.0)

    # Done again, nothing is left to do: the videos are copied as they are.
    fix_shards(tmp_path / "out", tmp_path / "again", after, SMALL)
    for tar in (tmp_path / "out").rglob("*.tar"):
        assert (tmp_path / "again" / tar.relative_to(tmp_path / "out")).read_bytes() == tar.read_bytes()


@pytest.mark.parametrize(
    ("damage", "field", "kept", "lost"),
    [
        (cut_inside_member, "mp4", ["clip000", "clip002", "clip003"], {"clip001": "json"}),
        (spoil_header, "mp4", ["clip000", "clip001", "clip002", "clip003"], {}),
        (flip_bit, "json", ["clip000", "clip002", "clip003"], {"clip001": "checksum"}),
    ],
)
def test_what_is_whole_in_a_damaged_shard_is_saved(
    tmp_path: Path, damage: Any, field: str, kept: list[str], lost: dict[str, str]
) -> None:
    write_shards([clip(i) for i in range(4)], tmp_path / "in", samples_per_shard=2)
    shard = load_index(tmp_path / "in")[0]
    damage(shard.path, *shard.samples[1].members[field][:2])
    dropped = fix_shards(tmp_path / "in", tmp_path / "out", check_shards(tmp_path / "in", SMALL), SMALL)
    assert {p.key: p.kind for p in dropped} == lost
    assert check_shards(tmp_path / "out", SMALL).problems == []
    assert [s.key for shard in load_index(tmp_path / "out") for s in shard.samples] == kept


def test_where_mended_shards_may_not_go(tmp_path: Path) -> None:
    write_shards([picture(0)], tmp_path / "in")
    report = check_shards(tmp_path / "in", SMALL)
    with pytest.raises(ValueError, match="lies in"):
        fix_shards(tmp_path / "in", tmp_path / "in" / "out", report, SMALL)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match="is not empty"):
        fix_shards(tmp_path / "in", tmp_path / "full", report, SMALL)


def test_the_forecast_is_printed_before_and_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(corpus(tmp_path), tmp_path / "in")
    assert check(tmp_path / "in", SMALL, 0, fix=tmp_path / "out")
    said = capsys.readouterr().out
    assert "3 samples left out, with reasons" in said
    assert said.count("\nbefore: decoding 1 frames/s") == said.count("\nafter:  decoding 1 frames/s") == 1
    (tmp_path / "bad").mkdir()
    write_shards([corpus(tmp_path)[5]], tmp_path / "bad")
    with pytest.raises(ValueError, match=r"no sample of .* can be mended"):
        check(tmp_path / "bad", SMALL, 0, fix=tmp_path / "nothing")
