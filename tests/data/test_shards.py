"""Shards: written whole or not at all, indexed strictly, and no damage that goes unnoticed."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from shard_helpers import QUESTION, clip, picture, raw_tar

from timeviper.datamodules.build import load_index
from timeviper.datamodules.checks.shards import check_shards
from timeviper.datamodules.shards.index import index_path, index_shards
from timeviper.datamodules.shards.pool import write_shards
from timeviper.datamodules.shards.tar import ShardError, SliceFile, read_member
from timeviper.datamodules.shards.writer import write_shard


def kinds(folder: Path) -> list[str]:
    return [problem.kind for problem in check_shards(folder).problems]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_round_trip(tmp_path: Path) -> None:
    samples = [clip(i) for i in range(5)]
    write_shards(samples, tmp_path, samples_per_shard=2)
    shards = load_index(tmp_path)
    assert [shard.name for shard in shards] == ["shard-00000.tar", "shard-00001.tar", "shard-00002.tar"]
    records = [(shard, record) for shard in shards for record in shard.samples]
    for sample, (shard, record) in zip(samples, records, strict=True):
        assert record.key == sample["__key__"]
        assert (record.media, record.duration, record.fps, record.frames) == ("video", 2.0, 4.0, 8)
        assert (set(record.members), record.conversations[0].type) == ({"json", "mp4"}, "shape")
        assert (record.conversations[0].text_bytes, record.conversations[0].answer_bytes) == (17, 6)
        assert read_member(shard.path, *record.members["mp4"]) == sample["mp4"]
        assert json.loads(read_member(shard.path, *record.members["json"])) == sample["json"]
        offset, size, _ = record.members["mp4"]
        with SliceFile(shard.path, offset, size) as file, av.open(file, "r") as container:
            assert sum(1 for _ in container.decode(video=0)) == 8


def test_index_of_foreign_tars_equals_that_of_the_writer(tmp_path: Path) -> None:
    write_shards([clip(i) for i in range(3)], tmp_path)
    index = index_path(tmp_path / "shard-00000.tar")
    before = index.read_bytes()
    index.unlink()
    assert index_shards(tmp_path) == [index, tmp_path / "index.safetensors"]
    assert index.read_bytes() == before
    assert index_shards(tmp_path) == []


def test_index_measures_what_the_json_leaves_out(tmp_path: Path) -> None:
    sample = clip(0) | {"json": {"messages": QUESTION}}
    write_shards([sample, picture(1)], tmp_path)
    video, image = load_index(tmp_path)[0].samples
    assert (video.media, video.duration, video.frames, video.fps) == ("video", 2.0, 8, 4.0)
    assert (image.media, image.duration, image.frames) == ("image", 0.0, 1)


def test_slice_file_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(range(100)))
    with SliceFile(path, 10, 20) as file:
        assert file.read() == bytes(range(10, 30))
        assert file.seek(-5, os.SEEK_END) == 15
        assert file.read(100) == bytes(range(25, 30))
        assert (file.seek(50), file.read(1)) == (50, b"")
        with pytest.raises(OSError, match="before the start"):
            file.seek(-1)
    with pytest.raises(OSError, match="ends 10 bytes before"):
        read_member(path, 90, 20)
    with pytest.raises(ValueError, match="wrong checksum"):
        read_member(path, 10, 20, 1)


def test_same_samples_make_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_shards([clip(i) for i in range(3)], tmp_path / name, samples_per_shard=2)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_a_stopped_writer_leaves_whole_shards_and_continues(tmp_path: Path) -> None:
    samples = [picture(i) for i in range(7)]
    write_shards(samples, tmp_path / "whole", samples_per_shard=2)

    def stopped() -> Iterator[dict[str, Any]]:
        yield from samples[:5]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(stopped(), tmp_path / "part", samples_per_shard=2)
    part = tmp_path / "part"
    assert sorted(p.name for p in part.glob("*.tar*")) == ["shard-00000.tar", "shard-00001.tar"]
    index_path(part / "shard-00001.tar").unlink()  # stopped between a tar and its index
    (part / "shard-00002.tar.tmp").write_bytes(b"half")
    first = (part / "shard-00000.tar").stat().st_mtime_ns
    write_shards(samples, part, samples_per_shard=2)
    assert content(part) == content(tmp_path / "whole")
    assert (part / "shard-00000.tar").stat().st_mtime_ns == first
    with pytest.raises(ValueError, match="already there with other samples"):
        write_shards(samples[1:], part, samples_per_shard=2)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    missing = picture(0) | {"png": tmp_path / "nowhere.png"}
    with pytest.raises(OSError, match=r"cannot write shard .*nothing of it was kept"):
        write_shards([missing], tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(ValueError, match="no samples"):
        write_shards([], tmp_path / "out")
    for key in ("a.b", "", "/a", "x/../../y"):
        with pytest.raises(ShardError, match="a key must not"):
            write_shards([picture(0) | {"__key__": key}], tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_errors_of_load_index(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        load_index(tmp_path / "none")
    with pytest.raises(ValueError, match=r"has no \.tar shards"):
        load_index(tmp_path)
    write_shards([picture(0)], tmp_path)
    tar, index = tmp_path / "shard-00000.tar", tmp_path / "shard-00000.idx.json"
    assert len(load_index(f"{tmp_path}/shard-*.tar")) == len(load_index(tar)) == 1
    whole = index.read_text()
    index.write_text(whole.replace('"version":3', '"version":9'))
    with pytest.raises(ValueError, match="has version 9"):
        load_index(tmp_path)
    index.write_text(whole[:50])
    with pytest.raises(ValueError, match="cannot be read"):
        load_index(tmp_path)
    index.write_text(whole)
    with tar.open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(ValueError, match=r"is of a shard of \d+ bytes, but shard-00000.tar has"):
        load_index(tmp_path)
    index.unlink()
    with pytest.raises(ValueError, match=f"has no index; run `timeviper shards index {tmp_path}`"):
        load_index(tmp_path)
    index.write_text(whole)
    tar.unlink()
    with pytest.raises(ValueError, match=r"shard .*shard-00000.tar is missing"):
        load_index(tmp_path)


def test_samples_of_two_shards_are_never_merged(tmp_path: Path) -> None:
    """The json of one shard must not meet the video of the next that has the same key."""
    data, text = clip(0)["mp4"], json.dumps(clip(0)["json"]).encode()
    raw_tar(tmp_path / "a.tar", [("one.json", text), ("one.mp4", data), ("same.json", text)])
    raw_tar(tmp_path / "b.tar", [("same.mp4", clip(1)["mp4"]), ("two.json", text), ("two.mp4", clip(2)["mp4"])])
    with pytest.raises(ShardError, match=r"a\.tar, sample 'same': media\[0\]\.member is 'mp4'"):
        index_shards(tmp_path)
    problems = [(p.shard, p.key, p.kind) for p in check_shards(tmp_path).problems if p.kind != "index"]
    assert problems == [("a.tar", "same", "json"), ("b.tar", "same", "incomplete")]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.json", "b.json", "a.mp4", "b.mp4"], "'a': its files do not follow each other"),
        (["a.mp4", "a.json", "b.mp4", "b.json", "a.json"], r"do not follow each other, or the key is used twice"),
        (["a.json", "a.json", "a.mp4"], "a file is there twice"),
        (["a.mp4"], "'a': has mp4 but no json"),
        (["readme"], r"is not named <key>\.<field>"),
        (["../a.json"], "points out of the archive"),
        (["/a.json"], "points out of the archive"),
        ([], "has no samples"),
    ],
)
def test_index_refuses(tmp_path: Path, names: list[str], message: str) -> None:
    data = {"mp4": clip(0)["mp4"], "json": json.dumps(clip(0)["json"]).encode()}
    raw_tar(tmp_path / "x.tar", [(name, data.get(name.rpartition(".")[2], b"?")) for name in names])
    with pytest.raises(ShardError, match=message):
        index_shards(tmp_path)
    assert not index_path(tmp_path / "x.tar").exists()
    assert names == [] or set(kinds(tmp_path)) - {"index"}


def test_links_and_other_formats_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        info = tarfile.TarInfo("a.json")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(ShardError, match="no plain file"):
        index_shards(tmp_path)
    for data in (b"", b"no tar at all" * 1000):
        (tmp_path / "x.tar").write_bytes(data)
        with pytest.raises(ShardError, match=r"not an uncompressed tar|cut off"):
            index_shards(tmp_path)


def _conversation(**change: Any) -> dict[str, Any]:
    return clip(0)["json"] | change


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "must be an object"),
        ({}, "either conversations or messages"),
        (_conversation(media=[{"type": "audio", "member": "mp4"}]), r"media\[0\].type is 'audio'; allowed"),
        (_conversation(media=[{"type": "video", "member": "mkv"}]), r"media\[0\].member is 'mkv', but"),
        (_conversation(media=[]), "does not mention the files"),
        (_conversation(media=[{"type": "video", "member": "mp4", "duration": -1}]), r"duration is -1; it must"),
        (_conversation(conversations=[]), "at least one entry"),
        (_conversation(conversations=[{"messages": QUESTION[:1]}]), "alternate user, assistant"),
        (_conversation(conversations=[{"messages": [QUESTION[0], {"role": "bot"}]}]), r"\[1\] must have a role"),
        (
            _conversation(conversations=[{"messages": [QUESTION[0], {"role": "assistant", "content": " "}]}]),
            r"messages\[1\].content must be text that is not empty",
        ),
        (
            _conversation(conversations=[{"messages": [{"role": "user", "content": "<image> ?"}, QUESTION[1]]}]),
            r"placeholders for \['image'\], but media \['video'\]",
        ),
        (_conversation(segments=[{"start": 1.0, "end": 1.0, "text": ""}]), "needs 0 <= start < end"),
        (_conversation(segments=[{"start": 1.0, "end": 9.0, "text": ""}]), "ends at 9.0 s, but the media at 2.0 s"),
    ],
)
def test_json_that_does_not_fit(tmp_path: Path, record: Any, message: str) -> None:
    with pytest.raises(ShardError, match=r"x\.tar, sample 'clip000': .*" + message):
        write_shard(tmp_path / "x.tar", [clip(0) | {"json": record}])
    assert list(tmp_path.iterdir()) == []
