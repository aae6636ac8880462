"""Folders that tools make: Energon's and video2dataset's, as their documentation describes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from own_data import image, put, put_tar, record, samples, talk, video

from timeviper.datamodules.formats.manifest import Manifest, ManifestError, read_manifest


def energon(folder: Path, kind: str, field_map: Any, *tars: list[tuple[str, bytes]], split: Any = None) -> Path:
    for number, members in enumerate(tars):
        put_tar(folder / "shards" / f"{number:03}.tar", *members)
    meta = folder / ".nv-meta"
    meta.mkdir(parents=True)
    said = {"sample_type": {"__module__": "megatron.energon", "__class__": kind}}
    (meta / "dataset.yaml").write_text(yaml.safe_dump(said | ({"field_map": field_map} if field_map else {})))
    if split:
        (meta / "split.yaml").write_text(yaml.safe_dump(split))
    return folder


@pytest.fixture(autouse=True)
def shards_folder(tmp_path: Path) -> None:
    (tmp_path / "e").mkdir()


def test_energon_captions_with_splits_and_exclusions(tmp_path: Path) -> None:
    tars = [[(f"{n}.jpg", image()), (f"{n}.txt", b"A ring."), (f"{n}.detail.json", b"{}")] for n in ("a", "b", "c")]
    tars[0] += [("gone.jpg", image()), ("gone.txt", b"x")]
    split = {
        "exclude": ["shards/000.tar/gone"],
        "split_parts": {"train": ["shards/{000..001}.tar"], "val": ["shards/002.tar"]},
    }
    source = energon(tmp_path / "e", "CaptioningSample", {"image": "jpg", "caption": "txt"}, *tars, split=split)
    manifest = read_manifest(source)
    assert manifest.form == "energon"
    assert [(s["__key__"], record(s)["split"]) for s in manifest.samples] == [
        ("a", "train"),
        ("b", "train"),
        ("c", "val"),
    ]
    assert talk(record(manifest.samples[0]))[0][1][1] == "A ring."
    assert any("split.yaml excludes" in note for note in manifest.notes)
    assert any("--only split=train takes one" in note for note in manifest.notes)
    assert len(read_manifest(source, only=["split=val"]).samples) == 1
    assert read_manifest(source, "tars").form == "tars"


@pytest.mark.parametrize(
    ("kind", "field_map", "said", "expected"),
    [
        (
            "VidQASample",
            {"video": "mp4", "context": "json[q]", "answers": "json[a]"},
            {"q": "Who?", "a": ["Ann."]},
            "Ann.",
        ),
        (
            "VQASample",
            {"video": "mp4", "context": "json[q][text]", "answers": "json[a]", "answer_weights": "json[w]"},
            {"q": {"text": "Who?"}, "a": ["Ann.", "Bob."], "w": [0.2, 0.8]},
            "Bob.",
        ),
        (
            "MultiChoiceVQASample",
            {"video": "mp4", "context": "json[q]", "choices": "json[c]", "correct_choice_idx": "json[i]"},
            {"q": "Who?", "c": ["Ann", "Bob"], "i": 1},
            "B. Bob",
        ),
    ],
)
def test_energon_questions(tmp_path: Path, kind: str, field_map: Any, said: Any, expected: str) -> None:
    tar = [("a.mp4", video()), ("a.json", json.dumps(said).encode())]
    (found,) = samples(energon(tmp_path / "e", kind, field_map, tar)).values()
    question, answer = talk(found)[0][1]
    assert question.startswith("Who?")
    assert answer == expected


@pytest.mark.parametrize(
    ("kind", "field_map", "message"),
    [
        ("CaptioningSample", None, "made by code, which is not run here; --format tars"),
        ("InterleavedSample", {"sequence": "json"}, "of type InterleavedSample; known are CaptioningSample"),
        ("CaptioningSample", {"image": "jpg", "boxes": "json"}, "field_map has boxes, which CaptioningSample has not"),
        (
            "CaptioningSample",
            {"image": "jpg", "caption": "cap"},
            "has no cap, which dataset.yaml names; it has jpg, json",
        ),
        ("CaptioningSample", {"image": "jpg", "caption": "json[x]"}, r"has no json\[x\], which dataset.yaml names"),
        ("VQASample", {"image": "jpg", "context": "json[q]", "answers": "json[a]"}, "has several answers"),
    ],
)
def test_unusable_energon(tmp_path: Path, kind: str, field_map: Any, message: str) -> None:
    tar = [("a.jpg", image()), ("a.json", b'{"q": "Who?", "a": ["Ann", "Bob"]}')]
    with pytest.raises(ManifestError, match=message):
        read_manifest(energon(tmp_path / "e", kind, field_map, tar))


def downloaded(key: str, **more: Any) -> dict[str, Any]:
    said = {"url": f"https://example.org/{key}", "caption": "A dog.", "key": key, "status": "success"}
    return {**said, "error_message": None, "clips": [[3.0, 5.0]], **more}


FAILED = downloaded("000000001", status="failed_to_download", caption="Gone.")


def check(manifest: Manifest) -> None:
    (sample,) = manifest.samples
    assert talk(record(sample))[0][1][1] == "A dog."
    assert "start" not in record(sample)["media"][0], "clips are those of the film that it was cut from"
    assert any("download failed" in note for note in manifest.notes)


def test_video2dataset_as_tars(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    one = [
        ("000000000.mp4", video()),
        ("000000000.txt", b"A dog."),
        ("000000000.json", json.dumps(downloaded("0")).encode()),
    ]
    put_tar(out / "00000.tar", *one, ("000000001.json", json.dumps(FAILED).encode()))
    (out / "00000_stats.json").write_text("{}")
    pq.write_table(pa.Table.from_pylist([downloaded("0"), FAILED]), out / "00000.parquet")
    manifest = read_manifest(out)
    assert manifest.form == "tars"
    check(manifest)


def test_video2dataset_as_files(tmp_path: Path) -> None:
    out = put(tmp_path / "out", "00000/000000000.mp4")
    (out / "00000" / "000000000.txt").write_text("A dog.")
    (out / "00000" / "000000000.json").write_text(json.dumps(downloaded("0")))
    (out / "00000" / "000000001.json").write_text(json.dumps(FAILED))
    (out / "00000_stats.json").write_text("{}")
    pq.write_table(pa.Table.from_pylist([downloaded("0"), FAILED]), out / "00000.parquet")
    manifest = read_manifest(out)
    assert manifest.form == "folder"
    check(manifest)


def test_video2dataset_as_parquet(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    rows = [{**downloaded("0"), "mp4": video()}, {**FAILED, "mp4": None}]
    pq.write_table(pa.Table.from_pylist(rows), out / "00000.parquet")
    (out / "00000_stats.json").write_text("{}")
    check(read_manifest(out))
