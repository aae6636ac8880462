"""Data as programs for fine-tuning have them: LLaMA-Factory, ms-swift and VideoChat2, by their documented fields."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from own_data import image, put, put_json, put_lines, samples, talk

from timeviper.datamodules.build import load_index
from timeviper.datamodules.formats.manifest import ManifestError, read_manifest
from timeviper.datamodules.shards.pool import write_shards
from timeviper.datamodules.shards.tar import ShardError


def one(folder: Path, entry: dict[str, Any]) -> dict[str, Any]:
    put(folder, "a.mp4", "b.jpg")
    (found,) = samples(put_json(folder / "x.json", [entry])).values()
    return found


def texts(found: dict[str, Any]) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in found["conversations"][0]["messages"]]


def test_alpaca(tmp_path: Path) -> None:
    entry = {
        "instruction": "<video>Who runs?",
        "input": "In one word.",
        "output": "Ann.",
        "system": "Be brief.",
        "history": [["Hello.", "Hello, too."]],
        "videos": ["a.mp4"],
    }
    found = one(tmp_path, {**entry, "instruction": "Who runs?"})
    assert texts(found) == [
        ("system", "Be brief."),
        ("user", "Hello."),
        ("assistant", "Hello, too."),
        ("user", "Who runs?\nIn one word."),
        ("assistant", "Ann."),
    ]
    assert found["media"] == [{"type": "video", "member": "mp4"}]
    found = one(tmp_path, {**entry, "history": [["Hello.", "Hello, too."]]})
    assert texts(found)[3] == ("user", "<video>Who runs?\nIn one word.")


def test_sharegpt_with_images_and_videos(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "<image><video>Same?"},
        {"from": "gpt", "value": "No."},
    ]
    found = one(tmp_path, {"conversations": turns, "images": ["b.jpg"], "videos": ["a.mp4"], "system": "Be brief."})
    assert [m["type"] for m in found["media"]] == ["image", "video"]
    assert texts(found)[1] == ("user", "<image><video>Same?")


def test_dataset_info_renames_columns_and_turns(tmp_path: Path) -> None:
    entry = {"chat": [{"who": "me", "says": "<video>Who?"}, {"who": "it", "says": "Ann."}], "clips": ["a.mp4"], "id": 7}
    described = {
        "file_name": "x.json",
        "formatting": "sharegpt",
        "columns": {"messages": "chat", "videos": "clips"},
        "tags": {"role_tag": "who", "content_tag": "says", "user_tag": "me", "assistant_tag": "it"},
    }
    put_json(tmp_path / "dataset_info.json", {"mine": described, "other": {"file_name": "y.json"}})
    found = one(tmp_path, entry)
    assert texts(found) == [("user", "<video>Who?"), ("assistant", "Ann.")]
    manifest = read_manifest(tmp_path / "x.json")
    assert "fields used: chat, clips, id" in manifest.fields[0]
    assert any("as dataset_info.json beside it says" in note for note in manifest.notes)
    twice = {"a": described, "b": {**described, "columns": {"messages": "talk"}}}
    put_json(tmp_path / "dataset_info.json", twice)
    with pytest.raises(ManifestError, match="describes this file in 2 ways"):
        read_manifest(tmp_path / "x.json")
    (tmp_path / "dataset_info.json").write_text("{")
    with pytest.raises(ManifestError, match=r"dataset_info.json beside it cannot be read .*not valid JSON"):
        read_manifest(tmp_path / "x.json")


@pytest.mark.parametrize(
    "entry",
    [
        {"query": "<video>Who?", "response": "Ann.", "history": []},
        {"messages": [{"role": "user", "content": "<video>Who?"}, {"role": "assistant", "content": "Ann."}]},
        {"conversation": [{"human": "<video>Who?", "assistant": "Ann."}]},
        {"conversation": [{"input": "<video>Who?", "output": "Ann."}]},
    ],
)
def test_forms_of_ms_swift(tmp_path: Path, entry: dict[str, Any]) -> None:
    assert texts(one(tmp_path, {**entry, "videos": ["a.mp4"]})) == [("user", "<video>Who?"), ("assistant", "Ann.")]


def test_videochat2(tmp_path: Path) -> None:
    pairs = [{"i": "Look closely.", "q": "Who?", "a": "Ann."}, {"q": "Where?", "a": "Here."}]
    found = one(tmp_path, {"video": "a.mp4", "QA": pairs, "start": 0.5, "end": 1.5})
    assert texts(found) == [
        ("system", "Look closely."),
        ("user", "Who?"),
        ("assistant", "Ann."),
        ("user", "Where?"),
        ("assistant", "Here."),
    ]
    assert (found["media"][0]["start"], found["media"][0]["end"]) == (0.5, 1.5)
    caption = one(tmp_path, {"image": "b.jpg", "QA": [{"i": "Describe it.", "q": "", "a": "A ring."}]})
    assert texts(caption) == [("user", "Describe it."), ("assistant", "A ring.")]


def test_a_query_with_times_is_still_grounding(tmp_path: Path) -> None:
    found = one(tmp_path, {"video": "a.mp4", "query": "it runs", "start": 0, "end": 1})
    assert talk(found)[0][0] == "when"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"instruction": "Who?", "output": ""}, "its answer is empty"),
        ({"instruction": "Who?", "output": "Ann.", "history": [["Hello."]]}, r"history must be a list of \[question"),
        ({"instruction": "Who?", "output": "Ann.", "kto_tag": False}, "kto_tag false: its answer is one that nobody"),
        ({"query": "Who?", "response": "Ann.", "label": False}, "label false"),
        ({"query": "<audio>Who?", "response": "Ann.", "audios": ["a.wav"]}, "<audio> in a turn, but its sound is not"),
        ({"query": "Who?", "response": "<bbox>", "objects": {"bbox": [[1, 2, 3, 4]]}}, "boxes are not put into texts"),
        ({"conversation": [{"human": "Who?"}]}, r"conversation\[0\] must have human and assistant"),
        ({"QA": [{"q": "Who?"}]}, "QA must be a list"),
        ({"QA": [{"i": "", "q": "", "a": "Ann."}]}, "has neither q nor i"),
        ({"QA": [{"i": "x", "q": "a", "a": "b"}, {"i": "y", "q": "a", "a": "b"}]}, "has several system"),
        ({"instruction": "Who?", "chosen": "Ann.", "rejected": "Bob."}, "says nothing|needs instruction"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    put(tmp_path, "a.mp4")
    good = {"query": "Who?", "response": "Ann.", "video": "a.mp4"}
    source = put_lines(tmp_path / "x.jsonl", good, {**entry, "video": "a.mp4"}, good)
    with pytest.raises(ManifestError, match=f"1 unusable\n  line 2: .*({message})"):
        read_manifest(source)
    assert len(read_manifest(source, partial=True).samples) == 2


def test_a_liked_answer_and_unused_marks_are_fine(tmp_path: Path) -> None:
    found = one(tmp_path, {"video": "a.mp4", "query": "What is <audio>?", "response": "A mark.", "label": True})
    assert texts(found)[0] == ("user", "What is <audio>?")


# Content as a list of pieces


def pieces(*found: dict[str, Any]) -> dict[str, Any]:
    asked = [*found, {"type": "text", "text": "Which colour?"}]
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": "Grey."}]}


def test_pictures_in_the_text_of_openais_pieces(tmp_path: Path) -> None:
    url = "data:image/jpeg;base64," + base64.b64encode(image()).decode()
    entry = pieces(
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}}, {"type": "image", "image": "b.jpg"}
    )
    put(tmp_path, "b.jpg")
    source = put_json(tmp_path / "x.json", [entry])
    manifest = read_manifest(source)
    assert any(note.startswith("detail is not used") for note in manifest.notes)
    write_shards(manifest.samples, tmp_path / "out")
    (shard,) = load_index(tmp_path / "out")
    for member in ("0.jpg", "1.jpg"):
        offset, size, _ = shard.samples[0].members[member]
        assert shard.path.read_bytes()[offset : offset + size] == image()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("data:text/plain;base64,QQ==", "is no picture or video in Base64"),
        ("data:image/jpeg,abc", "is no picture or video in Base64"),
        ("data:video/mp4;base64,QQ==", "is no image by its name"),
        ("https://example.org/a.jpg", "is an address; .*download it"),
    ],
)
def test_other_urls_are_refused(tmp_path: Path, url: str, message: str) -> None:
    source = put_json(tmp_path / "x.json", [pieces({"type": "image_url", "image_url": {"url": url}})])
    with pytest.raises(ManifestError, match=message):
        read_manifest(source)


def test_damaged_data_leave_out_their_sample(tmp_path: Path) -> None:
    entry = pieces({"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,QQ=!"}})
    (sample,) = read_manifest(put_json(tmp_path / "x.json", [entry])).samples
    with pytest.raises(ShardError, match="jpg cannot be made"):
        write_shards([sample], tmp_path / "out")
