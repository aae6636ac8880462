"""Annotation files of published data sets, by their documented fields, on miniatures that are made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from own_data import put, put_json, put_lines, samples, talk

from timeviper.datamodules.formats.manifest import ManifestError, read_manifest

YOUCOOK2 = {
    "database": {
        "xHr8": {
            "duration": 2.0,
            "subset": "training",
            "recipe_type": "101",
            "video_url": "https://example.org/xHr8",
            "annotations": [
                {"segment": [0, 1], "id": 0, "sentence": "pick the ends off"},
                {"segment": [1, 2], "id": 1, "sentence": "boil them"},
            ],
        },
        "Ab-1": {"duration": 2.0, "subset": "validation", "annotations": [{"segment": [0, 2], "sentence": "stir"}]},
    }
}
MSRVTT = {
    "info": {"year": "2016"},
    "videos": [
        {"video_id": "video0", "category": 9, "split": "train", "start time": 137.72, "end time": 149.44, "id": 0},
        {"video_id": "video1", "category": 3, "split": "test", "start time": 1.0, "end time": 3.0, "id": 1},
    ],
    "sentences": [
        {"caption": "a car is shown", "video_id": "video0", "sen_id": 0},
        {"caption": "a red car", "video_id": "video0", "sen_id": 1},
        {"caption": "a dog", "video_id": "video1", "sen_id": 2},
    ],
}


def test_youcook2(tmp_path: Path) -> None:
    put(tmp_path / "raw", "training/101/xHr8.mkv", "validation/101/Ab-1.mp4")
    source = put_json(tmp_path / "x.json", YOUCOOK2)
    found = samples(source, media_root=tmp_path / "raw")
    assert list(found) == ["xHr8", "Ab-1"]
    assert [s["text"] for s in found["xHr8"]["segments"]] == ["pick the ends off", "boil them"]
    assert [kind for kind, _ in talk(found["xHr8"])] == ["dense", "segment", "segment"]
    assert found["xHr8"]["recipe_type"] == "101"
    (note,) = [n for n in read_manifest(source, media_root=tmp_path / "raw").notes if "subset" in n]
    assert "training: 1, validation: 1" in note
    assert "--only subset=training takes one" in note
    one = read_manifest(source, media_root=tmp_path / "raw", only=["subset=training"])
    assert [s["__key__"] for s in one.samples] == ["xHr8"]
    assert "1 entries are left out by --only subset=training" in one.notes


def test_coin_and_activitynet(tmp_path: Path) -> None:
    """Bounds of the whole task in COIN bound no segment; ActivityNet's files begin with v_."""
    put(tmp_path, "v_a1.mp4")
    said = {"subset": "training", "class": "Tea", "start": 0.2, "end": 1.9, "duration": 2.0}
    coin = {**said, "annotation": [{"id": "3", "segment": [0.5, 1.0], "label": "pour water"}]}
    (found,) = samples(put_json(tmp_path / "x.json", {"database": {"a1": coin}})).values()
    assert found["segments"] == [{"start": 0.5, "end": 1.0, "text": "pour water"}]
    assert found["media"] == [{"type": "video", "member": "mp4"}]
    assert found["source start"] == 0.2


def test_msrvtt(tmp_path: Path) -> None:
    put(tmp_path / "clips", "TrainVal/video0.mp4", "Test/video1.mp4")
    source = put_json(tmp_path / "x.json", MSRVTT)
    found = samples(source, media_root=tmp_path / "clips")
    assert list(found) == ["video0", "video1"]
    assert [(kind, answer) for kind, (_, answer) in talk(found["video0"])] == [
        ("caption", "a car is shown"),
        ("caption", "a red car"),
    ]
    assert found["video0"]["media"] == [{"type": "video", "member": "mp4"}], "the file is cut already"
    assert found["video0"]["source start time"] == 137.72
    train = read_manifest(source, media_root=tmp_path / "clips", only=["split=train"])
    assert [s["__key__"] for s in train.samples] == ["video0"]


