"""A sample may be a part of its video, and samples share a video: which frames are read, and what is stored once."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest
from av.audio.stream import AudioStream
from av.video.stream import VideoStream
from own_data import put_lines
from video_helpers import numbers, picture, shown_at, write_clip

from timeviper.config import ChatConfig, FramesConfig
from timeviper.datamodules.build import load_index
from timeviper.datamodules.checks.fix import fix_shards
from timeviper.datamodules.checks.sample import CheckConfig
from timeviper.datamodules.checks.shards import check_shards
from timeviper.datamodules.fetch import fetch, fetch_stream
from timeviper.datamodules.formats.manifest import ManifestError, read_manifest
from timeviper.datamodules.frames.part import Part
from timeviper.datamodules.frames.video import VideoError, read_video
from timeviper.datamodules.mixture import Source
from timeviper.datamodules.plan import CostModel
from timeviper.datamodules.reader import PackFormat, build_pack
from timeviper.datamodules.shards.pool import write_shards
from timeviper.datamodules.shards.schema import SchemaError, parse_record
from timeviper.datamodules.shards.tar import ShardError, scan_tar
from timeviper.tokenizer import Tokenizer

FRAMES = FramesConfig(fps=2, max_frames=6)
COST = CostModel(tokens_per_frame=4, vision_share=1.0, frame_work=1.0, estimate=lambda size, *counts: size + 20)


def clip(path: Path, stamps: int | list[int] = 40) -> list[float]:
    """10 frames a second, each with its number; the times at which a player shows them."""
    write_clip(path, stamps, options={"bf": "3", "g": "12"})
    stamps = list(range(stamps)) if isinstance(stamps, int) else stamps
    return [(stamp - stamps[0]) / 10 for stamp in stamps]


def after_sound(path: Path) -> list[float]:
    """The picture begins 0.8 seconds after the sound, where players show 0:00."""
    with av.open(str(path), "w") as out:
        video = cast(VideoStream, out.add_stream("libx264", rate=10))
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = cast(AudioStream, out.add_stream("mp2", rate=16000, layout="mono"))
        for i in range(48):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.int16), layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = 16000, i * 1600, Fraction(1, 16000)
            out.mux(audio.encode(sound))
            if i >= 8:
                frame = av.VideoFrame.from_ndarray(picture(i - 8, 64, 48), format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, 10)
                out.mux(video.encode(frame))
        out.mux(video.encode(None))
        out.mux(audio.encode(None))
    return [0.8 + n / 10 for n in range(40)]


CLIPS: dict[str, Callable[[Path], list[float]]] = {
    "a.mp4": clip,
    "late.ts": lambda path: clip(path, list(range(50, 90))),
    "varying.mkv": lambda path: clip(path, [0, 1, 2, 10, 11, 30, 31, 32, 33, 60, 61]),
    "sound.mkv": after_sound,
}


def written(folder: Path, *entries: dict[str, Any], name: str = "a.mp4") -> Path:
    """Shards of these entries about one clip."""
    CLIPS[name](folder / name)
    source = put_lines(folder / "x.jsonl", *({"video": name, "id": f"s{i}", **e} for i, e in enumerate(entries)))
    write_shards(read_manifest(source).samples, folder / "out")
    return folder / "out"


@pytest.mark.parametrize("name", [*CLIPS])
@pytest.mark.parametrize("part", [Part(0.0, 1.0), Part(1.3, 2.7), Part(2.5), Part(0.0, 9.0)])
def test_a_part_is_read_as_a_player_shows_it(tmp_path: Path, name: str, part: Part) -> None:
    times = np.array(CLIPS[name](tmp_path / name))
    whole = read_video(tmp_path / name, 64, FRAMES)
    start, end = part.start, times[0] + whole.duration
    if part.end is not None and part.end > end + 0.5:
        with pytest.raises(VideoError, match=r"so it has no part from 0 to 9 s"):
            read_video(tmp_path / name, 64, FRAMES, part=part)
        return
    end = min(part.end or end, end)
    found = read_video(tmp_path / name, 64, FRAMES, part=part)
    assert found.duration == pytest.approx(end - start)
    wanted = start + (np.arange(len(found.times)) + 0.5) * (end - start) / len(found.times)
    shown = np.maximum(shown_at(times, wanted), 0)  # before the first frame there is sound alone
    assert numbers(found) == shown.tolist()
    np.testing.assert_allclose(found.times, np.maximum(times[shown] - start, 0), atol=2e-3)
    late = read_video(tmp_path / name, 64, FRAMES, part=part._replace(offset=3600.5))
    np.testing.assert_array_equal(late.times, found.times + 3600.5)
    np.testing.assert_array_equal(late.pixels, found.pixels)
    assert late.duration == found.duration


@pytest.mark.parametrize("name", [*CLIPS])
def test_a_file_with_an_offset_is_read_whole(tmp_path: Path, name: str) -> None:
    CLIPS[name](tmp_path / name)
    whole, late = (read_video(tmp_path / name, 64, FRAMES, part=part) for part in (None, Part(offset=7200)))
    np.testing.assert_array_equal(late.times, whole.times + 7200)
    np.testing.assert_array_equal(late.pixels, whole.pixels)
    assert (late.duration, late.count) == (whole.duration, whole.count)


def test_times_go_by_the_clock_of_a_recording(tmp_path: Path) -> None:
    """From an entry to the prompt: stamps, features of the time and segments tell the same time."""
    told = {"start": 3601, "end": 3602.5, "text": "a dog"}
    out = written(
        tmp_path,
        {"time_offset": 3600, "question": "When?", "answer": "from 3601.0 to 3602.5 seconds"},
        {"start": 1, "end": 3, "time_offset": 3600.0, "segments": [told]},
    )
    source, form = Source("x", load_index(out)), PackFormat(ChatConfig(time="frames"), 64, 4, 512)
    assert [source[i].record.duration for i in range(2)] == [4.0, 2.0]
    for i, stamps in enumerate(("3600.3s3601.0s3601.6s3602.3s3603.0s3603.6s", "3600.2s3600.7s3601.2s3601.7s")):
        fetched = fetch(source[i], FRAMES, 64, {})
        streamed = fetch_stream(source[i], FRAMES, 64, {})[1][0]
        np.testing.assert_array_equal(fetched.media[0].times, streamed.times)
        pack = build_pack(Tokenizer.load(), form, fetched.conversation["messages"], fetched.media)
        assert 3600 < float(pack.frame_times.min()) < float(pack.frame_times.max()) < 3604
        assert stamps in Tokenizer.load().decode(pack.ids.tolist())
    report = check_shards(out, CheckConfig(FRAMES, 64))
    assert report.problems == []
    told["end"] = 3700
    with pytest.raises(ManifestError, match=r"ends at 3700 s, but the media at 3602.0 s"):
        written(tmp_path, {"end": 2, "time_offset": 3600, "segments": [told]})
    told |= {"start": 1, "end": 3601}
    with pytest.raises(ManifestError, match=r"begins at 1 s, but the media at their time_offset, 3600.0 s"):
        written(tmp_path, {"end": 2, "time_offset": 3600, "segments": [told]})


def test_what_is_planned_of_a_part_is_what_is_read(tmp_path: Path) -> None:
    ends = (0.05, 0.3, 1.0, 1.7, 4.0)
    out = written(tmp_path, *({"start": 0, "end": end, "question": "?", "answer": "!"} for end in ends))
    source = Source("x", load_index(out))
    form = PackFormat(ChatConfig(), 64, 4, 512)
    for i, end in enumerate(ends):
        planned = COST.item(source[i], FRAMES)
        assert planned.unit.record.duration == pytest.approx(end)
        fetched = fetch(source[i], FRAMES, 64, {})
        streamed = fetch_stream(source[i], FRAMES, 64, {})[1][0]
        assert planned.num_frames == len(fetched.media[0].times) == len(streamed.times)
        np.testing.assert_array_equal(fetched.media[0].times, streamed.times)
        pack = build_pack(Tokenizer.load(), form, fetched.conversation["messages"], fetched.media)
        assert float(pack.frame_times.max()) < end


def test_parts_of_a_file_share_its_bytes_and_pass_the_check(tmp_path: Path) -> None:
    entries = [
        {"caption": "All of it."},
        {"start": 0.5, "end": 2.0, "caption": "The start."},
        {"start": 2.0, "caption": "The rest."},
        {"question": "Who?", "answer": "A dog."},
    ]
    out = written(tmp_path, *entries)
    (shard,) = load_index(out)
    assert [round(s.duration, 6) for s in shard.samples] == [4.0, 1.5, 2.0, 4.0]
    assert [s.frames for s in shard.samples] == [40, 15, 20, 40]
    assert len({s.members["mp4"] for s in shard.samples}) == 1
    size = (tmp_path / "a.mp4").stat().st_size
    assert shard.bytes < 2 * size + 20 * 512
    report = check_shards(out, CheckConfig(FRAMES, 64))
    assert report.problems == []
    assert [note.kind for note in report.notes if note.kind == "stored-again"] == []
    with tarfile.open(shard.path) as tar:  # for any reader of tars each sample is whole
        files = [tar.extractfile(m) for m in tar if m.name.endswith("mp4")]
        assert len({file.read() for file in files if file}) == 1
    fix_shards(out, tmp_path / "fixed", report, CheckConfig(FRAMES, 64))
    (mended,) = load_index(tmp_path / "fixed")
    assert [round(s.duration, 6) for s in mended.samples] == [4.0, 1.5, 2.0, 4.0]
    assert check_shards(tmp_path / "fixed", CheckConfig(FRAMES, 64)).problems == []


def test_a_file_is_a_duplicate_where_the_same_is_said_of_it(tmp_path: Path) -> None:
    ask = {"question": "Who?", "answer": "A dog."}
    part = {"start": 0, "end": 2}
    out = written(tmp_path, ask, {**ask, **part}, {**ask, "answer": "A cat."}, ask, {**ask, **part})
    found = [(problem.kind, problem.key) for problem in check_shards(out).problems]
    assert found == [("duplicate", "s3"), ("duplicate", "s4")]
    moved = tmp_path / "all" / "val"
    moved.mkdir(parents=True)
    rows = [{"video": "a.mp4", "start": 1, "end": 3, "caption": "x"}]
    write_shards(read_manifest(put_lines(tmp_path / "y.jsonl", *rows)).samples, moved)
    rows = [{"video": "a.mp4", "start": a, "end": a + 1, "caption": f"{a}"} for a in (0, 2, 3)]
    write_shards(read_manifest(put_lines(tmp_path / "z.jsonl", *rows)).samples, tmp_path / "all" / "train")
    leaks = check_shards(tmp_path / "all").problems
    assert [(leak.kind, "held-out" in leak.detail) for leak in leaks] == [("duplicate", True)], "one overlaps"


def test_the_same_file_in_two_shards_is_no_problem_but_told(tmp_path: Path) -> None:
    CLIPS["a.mp4"](tmp_path / "a.mp4")
    rows = [{"video": "a.mp4", "question": f"{i}?", "answer": "!"} for i in range(4)]
    write_shards(read_manifest(put_lines(tmp_path / "x.jsonl", *rows)).samples, tmp_path / "out", 2)
    report = check_shards(tmp_path / "out")
    assert report.problems == []
    assert [(n.kind, n.key) for n in report.notes if n.kind == "stored-again"] == [("stored-again", "a-3")]


def test_a_part_that_the_video_has_not_is_named_when_it_is_written(tmp_path: Path) -> None:
    for part in ({"start": 3, "end": 7}, {"start": 5}):
        with pytest.raises(ShardError, match=r"lasts 4.00 s, so it has no part from"):
            written(tmp_path, {**part, "caption": "x"})


@pytest.mark.parametrize(
    ("medium", "message"),
    [
        ({"start": 2, "end": 1}, "runs from 2 to 1 s"),
        ({"start": -1}, "start is -1; it must be seconds"),
        ({"end": "3"}, "end is '3'"),
        ({"time_offset": "1:00"}, "time_offset is '1:00'; it must be seconds from 0 on"),
        ({"start": 1, "type": "image", "member": "jpg"}, "is an image, which has no times"),
        ({"time_offset": 0, "type": "image", "member": "jpg"}, "is an image, which has no times"),
    ],
)
def test_parts_that_cannot_be(medium: dict[str, Any], message: str) -> None:
    found = {"type": "video", "member": "mp4", **medium}
    record = {"media": [found], "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}
    with pytest.raises(SchemaError, match=message):
        parse_record(json.dumps(record).encode(), [found["member"]])


def test_times_in_texts_count_from_the_start_of_the_part() -> None:
    media = [{"type": "video", "member": "mp4", "start": 10, "end": 14}]
    segments = [{"start": 1, "end": 3, "text": "x"}]
    record = {"media": media, "segments": segments, "messages": []}
    record["messages"] = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    assert parse_record(json.dumps(record).encode(), ["mp4"])["segments"] == segments
    segments[0]["end"] = 11
    with pytest.raises(SchemaError, match=r"ends at 11 s, but the media at 4"):
        parse_record(json.dumps(record).encode(), ["mp4"])


@pytest.mark.parametrize("target", ["b.mp4", "../a.mp4", "/etc/passwd", "z.mp4"])
def test_a_link_leads_to_a_file_that_is_before_it_in_the_archive(tmp_path: Path, target: str) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, kind in (("a.mp4", tarfile.REGTYPE), ("b.mp4", tarfile.LNKTYPE), ("z.mp4", tarfile.REGTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target if kind == tarfile.LNKTYPE else ""
            tar.addfile(info, io.BytesIO(b""))
    with pytest.raises(ShardError, match=r"'b.mp4' is no plain file: a link, but to none before it"):
        scan_tar(tmp_path / "x.tar")
