"""Frames as pictures become a video that shows the same pixels at the right times, or are refused for a reason."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from own_data import put_json, put_lines, samples, talk

from timeviper.config import FramesConfig
from timeviper.datamodules.build import load_index
from timeviper.datamodules.checks.shards import check_shards
from timeviper.datamodules.formats.frames import joined, times
from timeviper.datamodules.formats.manifest import ManifestError, read_manifest
from timeviper.datamodules.frames.container import Still
from timeviper.datamodules.frames.video import read_video
from timeviper.datamodules.shards.pool import write_shards
from timeviper.datamodules.shards.tar import ShardError
from timeviper.datamodules.world.render import encode_image


def picture(number: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (*size, 3)).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="image2pipe") as file:
        stream: Any = file.add_stream("png")
        stream.height, stream.width = pixels.shape[:2]
        stream.pix_fmt = "rgb24"
        for frame in (av.VideoFrame.from_ndarray(pixels, format="rgb24"), None):
            file.mux(stream.encode(frame))
    return out.getvalue()


def put_frames(folder: Path, numbers: list[int], ending: str = "jpg") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        pixels = picture(number)
        (folder / f"img_{number:05}.{ending}").write_bytes(encode_image(pixels) if ending == "jpg" else png(pixels))
    return folder


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_the_same_pixels_at_the_right_times(tmp_path: Path, ending: str) -> None:
    """Numbered from 30 in tens; the fourth is missing, so the third is shown for longer."""
    numbers = [30, 40, 50, 70, 80]
    video = joined(put_frames(tmp_path / "f", numbers, ending), (), 2.0)
    raw = video.read()
    assert raw == video.read(), "the same bytes each time"
    found = read_video(io.BytesIO(raw), 32, FramesConfig(fps=2, max_frames=20))
    shown = {0.0: 30, 0.5: 40, 1.0: 50, 2.0: 70, 2.5: 80}
    assert set(found.times) == set(shown)
    assert found.duration == 3.0
    for pixels, at in zip(found.pixels, found.times):
        path = tmp_path / "f" / f"img_{shown[at]:05}.{ending}"
        (still,) = read_video(Still(path), 32, FramesConfig(max_frames=1)).pixels
        assert np.array_equal(pixels, still)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=30, unique=True), st.integers(1, 60))
def test_times_keep_the_order_and_the_gaps(numbers: list[int], step: int) -> None:
    numbers = sorted(numbers)
    found = times([Path(f"f{number * step}.jpg") for number in numbers])
    assert found[0] == 0
    assert found == sorted(set(found))
    gaps = [b - a for a, b in pairwise(numbers)]
    ours = [b - a for a, b in pairwise(found)]
    assert all(a * ours[0] == b * gaps[0] for a, b in zip(gaps, ours))


ENTRY = {"question": "Who?", "answer": "Ann.", "fps": 2}


@pytest.mark.parametrize(
    "entry",
    [
        {**ENTRY, "video": "clips/f"},
        {**ENTRY, "video": [f"clips/f/img_{i:05}.jpg" for i in range(4)]},
        {
            "messages": [
                {"role": "user", "content": [
                    {"type": "video", "video": [f"file://clips/f/img_{i:05}.jpg" for i in range(4)], "sample_fps": 2},
                    {"type": "text", "text": "Who?"},
                ]},
                {"role": "assistant", "content": "Ann."},
            ]
        },
    ],
)  # fmt: skip
def test_entries_that_name_frames(tmp_path: Path, entry: dict[str, Any]) -> None:
    put_frames(tmp_path / "clips" / "f", [0, 1, 2, 3])
    source = put_lines(tmp_path / "x.jsonl", entry)
    manifest = read_manifest(source)
    assert not any("fps" in note for note in manifest.notes), "it is used"
    write_shards(manifest.samples, tmp_path / "out")
    (shard,) = load_index(tmp_path / "out")
    assert (shard.samples[0].media, shard.samples[0].frames, shard.samples[0].duration) == ("video", 4, 2.0)
    assert check_shards(tmp_path / "out").problems == []
    assert write_shards(read_manifest(source).samples, tmp_path / "out").kept == 1
    (found,) = samples(source).values()
    assert talk(found)[0][1][-1] == "Ann."


def test_a_folder_of_folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        put_frames(tmp_path / "in" / name, [0, 1, 2, 3])
    put_json(tmp_path / "in" / "a.json", {"caption": "It runs.", "fps": 4})
    (tmp_path / "in" / "b.txt").write_text("It stops.")
    with pytest.raises(ManifestError, match=r"1 unusable\n  b: .*b has 4 frames, but nothing says .*--frame-rate"):
        read_manifest(tmp_path / "in")
    manifest = read_manifest(tmp_path / "in", frame_rate=1.0)
    assert [s["__key__"] for s in manifest.samples] == ["a", "b"]
    write_shards(manifest.samples, tmp_path / "out")
    assert [s.duration for s in load_index(tmp_path / "out")[0].samples] == [1.0, 4.0]
    put_frames(tmp_path / "in" / "c", [0, 1, 2])
    with pytest.raises(ManifestError, match=r"c: holds 3 pictures without a text each .* give c.txt or c.json beside"):
        read_manifest(tmp_path / "in", frame_rate=1.0)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"video": "f"}, "f has 3 frames, but nothing says at which rate"),
        ({"video": "f", "fps": "fast"}, "fps must be frames a second"),
        ({"video": "f", "fps": 0}, "fps is 0; it must be frames a second"),
        ({"video": "empty", "fps": 1}, "empty is a folder without pictures"),
        ({"video": "mixed", "fps": 1}, "pictures of mjpeg, png; joined are those of all JPEG or all PNG"),
        ({"video": ["f/img_00000.jpg", "f/gone.jpg"], "fps": 1}, "there is no file .*gone.jpg"),
        (
            {"video": "f/img_00000.jpg", "fps": 1},
            'has not the ending of a video; .*as a folder or as a list in "video"',
        ),
        ({"video": "../f", "fps": 1}, "leaves --media-root"),
        ({"video": ["../f/a.jpg", "f/img_00000.jpg"], "fps": 1}, "leaves --media-root"),
    ],
)
def test_frames_that_cannot_be_joined(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    put_frames(tmp_path / "f", [0, 1, 2])
    put_frames(put_frames(tmp_path / "mixed", [0, 1]), [2], "png")
    (tmp_path / "empty").mkdir()
    source = put_lines(tmp_path / "x.jsonl", {**entry, "caption": "x"})
    with pytest.raises(ManifestError, match=f"line 1: .*{message}"):
        read_manifest(source, media_root=tmp_path)


def test_damaged_pictures_leave_out_their_sample_alone(tmp_path: Path) -> None:
    for name in ("good", "size", "cut"):
        put_frames(tmp_path / name, [0, 1, 2])
    (tmp_path / "size" / "img_00001.jpg").write_bytes(encode_image(picture(1, (32, 32))))
    (tmp_path / "cut" / "img_00001.jpg").write_bytes(b"no picture")
    rows = [{"video": name, "caption": "x", "fps": 1} for name in ("good", "size", "cut")]
    found = read_manifest(put_lines(tmp_path / "x.jsonl", *rows)).samples
    with pytest.raises(ShardError, match=r"img_00001.jpg is mjpeg of 32x32, but img_00000.jpg is mjpeg of 64x48"):
        write_shards(found, tmp_path / "out")
    done = write_shards(found, tmp_path / "out", skip=True)
    assert (done.samples, sorted(error.key for error in done.left_out)) == (1, ["cut", "size"])