def test_qvhighlights(tmp_path: Path) -> None:
    put(tmp_path, "videos/a_0.0_150.0.mp4")
    said = {"vid": "a_0.0_150.0", "duration": 2, "relevant_clip_ids": [0], "saliency_scores": [[4, 1, 1]]}
    source = put_lines(
        tmp_path / "x.jsonl",
        {"qid": 1, "query": "A dog runs.", "relevant_windows": [[0, 1]], **said},
        {"qid": 2, "query": "It stops.", "relevant_windows": [[1.5, 2], [0, 0.5]], **said},
    )
    (found,) = samples(source).values()
    (kind, (question, answer)), (many, (asked, answers)) = talk(found)
    assert (kind, answer) == ("when", "from 0.0 to 1.0 seconds")
    assert "A dog runs" in question
    assert (many, answers) == ("times", "from 0.0 to 0.5 seconds\nfrom 1.5 to 2.0 seconds")
    assert "It stops" in asked
    assert [c["qid"] for c in found["conversations"]] == [1, 2]
    assert any(note.startswith("saliency_scores is not used") for note in read_manifest(source).notes)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            {"database": {"a": {"annotations": [{"segment": [0], "sentence": "x"}]}}},
            r"video 'a': annotations\[0\] must",
        ),
        ({"database": {"a": {"annotations": [{"segment": [0, 1]}]}}}, r"must have segment: .* and sentence or label"),
        ({"database": {"a": {"annotations": [{"segment": [1, 0], "sentence": "x"}]}}}, "needs 0 <= start < end"),
        ({"database": {"a": {"subset": "testing"}}}, "has no annotations or annotation, as videos for testing"),
        ({"database": {"a": 3}}, "must be an object, got int"),
        ({"database": {"gone": {"annotations": [{"segment": [0, 1], "label": "x"}]}}}, "there is no video gone below"),
        ({"database": {"two": {"annotations": [{"segment": [0, 1], "label": "x"}]}}}, "two could be any of"),
        ({"videos": [{"id": 3}], "sentences": []}, r"videos\[0\]: must have a video_id"),
        ({"videos": [{"video_id": "a"}], "sentences": []}, "a has no sentence"),
        ({"videos": [], "sentences": [{"video_id": "a", "caption": "x"}]}, "sentences of 'a': are of a video that"),
        ([{"vid": "a", "query": "x", "relevant_windows": []}], "relevant_windows must be a list"),
        ([{"vid": "a", "query": "x", "relevant_windows": [[0]]}], r"must be \[start, end\]"),
    ],
)
def test_one_bad_video_is_named_and_the_rest_is_read(tmp_path: Path, found: Any, message: str) -> None:
    put(tmp_path, "a.mp4", "good.mp4", "x/two.mp4", "y/two.mkv")
    good = {"annotations": [{"segment": [0, 1], "sentence": "x"}]}
    if isinstance(found, list):
        found = [*found, {"vid": "good", "query": "x", "relevant_windows": [[0, 1]]}]
    elif "database" in found:
        found["database"]["good"] = good
    else:
        found["videos"].append({"video_id": "good"})
        found["sentences"].append({"video_id": "good", "caption": "x"})
    source = put_json(tmp_path / "x.json", found)
    with pytest.raises(ManifestError, match=f"1 unusable(.|\n)*{message}"):
        read_manifest(source)
    assert [s["__key__"] for s in read_manifest(source, partial=True).samples] == ["good"]


def test_a_path_is_never_looked_for_elsewhere(tmp_path: Path) -> None:
    put(tmp_path, "deep/a.mp4")
    source = put_lines(tmp_path / "x.jsonl", {"video": "a.mp4", "caption": "x"})
    with pytest.raises(ManifestError, match="there is no file"):
        read_manifest(source)


@pytest.mark.parametrize(
    ("only", "message"),
    [
        (["split"], "write FIELD=VALUE"),
        (["=x"], "write FIELD=VALUE"),
        (["split=val"], "leaves none of its 2 entries; there split is train: 1, test: 1"),
        (["splitt=val"], "leaves none of its 2 entries; there is no such field"),
    ],
)
def test_rules_that_leave_nothing(tmp_path: Path, only: list[str], message: str) -> None:
    put(tmp_path, "a.mp4")
    rows = [{"video": "a.mp4", "caption": "x", "split": split} for split in ("train", "test")]
    with pytest.raises(ValueError, match=message):
        read_manifest(put_lines(tmp_path / "x.jsonl", *rows), only=only)


def test_what_is_left_out_anyway_is_not_counted_for_the_rule(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4", "b.mp4", "a.jpg")
    for name, split in (("a", "train"), ("b", "test")):
        put_json(tmp_path / f"{name}.json", {"caption": "x", "split": split})
    manifest = read_manifest(tmp_path, only=["split=train"])
    assert [s["__key__"] for s in manifest.samples] == ["a"]
    assert "1 entries are left out by --only split=train" in manifest.notes
    assert any("thumbnails" in note for note in manifest.notes)
