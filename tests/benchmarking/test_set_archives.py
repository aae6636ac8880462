"""Videos are read where they lie: files, zips, tars, tars in parts, tar.gz, and folders of frames in any of these."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest
from set_makers import as_json, load, video, video_of_two, videomme

from timeviper.benchmarking.archives import ArchiveError, members_of, open_member, parts_of
from timeviper.benchmarking.check import check_set
from timeviper.benchmarking.media import open_video, read_subtitles
from timeviper.config import FramesConfig
from timeviper.datamodules.frames.video import read_video

NAMES = ("kite_Video1.mp4", "-boat_Vid02.mp4")


def packed(kind: str, folder: Path, to: Path) -> Path:
    """Both videos of a folder in an archive of a kind, some bytes apart; the first file of it."""
    path = to / f"videos_chunked_01.{kind}"
    if kind.startswith("zip"):
        path = to / "videos_chunked_01.zip"
        how = zipfile.ZIP_STORED if kind == "zip" else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(path, "w", how) as archive:
            for name in NAMES:
                archive.write(folder / name, f"data/{name}")
        return path
    with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as archive:
        for name in NAMES:
            archive.add(folder / name, f"./data/{name}")
    return path


def in_parts(path: Path, count: int = 3) -> list[Path]:
    """A tar cut into files `.part.aa` ..., as `split` makes them."""
    raw = path.read_bytes()
    path.unlink()
    size = -(-len(raw) // count)
    found = []
    for number in range(count):
        found.append(path.with_name(f"{path.name}.part.a{'abcdefg'[number]}"))
        found[-1].write_bytes(raw[number * size : (number + 1) * size])
    return found


@pytest.mark.parametrize("kind", ["zip", "zip deflated", "tar", "tar.gz", "parts"])
def test_archives_are_read_in_place(kind: str, tmp_path: Path) -> None:
    videomme(tmp_path)
    video_of_two(tmp_path)
    data = tmp_path / "data"
    path = packed("tar" if kind == "parts" else kind, data, tmp_path)
    wanted = {name: (data / name).read_bytes() for name in NAMES}
    shutil.rmtree(data)
    if kind == "parts":
        path, *_ = in_parts(path)
    loaded = load("videomme", tmp_path, videos=True)
    assert not loaded.missing
    ref = loaded.items[0].video
    assert (Path(ref.path), ref.member) == (path, "data/kite_Video1.mp4")
    for item in (loaded.items[3], loaded.items[0]):  # backwards, too
        source = open_video(item.video)
        assert not isinstance(source, str)
        with source:
            source.seek(0)
            assert source.read() == wanted[f"{item.video.name}.mp4"]
            assert len(read_video(source, 32, FramesConfig(max_frames=4, min_frames=4)).times) == 4
    checked = check_set(loaded, part=True)
    assert checked.problems == []
    assert any("compressed" in note for note in checked.notes) == (kind == "tar.gz")


def test_half_an_archive_is_named_and_its_videos_count_as_missing(tmp_path: Path) -> None:
    videomme(tmp_path)
    video_of_two(tmp_path)
    zipped = packed("zip", tmp_path / "data", tmp_path)
    shutil.rmtree(tmp_path / "data")
    zipped.write_bytes(zipped.read_bytes()[: zipped.stat().st_size // 2])
    loaded = load("videomme", tmp_path, videos=True)
    told = check_set(loaded, part=True).problems
    assert "is no whole zip" in told[0]
    assert "download it again" in told[0]
    assert told[1].startswith("2 of 2 videos are missing")
    assert "their 6 of 6 items stay" in told[1]


def test_cut_tars_and_parts_that_are_missing(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in NAMES:
        video(data / name)
    for kind in ("tar", "tar.gz"):
        path = packed(kind, data, tmp_path)
        cut = tmp_path / f"cut.{kind}"
        cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ArchiveError, match=r"is cut off|is no whole tar"):
            members_of(cut)
    first, second, _ = in_parts(packed("tar", data, tmp_path))
    second.unlink()
    with pytest.raises(ArchiveError, match=r"the part between .*aa and .*ac is missing"):
        parts_of(first)
    pointer = tmp_path / "lfs.zip"
    pointer.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ArchiveError, match="git lfs pull"):
        members_of(pointer)
    (tmp_path / "split.z01").write_bytes(b"x")
    (tmp_path / "split.zip").write_bytes(b"x")
    with pytest.raises(ArchiveError, match="zip -s 0"):
        members_of(tmp_path / "split.zip")
    with pytest.raises(ArchiveError, match="has no nothing"):
        open_member(packed("zip", data, tmp_path), "nothing")


def frames(folder: Path, count: int) -> None:
    """JPEGs from 00001.jpg on, brighter from one to the next."""
    folder.mkdir(parents=True)
    for number in range(1, count + 1):
        with av.open(str(folder / f"{number:05d}.jpg"), "w", format="image2", options={"update": "1"}) as out:
            stream = out.add_stream("mjpeg", rate=1)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuvj420p"
            picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 10 * number, np.uint8), format="rgb24")
            out.mux([*stream.encode(picture), *stream.encode(None)])


@pytest.mark.parametrize("in_zip", [False, True])
def test_a_folder_of_frames_is_a_video(in_zip: bool, tmp_path: Path) -> None:
    base = {"question": "What?", "candidates": ["x", "y"], "answer": "x"}
    row = {"video": "house_clip_01", "start": 1.0, "end": 3.0, "fps": 3, **base}
    as_json(tmp_path / "json" / "episodic_reasoning.json", [row])
    folder = tmp_path / "tvqa" / "frames_fps3_hq" / "house_clip_01"
    frames(folder, 12)
    if in_zip:
        with zipfile.ZipFile(tmp_path / "tvqa.zip", "w") as archive:
            for path in sorted(folder.iterdir()):
                archive.write(path, path.relative_to(tmp_path))
        shutil.rmtree(tmp_path / "tvqa")
    loaded = load("mvbench", tmp_path, videos=True)
    assert not loaded.missing
    ref = loaded.items[0].video
    source = open_video(ref)
    assert not isinstance(source, str)
    shown = read_video(source, 32, FramesConfig(fps=3.0, max_frames=99), part=ref.part)
    assert len(shown.times) == 6
    assert np.allclose(np.diff(shown.times), 1 / 3, atol=1e-3)
    assert abs(float(shown.pixels[0].mean()) - 40) < 6  # the fourth picture: second 1
    assert check_set(loaded, part=True).problems == []


def test_subtitles_come_out_of_archives(tmp_path: Path) -> None:
    videomme(tmp_path)
    with zipfile.ZipFile(tmp_path / "subtitle.zip", "w") as archive:
        archive.writestr("subtitle/kite_Video1.srt", "1\n")
    ref = load("videomme", tmp_path, videos=True).items[0].subtitles
    assert ref
    assert read_subtitles(ref) == b"1\n"
