"""Fields that could change what a sample means are used, refused or spoken of; what is null is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from own_data import put, put_json, put_lines, record, samples, talk

from timeviper.datamodules.formats.manifest import Manifest, ManifestError, read_manifest

MESSAGES = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Bars."}]
TURNS = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "Bars."}]


def read(folder: Path, *entries: dict[str, Any], **options: Any) -> Manifest:
    put(folder, "a.mp4", "b.jpg")
    return read_manifest(put_lines(folder / "x.jsonl", *({"video": "a.mp4", **e} for e in entries)), **options)


def one(folder: Path, entry: dict[str, Any]) -> dict[str, Any]:
    (sample,) = read(folder, entry).samples
    return record(sample)


# The part of a video


@pytest.mark.parametrize(
    ("bounds", "part"),
    [
        ({"start": 0.5, "end": 1.5}, (0.5, 1.5)),
        ({"start": None, "end": 1.5}, (None, 1.5)),
        ({"begin": 1, "end": None}, (1.0, None)),
        ({"start_time": "00:00:00.500", "end_time": "0:01,5"}, (0.5, 1.5)),
        ({"Start_timestamp": "0:00:00.5", "End_timestamp": "0:00:01.5"}, (0.5, 1.5)),
        ({"clip_start_ms": 500, "clip_end_ms": "1500"}, (0.5, 1.5)),
        ({"startSeconds": "0.5 s", "endSeconds": "1.5s"}, (0.5, 1.5)),
        ({"timestamp": [0.5, 1.5]}, (0.5, 1.5)),
        ({"clip": "[0.5, 1.5]"}, (0.5, 1.5)),
        ({"time_span": "0.5 - 1.5"}, (0.5, 1.5)),
    ],
)
@pytest.mark.parametrize("talk", [{"caption": "x"}, {"question": "?", "answer": "!"}, {"conversations": TURNS}])
def test_bounds_in_many_words(tmp_path: Path, bounds: dict[str, Any], part: Any, talk: dict[str, Any]) -> None:
    (medium,) = one(tmp_path, {**bounds, **talk})["media"]
    assert (medium.get("start") or None, medium.get("end")) == part
    table = tmp_path / "x.csv"
    if "conversations" not in talk:
        row = {"video": "a.mp4", **talk, **bounds}
        cells = ["" if v is None else f'"{v}"' for v in row.values()]
        table.write_text(",".join(row) + "\n" + ",".join(cells) + "\n")
        (medium,) = record(read_manifest(table).samples[0])["media"]
        assert (medium.get("start") or None, medium.get("end")) == part


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"start": 2, "end": 1}, "needs start < end"),
        ({"start": -1, "end": 1}, "seconds from 0 on"),
        ({"start": "late"}, "start is 'late'"),
        ({"start": True}, "start is True"),
        ({"start_frame": 0, "end_frame": 30}, "has start_frame; a part is told in seconds"),
        ({"start": 0, "end": 1, "timestamp": [0, 1]}, r"in several ways \(start and end, timestamp\)"),
        ({"start": 0, "duration": 1}, "has start and duration, but no end"),
        ({"start": [0, 1], "end": [1, 2]}, "for 2 videos, but names 1"),
        ({"video": None, "image": "b.jpg", "start": 0, "end": 1}, "for 1 videos, but names 0"),
        ({"video": ["a.mp4", "a.mp4"], "start": 0, "end": 1}, "for 1 videos, but names 2"),
    ],
)
def test_bounds_that_cannot_be_are_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        read(tmp_path, {"caption": "x", **fields})


def test_bounds_of_several_videos_and_of_conversations(tmp_path: Path) -> None:
    found = one(tmp_path, {"videos": ["a.mp4", "a.mp4"], "video": None, "start": [0, 1], "end": [1, 2], "caption": "x"})
    assert [(m["start"], m["end"]) for m in found["media"]] == [(0.0, 1.0), (1.0, 2.0)]
    with pytest.raises(ManifestError, match="has start and end in a conversation; write an entry of its own"):
        read(tmp_path, {"conversations": [{"messages": MESSAGES, "start": 0, "end": 1}]})


def test_whole_videos_parts_and_moments_of_one_file(tmp_path: Path) -> None:
    entries = [
        {"caption": "All of it."},
        {"query": "it stops", "start": 1.0, "end": 1.5},
        {"caption": "Its start.", "start": 0, "end": 1},
        {"query": "it runs", "start": 0.0, "end": 0.5},
    ]
    manifest = read(tmp_path, *entries)
    moments, whole, part = (record(sample) for sample in manifest.samples)
    assert [kind for kind, _ in talk(moments)] == ["when", "when"]
    assert "start" not in moments["media"][0]
    assert (talk(whole)[0][1][1], "start" in whole["media"][0]) == ("All of it.", False)
    assert (talk(part)[0][1][1], part["media"][0]["end"]) == ("Its start.", 1.0)


# Options


@pytest.mark.parametrize(
    ("fields", "answer", "lines"),
    [
        ({"options": ["A. A dog.", "B. A cat."], "answer": "B"}, "B", ["A. A dog.", "B. A cat."]),
        ({"candidates": ["A dog.", "A cat."], "answer": "a cat"}, "a cat", ["A. A dog.", "B. A cat."]),
        ({"choices": {"A": "dog", "B": "cat"}, "answer": "(B)"}, "(B)", ["A. dog", "B. cat"]),
        ({"choices": [{"choice": "dog"}, {"choice": "cat"}], "answer": "cat"}, "cat", ["A. dog", "B. cat"]),
        ({"options": ["dog", "cat"], "answer_idx": 1}, "B. cat", ["A. dog", "B. cat"]),
        ({"a0": "dog", "a1": "cat", "a2": "cow", "answer": 2}, "C. cow", ["A. dog", "B. cat", "C. cow"]),
        ({"A": "dog", "B": "cat", "answer": "B. cat"}, "B. cat", ["A. dog", "B. cat"]),
        ({"option_a": "dog", "option_b": "cat", "answer": "A"}, "A", ["A. dog", "B. cat"]),
        ({"options": "['dog', 'cat']", "answer": "dog"}, "dog", ["A. dog", "B. cat"]),
        ({"options": "(A) dog (B) cat", "answer": "B"}, "B", ["(A) dog", "(B) cat"]),
        ({"options": [2, 3], "answer": 3}, "3", ["A. 2", "B. 3"]),
        ({"options": ["dog", "cat", "cow"], "answer": "A, C"}, "A, C", ["A. dog", "B. cat", "C. cow"]),
    ],
)
def test_options_reach_the_question(tmp_path: Path, fields: dict[str, Any], answer: str, lines: list[str]) -> None:
    (_, (question, said)) = talk(one(tmp_path, {"question": "What sleeps?", **fields}))[0]
    assert (question, said) == ("\n".join(["What sleeps?", *lines]), answer)


def test_options_that_are_shown_already_are_not_shown_twice(tmp_path: Path) -> None:
    question = "What sleeps?\nA. A dog.\nB. A cat."
    options = {"options": ["A dog.", "A cat."]}
    assert talk(one(tmp_path, {"question": question, **options, "answer": "B"}))[0][1] == [question, "B"]
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "B"}]
    assert talk(one(tmp_path, {"conversations": turns, **options}))[0][1] == [question, "B"]
    with pytest.raises(ManifestError, match="has options that none of its turns shows"):
        read(tmp_path, {"conversations": TURNS, **options})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"options": ["dog", "cat"], "answer": "C"}, "'C' is none of the options"),
        ({"options": ["dog", "cat"], "answer": "cow"}, "'cow' is none of the options"),
        ({"options": ["dog", "cat"], "answer": 1}, "counts the options from 0 is called answer_index"),
        ({"options": ["dog", "cat"], "answer": "B. dog"}, "'B. dog' is none of the options"),
        ({"options": ["dog"], "answer": "dog"}, "must be a list of 2 to 26"),
        ({"options": ["dog", ["cat"]], "answer": "dog"}, "which is no text"),
        ({"options": ["dog", "cat"], "choices": ["x", "y"], "answer": "dog"}, "its options twice"),
        ({"a0": "1", "a1": "0", "answer": 0}, "the text of an option or its number"),
        ({"options": ["dog", "cat"]}, "has a question, but no answer"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        read(tmp_path, {"question": "What?", **fields})


# System prompts, numbers, answers, turns


@pytest.mark.parametrize("name", ["system", "system_prompt", "systemPrompt", "System Message"])
def test_a_system_prompt_opens_every_conversation(tmp_path: Path, name: str) -> None:
    for said in (
        {"conversations": TURNS},
        {"messages": MESSAGES},
        {"caption": ["x", "y"]},
        {"question": "?", "answer": "!"},
    ):
        for conversation in one(tmp_path, {name: " In capitals. ", **said})["conversations"]:
            assert conversation["messages"][0] == {"role": "system", "content": "In capitals."}
            assert [m["role"] for m in conversation["messages"]][1:] == ["user", "assistant"]


def test_a_system_prompt_beside_another(tmp_path: Path) -> None:
    own = [{"from": "system", "value": "Be brief."}, *TURNS]
    assert len(one(tmp_path, {"system": "Be brief.", "conversations": own})["conversations"][0]["messages"]) == 3
    with pytest.raises(ManifestError, match="another one in them"):
        read(tmp_path, {"system": "Be long.", "conversations": own})
    with pytest.raises(ManifestError, match="several system prompts"):
        read(tmp_path, {"system": "a", "system_prompt": "b", "conversations": TURNS})
    with pytest.raises(ManifestError, match="system prompt must be text"):
        read(tmp_path, {"system": ["a"], "conversations": TURNS})


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"question": "How many?", "answer": 3}, ["How many?", "3"]),
        ({"question": "How long?", "answer": 2.5}, ["How long?", "2.5"]),
        ({"question": "What?", "answer": ["dog"]}, ["What?", "dog"]),
        ({"question": "What?", "answers": ["dog", "dog"]}, ["What?", "dog"]),
        ({"messages": [MESSAGES[0], {"role": "assistant", "content": 7}]}, ["What?", "7"]),
        ({"conversations": [TURNS[0], {"from": "gpt", "value": 0, "weight": 1}]}, ["<video>\nWhat?", "0"]),
        (
            {"conversations": [{"from": None, "role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]},
            ["?", "!"],
        ),
    ],
)
def test_numbers_are_text(tmp_path: Path, entry: dict[str, Any], said: list[str]) -> None:
    assert talk(one(tmp_path, entry))[0][1] == said


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"question": "What?", "answer": ["dog", "cat"]}, r"several answers \(\['dog', 'cat'\]\)"),
        ({"question": "What?", "answers": ["dog", "cat"]}, "several answers"),
        ({"question": "What?", "answer": True}, "answer must be text, got True"),
        ({"question": "What?", "answer": {"text": "x"}}, "answer must be text"),
        ({"question": "What?", "answer": " "}, "its answer is empty"),
        ({"question": "What?", "answer": None}, "has a question, but no answer"),
        ({"conversations": [TURNS[0], {"from": "gpt", "value": "x", "loss": False}]}, "a turn has loss False"),
        ({"messages": [MESSAGES[0], {"role": "assistant", "content": "x", "weight": 0}]}, "a turn has weight 0"),
        ({"video_path": "b.mp4", "caption": "x"}, "names its video in video and video_path"),
    ],
)
def test_what_cannot_be_learned_is_refused(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        read(tmp_path, entry)


# Turns of pieces


def test_turns_of_pieces(tmp_path: Path) -> None:
    pieces = [
        {"type": "video", "video": "file://a.mp4", "fps": 2.0, "video_start": 0.5, "video_end": 1.5},
        {"type": "text", "text": "What?"},
        {"type": "image_url", "image_url": {"url": "b.jpg"}},
        "Or this?",
    ]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "Bars."}]}
    manifest = read(tmp_path, {"video": None, "messages": [{"role": "user", "content": pieces}, answer]})
    found = record(manifest.samples[0])
    assert talk(found)[0][1] == ["<video>\nWhat?<image>\nOr this?", "Bars."]
    assert [(m["type"], m.get("start"), m.get("end")) for m in found["media"]] == [
        ("video", 0.5, 1.5),
        ("image", None, None),
    ]
    assert manifest.notes == [
        "fps is not used (1 of 1 entries): which frames are read is for data.frames of the recipe to say"
    ]
    bare = [{"type": "video"}, {"type": "text", "text": "What?"}]
    assert one(tmp_path, {"messages": [{"role": "user", "content": bare}, answer]})["media"][0]["member"] == "mp4"


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        ({"type": "audio", "audio": "a.mp3"}, "a piece of type 'audio'; known are text"),
        ({"type": "video", "video": ["1.jpg", 2]}, "must be the path of a file"),
        ({"type": "video", "video": "b.mp4"}, "names its video in its turns and beside them"),
        (7, "a turn has the piece 7"),
    ],
)
def test_pieces_that_cannot_be(tmp_path: Path, piece: Any, message: str) -> None:
    content = [piece, {"type": "text", "text": "What?"}]
    with pytest.raises(ManifestError, match=message):
        read(tmp_path, {"messages": [{"role": "user", "content": content}, MESSAGES[1]]})


# Nulls, and names of media


def test_null_and_nan_mean_absent(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4", "b.jpg")
    nothing = {"caption": None, "question": None, "answer": None, "messages": None, "start": None, "system": None}
    rows = [
        {**nothing, "video": "a.mp4", "image": None, "messages": MESSAGES},
        {**nothing, "video": None, "images": ["b.jpg"], "videos": [], "caption": "x"},
        {**nothing, "video": "a.mp4", "image": [], "question": "?", "answer": "!", "options": None},
    ]
    text = (
        "\n".join(json.dumps(row) for row in rows) + '\n{"video": "a.mp4", "caption": "y", "start": NaN, "weight": NaN}'
    )
    (tmp_path / "x.jsonl").write_text(text)
    manifest = read_manifest(tmp_path / "x.jsonl")
    assert sorted(len(record(s)["conversations"]) for s in manifest.samples) == [1, 1, 1, 1]
    assert all("start" not in m for s in manifest.samples for m in record(s)["media"])
    assert manifest.notes == []
    (tmp_path / "x.csv").write_text("video,image,caption,start\na.mp4,,x,\n,b.jpg,y,\na.mp4,,z,NaN\n")
    assert len(read_manifest(tmp_path / "x.csv").samples) == 3


def test_what_was_used_is_told_and_what_was_not(tmp_path: Path) -> None:
    entries = [
        {"caption": "x", "fps": 2.0, "source": "web", "start": 0.0, "end": 1.0},
        {"caption": "y", "fps": None, "source": "web", "subtitles": "hello", "weight": 2},
    ]
    manifest = read(tmp_path, *entries)
    assert manifest.fields == [
        "fields used: video, caption, start (1 of 2), end (1 of 2)",
        "fields kept, but not used: fps (1 of 2), source, subtitles (1 of 2), weight (1 of 2)",
        "1 of 2 entries are about the part of their file that start and end tell; if the files are cut already, "
        "--ignore these fields",
    ]
    assert [note.partition(":")[0] for note in manifest.notes] == [
        "fps is not used (1 of 2 entries)",
        "subtitles is not used (1 of 2 entries)",
        "weight is not used (1 of 2 entries)",
    ]
    ignored = read(tmp_path, *entries, ignore=["start", "end"])
    assert all("start" not in m for s in ignored.samples for m in record(s)["media"])
    assert ignored.fields[0] == "fields used: video, caption"


# Files under another name, and many entries about one file


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.json", '{"video": "a.mp4", "caption": "1"}\n{"video": "a.mp4", "caption": "2"}\n'),
        ("x.json", '\ufeff\n{"video": "a.mp4", "caption": "1"}\r\n\r\n{"video": "a.mp4", "caption": "2"}'),
        ("x.json", '{\n "video": "a.mp4",\n "caption": "1"\n}\n{\n "video": "a.mp4", "caption": "2"\n}\n'),
        ("x.jsonl", '[{"video": "a.mp4", "caption": "1"}, {"video": "a.mp4", "caption": "2"}]'),
        ("x.jsonl", '{"video": "a.mp4", "caption": "1"}\r{"video": "a.mp4", "caption": "2"}\r'),
        ("x.jsonl", '[\n{"video": "a.mp4", "caption": "1"},\n{"video": "a.mp4", "caption": "2"}\n]\n'),
        ("x.jsonl", '{\n "video": "a.mp4",\n "caption": "1"\n}\n{\n "video": "a.mp4", "caption": "2"\n}\n'),
    ],
)
def test_lists_and_lines_under_each_others_name(tmp_path: Path, name: str, text: str) -> None:
    put(tmp_path, "a.mp4")
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert [talk(found)[0][1][1] for found in samples(tmp_path / name).values()] == ["1", "2"]


def test_a_bad_line_of_lines_named_json_is_one_line(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    good = '{"video": "a.mp4", "caption": "x"}'
    (tmp_path / "x.json").write_text("\n".join(['{"video": "a.mp4", "cap', good, "{}", good]))
    with pytest.raises(ManifestError, match=r"2 unusable\n  line 1: not valid JSON.*\n  line 3: has no media"):
        read_manifest(tmp_path / "x.json")


def test_entries_about_one_file_stand_together(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4", "c.mp4")
    rows = [{"id": f"q{i}", "video": ("a.mp4", "c.mp4")[i % 2], "caption": str(i)} for i in range(6)]
    manifest = read_manifest(put_json(tmp_path / "x.json", rows))
    assert [s["__key__"] for s in manifest.samples] == ["q0", "q2", "q4", "q1", "q3", "q5"]
    assert manifest.notes == []


@pytest.mark.parametrize("form", ["llava", "messages", "moments", "captions.csv", "choices.csv", "clips.jsonl"])
def test_two_hundred_clean_entries_bring_no_note(tmp_path: Path, form: str) -> None:
    put(tmp_path, "a.mp4")
    names = [f"{i}.mp4" for i in range(200)]
    for name in names:
        (tmp_path / name).hardlink_to(tmp_path / "a.mp4")
    entries = {
        "llava": {"conversations": TURNS, "data_source": "web"},
        "messages": {"messages": MESSAGES, "type": "colour"},
        "moments": {"query": "it runs", "start": 0.5, "end": 1.5, "duration": 2.0},
        "captions.csv": {"caption": "It runs, and stops.", "views": 3},
        "choices.csv": {"question": "Who?", "a0": "a dog", "a1": "a cat", "answer": 1, "type": "who"},
        "clips.jsonl": {"start": 0.0, "end": 1.5, "caption": "It runs."},
    }
    rows = [{"id": f"{form}_{i}", "video": name, **entries[form]} for i, name in enumerate(names)]
    source = tmp_path / (form if "." in form else "x.json")
    if source.suffix == ".csv":
        cells = "".join(",".join(f'"{v}"' for v in row.values()) + "\n" for row in rows)
        source.write_text(",".join(rows[0]) + "\n" + cells)
    elif source.suffix == ".jsonl":
        put_lines(source, *rows)
    else:
        put_json(source, rows)
    manifest = read_manifest(source)
    assert (len(manifest.samples), manifest.notes, manifest.unusable) == (200, [], [])
