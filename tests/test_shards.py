"""Shards: written whole or not at all, indexed strictly, and no damage that goes unnoticed."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from timeviper.datamodules.shards import (
    ShardError,
    SliceFile,
    check_shards,
    index_path,
    index_shards,
    load_index,
    read_member,
    write_shard,
    write_shards,
)
from timeviper.datamodules.world_render import encode_image, encode_video
from timeviper.datamodules.world_scene import draw_video

QUESTION = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "a ring"}]


def clip(number: int) -> dict[str, Any]:
    """A video sample of 2 s."""
    scene = draw_video(np.random.default_rng(number), 2.0, 4.0, 1, None)
    media = [{"type": "video", "member": "mp4", "duration": 2.0, "fps": 4.0, "frames": 8}]
    return {
        "__key__": f"clip{number:03d}",
        "mp4": encode_video(scene),
        "json": {"media": media, "conversations": [{"type": "shape", "messages": QUESTION}]},
    }


def picture(number: int) -> dict[str, Any]:
    pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), np.uint8)
    return {"__key__": f"picture{number:03d}", "png": encode_image(pixels, "png"), "json": {"messages": QUESTION}}


def raw_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A tar of exactly these members, as another program could have left it."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


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
    assert index_shards(tmp_path) == [index]
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


def test_a_killed_writer_continues_to_the_same_shards(tmp_path: Path) -> None:
    script = (
        "import sys, test_shards as t\n"
        "t.write_shards((t.picture(i) for i in range(400)), sys.argv[1], samples_per_shard=4)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", script, str(tmp_path / "killed")]
    writer = subprocess.Popen(command, env=environment)
    while not (tmp_path / "killed" / "shard-00003.idx.json").exists():
        assert writer.poll() is None
        time.sleep(0.005)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    for tar in (tmp_path / "killed").glob("*.tar"):
        with tarfile.open(tar) as archive:
            assert len(archive.getnames()) == 8
    pictures = [picture(i) for i in range(400)]
    write_shards(pictures, tmp_path / "killed", samples_per_shard=4)
    write_shards(pictures, tmp_path / "whole", samples_per_shard=4)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


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
    index.write_text(whole.replace('"version":1', '"version":9'))
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


def cut_between_members(shard: Path, offset: int, size: int) -> None:
    os.truncate(shard, offset + -(-size // 512) * 512)


def cut_inside_member(shard: Path, offset: int, size: int) -> None:
    os.truncate(shard, offset + size // 2)


def spoil_header(shard: Path, offset: int, size: int) -> None:
    with shard.open("r+b") as file:
        file.seek(offset - 512)
        file.write(b"\xff" * 512)


def flip_bit(shard: Path, offset: int, size: int) -> None:
    with shard.open("r+b") as file:
        file.seek(offset + size // 2)
        byte = file.read(1)[0]
        file.seek(offset + size // 2)
        file.write(bytes([byte ^ 1]))


DAMAGE: list[tuple[Callable[[Path, int, int], None], str, str]] = [
    (cut_between_members, "json", "tar"),
    (cut_between_members, "mp4", "tar"),
    (cut_inside_member, "json", "tar"),
    (cut_inside_member, "mp4", "tar"),
    (spoil_header, "json", "tar"),
    (spoil_header, "mp4", "tar"),
    (flip_bit, "json", "checksum"),
    (flip_bit, "mp4", "checksum"),
]


@pytest.mark.parametrize(("damage", "field", "kind"), DAMAGE, ids=lambda v: getattr(v, "__name__", v))
def test_damage_is_found_and_nothing_of_it_is_read(tmp_path: Path, damage: Any, field: str, kind: str) -> None:
    """What webdataset 1.0.2 passes on in silence: cut shards, spoilt headers; and bits that flipped."""
    samples = [clip(i) for i in range(4)]
    write_shards(samples, tmp_path, samples_per_shard=2)
    assert kinds(tmp_path) == []
    shard = load_index(tmp_path)[0]
    record = shard.samples[1]
    damage(shard.path, *record.members[field][:2])
    assert kind in kinds(tmp_path)
    try:
        shards = load_index(tmp_path)
    except ValueError as error:
        assert "run `timeviper shards index" in str(error)  # noqa: PT017
        index_path(shard.path).unlink()
        with pytest.raises(ShardError, match=r"cut off|damaged"):
            index_shards(tmp_path)
        assert not index_path(shard.path).exists()
        return
    # The same size: the index still holds, and so does every byte that it vouches for.
    written = {sample["__key__"]: sample["mp4"] for sample in samples}
    emitted = 0
    for known in shards:
        for good in known.samples:
            try:
                read_member(known.path, *good.members["json"])
                assert read_member(known.path, *good.members["mp4"]) == written[good.key]
                emitted += 1
            except ValueError as error:
                assert good.key == record.key, error  # noqa: PT017
    assert emitted == (4 if damage is spoil_header else 3)


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
        (_conversation(segments=[{"start": 1.0, "end": 9.0, "text": ""}]), "ends at 9.0 s, but the media last 2.0 s"),
    ],
)
def test_json_that_does_not_fit(tmp_path: Path, record: Any, message: str) -> None:
    with pytest.raises(ShardError, match=r"x\.tar, sample 'clip000': .*" + message):
        write_shard(tmp_path / "x.tar", [clip(0) | {"json": record}])
    assert list(tmp_path.iterdir()) == []


def test_check_finds_bad_media(tmp_path: Path) -> None:
    short = clip(1)
    short["json"]["media"][0]["duration"] = 3.0
    fewer = clip(2)
    fewer["json"]["media"][0]["frames"] = 7
    broken = clip(3)
    broken["mp4"] = broken["mp4"][:800]
    text = clip(4) | {"mp4": b"<html>not found</html>"}
    twin = clip(0) | {"__key__": "twin"}
    black = picture(0) | {"png": b"\x89PNG\r\n\x1a\n" + bytes(100)}
    write_shards([clip(0), short, fewer, broken, text, twin, black], tmp_path)
    found = [(p.key, p.kind) for p in check_shards(tmp_path).problems]
    assert found == [
        ("clip001", "duration"),
        ("clip002", "duration"),
        ("clip003", "media"),
        ("clip004", "media"),
        ("twin", "duplicate"),
        ("picture000", "media"),
    ]


def test_check_is_quiet_about_good_shards(tmp_path: Path) -> None:
    write_shards([*map(clip, range(40)), *map(picture, range(200))], tmp_path, samples_per_shard=50)
    report = check_shards(tmp_path)
    assert (report.shards, report.samples, report.problems) == (5, 240, [])
    assert 0 < report.forecast["mean_s"] <= report.forecast["max_s"]
    assert json.loads(report.to_json())["samples"] == 240
    with pytest.raises(ValueError, match="no shards"):
        check_shards(tmp_path / "none")
