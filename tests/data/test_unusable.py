"""One bad line does not lose a source: it is listed whole, and the rest is written where a person says so."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from own_data import put, put_lines, samples, talk, video

from timeviper.cli import main as cli
from timeviper.datamodules.build import load_index
from timeviper.datamodules.formats.manifest import ManifestError, read_manifest


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """`timeviper shards write args` in this process: exit code, and what it said."""

    def invoke(*args: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["timeviper", "shards", "write", *map(str, args), "--workers", "1"])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        out, err = capsys.readouterr()
        return int(exit.value.code or 0), out + err

    return invoke


def listed(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_missing_videos_are_all_listed_and_the_rest_is_written(write, tmp_path: Path) -> None:
    put(tmp_path, *(f"{i}.mp4" for i in range(25)))
    rows = [{"id": i, "video": f"{i}.mp4", "caption": f"c {i}"} for i in range(40)]
    source, out = put_lines(tmp_path / "x.jsonl", *rows), tmp_path / "out"
    code, said = write(source, out)
    assert code == 1
    assert "15 unusable" in said
    assert "... and 5 more" in said
    assert "--skip-unusable --max-skipped 0.38" in said
    assert [one["entry"] for one in listed(out / "unusable.jsonl")] == rows[25:]
    assert all("there is no file" in one["problem"] for one in listed(out / "unusable.jsonl"))
    code, said = write(source, out, "--skip-unusable")
    assert code == 1
    assert "--skip-unusable --max-skipped 0.38" in said
    assert not list(out.glob("*.tar"))
    code, said = write(source, out, "--skip-unusable", "--max-skipped", "0.38")
    assert code == 0
    assert "15 unusable are left out" in said
    assert sum(len(shard.samples) for shard in load_index(out)) == 25
    put(tmp_path, *(f"{i}.mp4" for i in range(25, 40)))
    assert write(source, tmp_path / "all")[0] == 0
    assert not (tmp_path / "all" / "unusable.jsonl").exists()


def test_two_of_a_small_source_may_always_be_left_out(write, tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    good = json.dumps({"video": "a.mp4", "caption": "x"})
    (tmp_path / "x.jsonl").write_text("\n".join([good, '{"broken', json.dumps(["a list"])]))
    code, said = write(tmp_path / "x.jsonl", tmp_path / "out", "--skip-unusable")
    assert code == 0, said
    assert [one["entry"] for one in listed(tmp_path / "out" / "unusable.jsonl")] == ['{"broken', '["a list"]']
    (tmp_path / "x.jsonl").write_text("{}")
    code, said = write(tmp_path / "x.jsonl", tmp_path / "out", "--skip-unusable")
    assert code == 1
    assert "--skip-unusable" not in said, "nothing would be left"


@pytest.mark.parametrize("bad", [(1,), (0, 1), (0, 1, 2, 3)], ids=str)
def test_videos_that_cannot_be_read_are_left_out_of_their_shard(write, tmp_path: Path, bad: tuple[int, ...]) -> None:
    put(tmp_path, *(f"{i}.mp4" for i in range(8)))
    for i in bad:
        (tmp_path / f"{i}.mp4").write_bytes(b"no video" * 99)
    rows = [{"id": f"s{i}", "video": f"{i}.mp4", "caption": f"c {i}"} for i in range(8)]
    source, out = put_lines(tmp_path / "x.jsonl", *rows), tmp_path / "out"
    options = ("--samples-per-shard", 4, "--skip-unusable", "--max-skipped", 0.6)
    before: dict[str, bytes] = {}
    for _ in range(2):  # the same command again keeps what is there
        code, said = write(source, out, *options)
        assert code == 0, said
        assert f"{len(bad)} unusable are left out ({len(bad)} of them with files that cannot be read)" in said
        assert [s.key for shard in load_index(out) for s in shard.samples] == [
            f"s{i}" for i in range(8) if i not in bad
        ]
        (one, *_) = found = listed(out / "unusable.jsonl")
        assert [u["where"] for u in found] == [f"s{i}" for i in bad]
        assert one["entry"]["files"] == {"mp4": str(tmp_path / f"{bad[0]}.mp4")}
        assert "cannot be read as a video" in one["problem"]
        now = {path.name: path.read_bytes() for path in out.iterdir()}
        assert before in ({}, now)
        before = now
    (tmp_path / "1.mp4").write_bytes(video())
    if len(bad) == 1:
        code, said = write(source, out, *options)
        assert code == 1
        assert "already there with other samples" in said, "it can be used now"


def test_too_many_that_cannot_be_read_are_an_error_after_all(write, tmp_path: Path) -> None:
    put(tmp_path, *(f"{i}.mp4" for i in range(8)))
    for i in range(3):
        (tmp_path / f"{i}.mp4").write_bytes(b"")
    source = put_lines(tmp_path / "x.jsonl", *({"video": f"{i}.mp4", "caption": "x"} for i in range(8)))
    code, said = write(source, tmp_path / "out", "--skip-unusable")
    assert code == 1
    assert "3 of 8 are left out, more than --max-skipped 0.005" in said


# Tables: what is wrong with a row is no more than that row


def test_cells_of_paragraphs_and_line_ends_of_any_system(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    text = 'video,caption\na.mp4,"First.\n\n\nSecond ""so"".\n"\n\na.mp4,Ünï\n'
    mac, windows = text.replace("\n", "\r"), text.replace("\n", "\r\n")
    files = {
        "unix": text.encode(),
        "windows": windows.encode(),
        "mac": mac.encode(),
        "bom": windows.encode("utf-8-sig"),
        "utf16": windows.encode("utf-16"),
        "utf16be": b"\xfe\xff" + windows.encode("utf-16-be"),
        "sep": b"sep=;\r\n" + windows.replace("o,c", "o;c").replace("4,", "4;").encode(),
        "tabs": windows.replace("o,c", "o\tc").replace("4,", "4\t").encode("utf-16"),
    }
    for name, content in files.items():
        (tmp_path / f"{name}.csv").write_bytes(content)
        found = [talk(one)[0][1][1] for one in samples(tmp_path / f"{name}.csv").values()]
        assert found == ['First.\n\n\nSecond "so".', "Ünï"], name


def test_a_bad_row_costs_that_row_alone(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    rows = [
        "a.mp4,one",
        'a.mp4,"never closed',
        "a.mp4,two",
        'a.mp4,"closed" badly',
        'a.mp4,"three\nlines\n"',
        "a.mp4,x,y",
        "gone.mp4,four",
        "a.mp4,five",
    ]
    (tmp_path / "x.csv").write_bytes(("video,caption\n" + "\n".join(rows)).encode() + b"\na.mp4,K\xe4fer\na.mp4,six\n")
    manifest = read_manifest(tmp_path / "x.csv", partial=True)
    assert [talk(json.loads(s["json"]))[0][1][1] for s in manifest.samples] == [
        "one",
        "two",
        "three\nlines",
        "five",
        "six",
    ]
    problems = [(u.where, u.entry) for u in manifest.unusable]
    assert problems == [
        ("line 3", 'a.mp4,"never closed'),
        ("line 5", 'a.mp4,"closed" badly'),
        ("line 9", "a.mp4,x,y"),
        ("line 10", {"video": "gone.mp4", "caption": "four"}),
        ("line 12", "a.mp4,Käfer"),
    ]
    assert "is not UTF-8; convert the file" in manifest.unusable[-1].problem


def test_damaged_utf_16_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes("video,caption\r\na.mp4,x".encode("utf-16") + b"\x00")
    with pytest.raises(ManifestError, match="is UTF-16, but damaged"):
        read_manifest(tmp_path / "x.csv")


def test_videos_and_images_in_columns_of_their_own(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4", "b.jpg")
    (tmp_path / "x.csv").write_text(
        "video,image,question,answer\na.mp4,,?,1\n,b.jpg,?,None\na.mp4,b.jpg,?,both\nNaN,null,?,no\na.mp4,,?,nan\n"
    )
    manifest = read_manifest(tmp_path / "x.csv", partial=True)
    types = [[m["type"] for m in json.loads(s["json"])["media"]] for s in manifest.samples]
    assert types == [["video"], ["image"], ["video", "image"], []]
    assert [(u.where, u.problem) for u in manifest.unusable] == [("line 6", "its answer is empty")]
    assert [talk(json.loads(s["json"]))[0][1][1] for s in manifest.samples] == ["1", "None", "both", "no"]
    assert manifest.notes[0] == "1 of 4 samples are text alone, without media"
