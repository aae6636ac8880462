"""Lists and folders of clips as WebVid, Kinetics and Charades-STA publish them, on miniatures that are made here."""

from __future__ import annotations

from pathlib import Path

import pytest
from own_data import put, put_lines, samples, talk

from timeviper.datamodules.formats.manifest import ManifestError, read_manifest

WEBVID = """videoid,contentUrl,duration,page_dir,name
21179416,https://example.org/a.mp4,PT00H00M02S,006001_006050,"Aerial shot, winter forest"
5629184,https://example.org/b.mp4,PT00H00M02S,071501_071550,Senior couple looking through binoculars
7,https://example.org/c.mp4,PT00H00M02S,071501_071550,
"""
KINETICS = """label,youtube_id,time_start,time_end,split,is_cc
testifying,---QUuC4vJs,84,94,validate,0
washing feet,--07WQ2iBlw,1,11,train,0
,--33Lscn6sk,30,40,test,0
"""


def test_webvid(tmp_path: Path) -> None:
    put(tmp_path, "videos/006001_006050/21179416.mp4", "videos/071501_071550/5629184.mp4", "videos/7.mp4")
    (tmp_path / "x.csv").write_text(WEBVID)
    manifest = read_manifest(tmp_path / "x.csv", media_root=tmp_path / "videos", partial=True)
    assert [(u.where, u.problem) for u in manifest.unusable] == [("line 4", "its name, which is the caption, is empty")]
    assert [s["__key__"] for s in manifest.samples] == ["21179416", "5629184"]
    rows = WEBVID.splitlines()
    (tmp_path / "x.csv").write_text("\n".join(rows[:-1]))
    found = samples(tmp_path / "x.csv")
    assert talk(found["21179416"])[0][1][1] == "Aerial shot, winter forest"
    assert found["5629184"]["duration"] == "PT00H00M02S"
    assert "start" not in found["5629184"]["media"][0]


def test_kinetics_csv(tmp_path: Path) -> None:
    put(tmp_path, "val/testifying/---QUuC4vJs_000084_000094.mp4", "train/--07WQ2iBlw_000001_000011.mp4")
    (tmp_path / "x.csv").write_text(KINETICS)
    manifest = read_manifest(tmp_path / "x.csv", partial=True)
    assert "has no label, as clips for testing have none" in manifest.unusable[0].problem
    manifest = read_manifest(tmp_path / "x.csv", only=["split=train,validate"])
    assert len(manifest.samples) == 2
    assert any("1 entries are left out" in note for note in manifest.notes)
    (tmp_path / "x.csv").write_text("\n".join(KINETICS.splitlines()[:-1]))
    found = [*samples(tmp_path / "x.csv").values()]
    assert [(kind, answer) for kind, (_, answer) in talk(found[0])] == [("action", "testifying")]
    assert found[0]["media"] == [{"type": "video", "member": "mp4"}], "the file is cut already"
    assert (found[0]["source time_start"], found[0]["label"]) == (84, "testifying")


def test_kinetics_rows_as_json_lines(tmp_path: Path) -> None:
    put(tmp_path, "a_000001_000011.mp4")
    row = {"label": "yoga", "youtube_id": "a", "time_start": 1, "time_end": 11.0, "split": "train"}
    (found,) = samples(put_lines(tmp_path / "x.jsonl", row)).values()
    assert talk(found)[0][1][1] == "yoga"
    with pytest.raises(ManifestError, match="time_start and time_end must be seconds"):
        read_manifest(put_lines(tmp_path / "x.jsonl", {**row, "time_end": "later"}))


def test_folders_by_class(tmp_path: Path) -> None:
    clip = "---QUuC4vJs_000084_000094.mp4"
    put(tmp_path / "k", f"train/washing_feet/{clip}", "val/yoga/b_000001_000011.mp4")
    manifest = read_manifest(tmp_path / "k")
    assert manifest.form == "classes"
    found = [*samples(tmp_path / "k").values()]
    assert [(one["split"], talk(one)[0][1][1]) for one in found] == [("train", "washing feet"), ("val", "yoga")]
    assert any("--only split=train takes one" in note for note in manifest.notes)
    put(tmp_path / "k", "train/c_000001_000011.mp4")
    with pytest.raises(ManifestError, match=r"train/c_000001_000011.mp4: lies in no folder that says"):
        read_manifest(tmp_path / "k")


def test_folders_that_may_mean_something_else_need_a_word(tmp_path: Path) -> None:
    """Names of one's own could be dates as well as actions: nothing is guessed."""
    put(tmp_path / "mine", "2024/a.mp4", "2025/b.mp4")
    with pytest.raises(ManifestError, match="--format classes"):
        read_manifest(tmp_path / "mine")
    assert len(read_manifest(tmp_path / "mine", "classes").samples) == 2


def test_charades(tmp_path: Path) -> None:
    put(tmp_path / "Charades_v1_480", "AO8RW.mp4")
    source = tmp_path / "charades_sta_train.txt"
    source.write_text("AO8RW 0.0 1.0##a person takes a book.\nAO8RW 1.2 2.0##they open it.\n")
    manifest = read_manifest(source)
    assert manifest.form == "charades"
    (found,) = samples(source).values()
    assert [(kind, answer) for kind, (_, answer) in talk(found)] == [
        ("when", "from 0.0 to 1.0 seconds"),
        ("when", "from 1.2 to 2.0 seconds"),
    ]
    assert [s["text"] for s in found["segments"]] == ["a person takes a book.", "they open it."]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("AO8RW 0.0##x", 'must be "VIDEO START END##SENTENCE"'),
        ("AO8RW 2.0 1.0##x", "needs 0 <= start < end"),
        ("AO8RW 0.0 1.2.3##x", "is no number of seconds"),
        ("GONE1 0.0 1.0##x", "there is no video GONE1 below"),
    ],
)
def test_bad_lines_of_charades(tmp_path: Path, line: str, message: str) -> None:
    put(tmp_path, "AO8RW.mp4")
    (tmp_path / "x.txt").write_text(f"AO8RW 0.0 1.0##fine\n{line}\n")
    with pytest.raises(ManifestError, match=f"1 unusable\n  line 2: .*{message}"):
        read_manifest(tmp_path / "x.txt")
