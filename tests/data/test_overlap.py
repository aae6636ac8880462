"""Held-out media that are in training shards are found, by bytes and by look, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench_lookalikes import copy
from shard_helpers import QUESTION, clip, picture

from timeviper.datamodules.checks import overlap as module
from timeviper.datamodules.checks.overlap import find_overlap
from timeviper.datamodules.checks.sample import CheckConfig
from timeviper.datamodules.checks.shards import check_shards
from timeviper.datamodules.shards.pool import write_shards


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    again = {"json": {"messages": QUESTION}}
    samples = [
        *(clip(i) for i in range(4)),
        {"__key__": "small", "mp4": copy(clip(1)["mp4"], crf="28"), **again},
        picture(0),
        {"__key__": "vp9", "webm": copy(clip(9)["mp4"], "libvpx-vp9", "webm", 1.5, crf="30", b="0"), **again},
    ]
    write_shards(samples, tmp_path / "train", samples_per_shard=3)
    return tmp_path / "train"


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    """A folder as a benchmark comes: videos in folders, lists, a picture, a file that broke off."""
    folder = tmp_path / "bench"
    (folder / "videos").mkdir(parents=True)
    for name, data in {"one": clip(1)["mp4"], "nine": clip(9)["mp4"], "new": clip(20)["mp4"]}.items():
        (folder / "videos" / f"{name}.mp4").write_bytes(data)
    (folder / "videos" / "cut.mp4").write_bytes(clip(30)["mp4"][:500])
    (folder / "a.png").write_bytes(picture(0)["png"])
    (folder / "b.png").write_bytes(picture(5)["png"])
    (folder / "questions.json").write_text("[]")
    return folder


FOUND = [
    ("videos/one.mp4", "clip001", False),
    ("videos/one.mp4", "small", True),
    ("a.png", "picture000", False),
    ("videos/nine.mp4", "vp9", True),
]


def test_it_finds_files_by_bytes_and_by_look(shards: Path, held_out: Path) -> None:
    found = find_overlap(shards, held_out)
    assert [(f.media, f.key, f.rms is not None) for f in found.found] == FOUND
    assert (found.media, found.compared) == (6, 7)
    assert [name for name, _ in found.unreadable] == ["videos/cut.mp4"]
    two = find_overlap(shards, held_out, workers=2)
    assert (two.found, two.unreadable) == (found.found, found.unreadable)


def test_it_takes_shards_and_single_files(shards: Path, held_out: Path, tmp_path: Path) -> None:
    write_shards([clip(9), clip(40), clip(3)], tmp_path / "val")
    found = find_overlap(shards, tmp_path / "val")
    assert [(f.media.partition(":")[2], f.key) for f in found.found] == [
        ("clip003.mp4", "clip003"),
        ("clip009.mp4", "vp9"),
    ]
    assert found.unreadable == []
    assert [f.key for f in find_overlap(shards, held_out / "videos" / "one.mp4").found] == ["clip001", "small"]
    assert find_overlap(shards, held_out / "videos" / "new.mp4").found == []


def test_two_of_the_set_that_look_alike_are_both_found(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "twins"
    folder.mkdir()
    for name, crf in (("first", "24"), ("second", "30")):
        (folder / f"{name}.mp4").write_bytes(copy(clip(2)["mp4"], crf=crf))
    assert {(f.media, f.key) for f in find_overlap(shards, folder).found} == {
        ("first.mp4", "clip002"),
        ("second.mp4", "clip002"),
    }


def test_what_a_check_remembers_is_not_read_again(
    shards: Path, held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_shards(shards, CheckConfig(image_size=32), 0, None, tmp_path / "state")

    def examined(kept: Any, folder: Any, tars: list[Path], *_: Any) -> list[Any]:
        assert tars == []
        return []

    monkeypatch.setattr(module, "examine_shards", examined)
    found = find_overlap(shards, held_out, state=tmp_path / "state")
    assert [(f.media, f.key, f.rms is not None) for f in found.found] == FOUND


def test_nothing_to_compare(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for media, says in ((tmp_path / "empty", "no media"), (tmp_path / "none", "is not there")):
        with pytest.raises(ValueError, match=says):
            find_overlap(shards, media)


def test_command_line(shards: Path, held_out: Path, tmp_path: Path, cli: Any) -> None:
    report = tmp_path / "new" / "overlap.json"
    done = cli("shards", "overlap", str(shards), str(held_out), "--workers", "1", "--json", str(report), check=False)
    assert "shard-00000.tar  clip001  mp4 has the bytes of videos/one.mp4" in done.stdout
    assert "videos/cut.mp4  cannot be compared by look" in done.stdout
    assert f"3 of 6 media of {held_out} are in 4 samples of {shards} (7 media); 1 could not" in done.stdout
    assert done.returncode == 1
    assert json.loads(report.read_text())["found"][0]["rms"] is None
