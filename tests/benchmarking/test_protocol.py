"""Which frames, and which subtitles: rules of others against worked values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from video_helpers import numbers, write_clip

from timeviper.benchmarking.item import SubtitleRef
from timeviper.benchmarking.protocol import protocol_of
from timeviper.benchmarking.subtitles import Cue, chosen, cues_of
from timeviper.config import FramesConfig
from timeviper.datamodules.frames.rule import FrameRule, frame_indices
from timeviper.datamodules.frames.stream import FrameStream
from timeviper.datamodules.frames.video import read_video


@pytest.mark.parametrize(
    ("rule", "indices"),
    [
        ("linspace", [0, 33, 66, 99]),
        ("vlmeval", [20, 40, 60, 80]),
        ("longvideobench", [0, 25, 50, 75]),
        ("mvbench", [12, 37, 62, 86]),
    ],
)
def test_indices_of_four_frames_among_a_hundred(rule: str, indices: list[int], tmp_path: Path) -> None:
    assert frame_indices(rule, 100, 4).tolist() == indices
    video = write_clip(tmp_path / "v.mp4", 100)  # each frame carries its number
    frames = protocol_of(f"{rule}:4", FramesConfig()).frames
    read = read_video(video, 64, frames)
    assert numbers(read) == indices
    assert read.times == pytest.approx(np.array(indices) / 10)
    stream = FrameStream(video, 64, frames)
    assert np.concatenate([*stream.pieces(3)]).shape[0] == 4
    assert stream.times == pytest.approx(read.times)


def test_the_first_frames_are_not_those_of_the_whole(tmp_path: Path) -> None:
    video = write_clip(tmp_path / "v.mp4", 100)  # 10 s
    first = read_video(video, 64, protocol_of("first:1:4", FramesConfig()).frames)
    assert first.times == pytest.approx([0.5, 1.5, 2.5, 3.5])
    spread = read_video(video, 64, protocol_of("fps:1:4", FramesConfig()).frames)
    assert spread.times == pytest.approx([1.2, 3.7, 6.2, 8.7], abs=0.06)
    assert len(read_video(video, 64, protocol_of("first:1:256", FramesConfig()).frames).times) == 10
    assert len(read_video(video, 64, protocol_of("uniform:7", FramesConfig()).frames).times) == 7


def test_a_protocol_names_every_number() -> None:
    assert protocol_of("run", FramesConfig(2.0, 1, 64)).name == "fps:2:64"
    made = protocol_of("first:0.5:256", FramesConfig())
    assert made.as_dict() == {
        "protocol": "first:0.5:256",
        "rule": "first",
        "fps": 0.5,
        "min_frames": 1,
        "max_frames": 256,
    }
    assert (made.expected(100.0), protocol_of("linspace:8", FramesConfig()).expected(3.0)) == (50, 8)
    with pytest.raises(ValueError, match="frame rule 'odd'"):
        frame_indices("odd", 10, 2)
    assert FrameRule(1.0, 1, 4).rule == "first"


SRT = """1
00:00:01,000 --> 00:00:02,500
<font color="white" size=".72c">Hello there</font>

2
00:00:02,500 --> 00:00:02,700
General
"""


def test_subtitles_by_rule(tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_text(SRT)
    cues = cues_of(SubtitleRef(str(tmp_path / "a.srt")))
    assert cues == [Cue(1.0, 2.5, "Hello there"), Cue(2.5, 2.7, "General")]
    assert chosen(cues, "none", [1.5]) == []
    assert chosen(cues, "all", []) == ["Hello there", "General"]
    assert chosen(cues, "shown", [1.2, 1.7]) == ["Hello there"]
    assert chosen(cues, "shown", [3.0]) == ["General"]  # widened to a second
    assert chosen(cues, "vlmeval", [1.2, 1.7, 2.5, 2.6]) == ["Hello there", "Hello there", "General"]


def test_subtitles_of_other_forms(tmp_path: Path) -> None:
    words = [("so", 1.0, 1.2), ("then", 1.3, 1.5), ("stop", 3.0, 3.2)]
    lines = [f'{{"text": "{t}", "start_time": {a}, "end_time": {b}}}' for t, a, b in words]
    (tmp_path / "w.jsonl").write_text("\n".join(lines))
    assert cues_of(SubtitleRef(str(tmp_path / "w.jsonl"))) == [Cue(1.0, 1.5, "so then"), Cue(3.0, 3.2, "stop")]
    (tmp_path / "l.json").write_text(
        '[{"timestamp": [12.0, 13.0], "text": "a"}, {"start": "00:00:14.5", "end": "00:00:15", "line": "b"}]'
    )
    ref = SubtitleRef(str(tmp_path / "l.json"), offset=10.0)
    assert cues_of(ref) == [Cue(2.0, 3.0, "a"), Cue(4.5, 5.0, "b")]
    (tmp_path / "bad.json").write_text('[{"text": 1}]')
    with pytest.raises(ValueError, match="holds no subtitles"):
        cues_of(SubtitleRef(str(tmp_path / "bad.json")))
