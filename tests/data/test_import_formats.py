"""Data in the forms that people have: each read right, and what is wrong with it said once, with its place."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from own_data import image, put, put_json, put_lines, put_tar, samples, talk, video

from timeviper.datamodules.build import load_index
from timeviper.datamodules.checks.shards import check_shards
from timeviper.datamodules.formats.manifest import ManifestError, read_manifest
from timeviper.datamodules.formats.talk import QUESTIONS
from timeviper.datamodules.formats.timed_text import read_timed_text
from timeviper.datamodules.shards.pool import write_shards
from timeviper.datamodules.shards.schema import SchemaError
from timeviper.datamodules.when import parse_interval, span

A_DOG = "A dog runs."


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


# LLaVA's conversations


def test_llava_list(tmp_path: Path) -> None:
    put(tmp_path / "root", "a.mp4", "b.mp4", "coco/1.jpg", "coco/2.jpg")
    entries = [
        {"id": "one", "image": "coco/1.jpg", "conversations": turns("<image>\nWhat?", "Grey."), "data_source": "coco"},
        {"id": "two", "video": "a.mp4", "conversations": turns("<image>\nWho?", A_DOG, "Where?", "Here, <image>!")},
        {"id": 3, "image": ["coco/1.jpg", "coco/2.jpg"], "conversations": turns("<image> or <image>?", "Both.")},
        {"id": "mixed", "video": "b.mp4", "image": "coco/1.jpg", "conversations": turns("<image> in <video>?", "No.")},
        {"id": "text", "conversations": turns("What is <|im_end|>?", "A token, <|im_end|>.")},
        {"id": "one", "video": ["a.mp4", "b.mp4"], "conversations": turns("Which is longer?", "Neither.")},
    ]
    manifest = read_manifest(put_json(tmp_path / "x.json", entries), media_root=tmp_path / "root")
    assert manifest.form == "json"
    assert manifest.notes == [
        "1 of 6 samples are text alone, without media",
        "1 keys are used more than once; the later ones got a number (one-2 ...)",
    ]
    found = samples(tmp_path / "x.json", media_root=tmp_path / "root")
    assert list(found) == ["one", "two", "3", "mixed", "text", "one-2"]
    assert (found["one"]["data_source"], found["one"]["id"]) == ("coco", "one")
    assert found["two"]["conversations"][0]["messages"][0]["content"] == "<video>\nWho?"
    assert found["two"]["conversations"][0]["messages"][3]["content"] == "Here, <image>!", "an answer is text"
    assert [m["member"] for m in found["3"]["media"]] == ["0.jpg", "1.jpg"]
    assert [m["type"] for m in found["mixed"]["media"]] == ["image", "video"], "as the placeholders stand"
    assert found["text"]["media"] == []
    assert "<|im_end|>" in found["text"]["conversations"][0]["messages"][1]["content"]
    write_shards(manifest.samples, tmp_path / "out")
    index = {s.key: s for s in load_index(tmp_path / "out")[0].samples}
    assert (index["text"].media, index["text"].frames, index["mixed"].frames) == ("none", 0, 9)


def test_text_alone_is_read_as_a_sample(tmp_path: Path) -> None:
    from timeviper.config import ChatConfig, DataConfig, FramesConfig, SourceConfig
    from timeviper.datamodules.mixture import Source
    from timeviper.datamodules.plan import CostModel, Plan
    from timeviper.datamodules.reader import PackFormat, PackReader
    from timeviper.tokenizer import Tokenizer

    put(tmp_path, "a.mp4")
    own = [
        {"conversations": turns("What is 1 + 1?", "2")},
        {"video": "a.mp4", "caption": A_DOG},
    ]
    write_shards(read_manifest(put_lines(tmp_path / "m.jsonl", *own)).samples, tmp_path / "out")
    sources = {"mine": Source("mine", load_index(tmp_path / "out"))}
    data = DataConfig(tokens_per_pack=512, packs_per_step=1, frames=FramesConfig(max_frames=2))
    data.sources["mine"] = SourceConfig(shards=str(tmp_path / "out"))
    cost = CostModel(
        tokens_per_frame=4, vision_share=1.0, frame_work=1.0, estimate=lambda size, frames, turns: size + 20
    )
    plan = next(Plan(sources, data, {}, cost, 0).steps())
    reader = PackReader(Tokenizer.load(), PackFormat(ChatConfig(), 16, 4, 512))
    batch = reader[plan]
    assert batch.skipped == []
    assert 0 in batch.packs[0].frame_counts
    assert batch.packs[0].num_labels > 0


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"image": "gone.jpg", "conversations": turns("?", "!")}, "there is no file"),
        ({"image": "a.jpg", "conversations": turns("<image><image>?", "!")}, r"placeholders for \['image', 'image'\]"),
        ({"conversations": turns("<image>?", "!")}, r"placeholders for \['image'\], but media \[\]"),
        ({"image": "a.jpg", "conversations": turns("?")}, "alternate user, assistant"),
        ({"image": "a.jpg", "conversations": turns("?", " ")}, "not empty"),
        ({"image": "a.jpg", "conversations": [{"from": "narrator", "value": "x"}]}, "'narrator'; known: human"),
        ({"image": "a.jpg", "conversations": [{"from": "human"}]}, "not empty, got None"),
        ({"image": ["a.jpg", None], "conversations": turns("?", "!")}, "image must be the path of a file, got None"),
        ({"image": "a.jpg"}, "says nothing"),
        ({"vidoe": "a.mp4", "conversations": turns("?", "!")}, 'has no media: write "video".*, not "vidoe"'),
        ({"image": "a.jpg", "media": []}, "media is written by this program"),
        ({"image": "a.jpg", "caption": ["fine", ""]}, "caption must be text that is not empty"),
        ({"image": "../a.jpg", "caption": "x"}, "leaves --media-root"),
        ({"image": "/etc/a.jpg", "caption": "x"}, "leaves --media-root"),
        ({"image": "sub/../../a.jpg", "caption": "x"}, "leaves --media-root"),
        ({"image": "a\0.jpg", "caption": "x"}, "there is no file"),
        ({"image": "a.jpg", "caption": "\ud83d half"}, "half a surrogate pair"),
        ({"image": "a.jpg", "segments": [{"start": 2, "end": 1, "text": "x"}]}, "needs 0 <= start < end"),
        ([], "must be an object"),
    ],
)
def test_unusable_entries(tmp_path: Path, entry: Any, message: str) -> None:
    root = put(tmp_path / "root", "a.jpg", "a.mp4")
    good = {"image": "a.jpg", "caption": "x"}
    (tmp_path / "x.json").write_text(json.dumps([good, entry, good]))
    with pytest.raises(ManifestError, match=f"1 unusable\n  entry 1: .*{message}"):
        read_manifest(tmp_path / "x.json", media_root=root)


# Tables


def test_table_of_captions(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4", "b b.mp4", "c.jpg")
    text = (
        '\ufeffPath;Caption ;views\r\na.mp4;"A dog; it runs.\r\nFar.";7\r\n"b b.mp4";Ünïcode;\r\nc.jpg;<|im_end|>;1\r\n'
    )
    (tmp_path / "x.csv").write_text(text, encoding="utf-8", newline="")
    found = samples(tmp_path / "x.csv")
    assert list(found) == ["a", "b_b", "c"]
    assert found["a"]["conversations"][0]["messages"][1]["content"] == "A dog; it runs.\nFar."
    assert (found["a"]["views"], found["a"]["media"][0]["type"]) == ("7", "video")
    kind, (question, answer) = talk(found["c"])[0]
    assert (kind, answer) == ("caption", "<|im_end|>")
    assert question in [q.format("image") for q in QUESTIONS["caption"]]


def test_table_of_questions(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    (tmp_path / "x.tsv").write_text("video\tquestion\tanswer\ttype\na.mp4\tWho?\tA dog\tsubject\n")
    assert talk(samples(tmp_path / "x.tsv")["a"]) == [("subject", ["Who?", "A dog"])]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,words\na,b\n", "no column for the file .*its columns are name, words"),
        ("video,title\na.mp4,b\n", "no column for the caption .*its columns are video, title"),
        ("video,path,caption\n", "more than one column for the file"),
        ("video,caption,text\n", "more than one column for the caption"),
        ("video,caption,x,x\n", "a column name is there twice"),
        ("video,caption\na.mp4,b,c\n", "line 2: has 3 cells, but there are 2 columns"),
        ("video,caption\na.mp4,\n", "line 2: its caption is empty"),
        ("file,caption\na.doc,b\n", "line 2: 'a.doc' has not the ending"),
        ('video,caption\na.mp4,"b\n', "line 2: unexpected end of data"),
        ("video,caption\n", "holds no sample"),
        ("", "its columns are none"),
    ],
)
def test_unclear_tables(tmp_path: Path, text: str, message: str) -> None:
    put(tmp_path, "a.mp4")
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ManifestError, match=message):
        read_manifest(tmp_path / "x.csv")


# Temporal grounding


def test_grounding_forms(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4", "v_1.mkv")
    flat = [
        {"video": "a.mp4", "query": "a dog runs.", "start": 0.5, "end": 1, "qid": 7},
        {"video": "v_1", "query": "When does it stop?", "timestamp": [1, "1.5"]},
        {"video": "a.mp4", "query": "it stops", "start_time": 1.02, "end_time": 1.04},
    ]
    keyed = {
        "v_1": {"timestamps": [[1, 1.5]], "sentences": ["When does it stop?"]},
        "a.mp4": {"duration": 2.0, "timestamps": [[0.5, 1], [1.02, 1.04]], "sentences": ["a dog runs.", "it stops"]},
    }
    for path in (put_lines(tmp_path / "x.jsonl", *flat), put_json(tmp_path / "x.json", keyed)):
        found = samples(path)
        assert set(found) == {"a", "v_1"}
        assert talk(found["v_1"]) == [("when", ["When does it stop?", "from 1.0 to 1.5 seconds"])]
        (_, (question, answer)), (_, (_, fine)) = talk(found["a"])
        assert "a dog runs" in question
        assert question.endswith("?")
        assert parse_interval(answer) == (0.5, 1.0)
        assert parse_interval(fine) == (1.02, 1.04)
        assert found["a"]["segments"][0] == {"start": 0.5, "end": 1, "text": "a dog runs."}
    assert samples(tmp_path / "x.jsonl")["a"]["conversations"][0]["qid"] == 7
    assert found["a"]["duration"] == 2.0
    write_shards(read_manifest(tmp_path / "x.json").samples, tmp_path / "out")
    assert check_shards(tmp_path / "out").problems == []


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"video": "a.mp4", "query": "x", "start": 2, "end": 1}, "needs 0 <= start < end"),
        ({"video": "a.mp4", "query": "x", "start": 1, "end": "late"}, "'late' is no number"),
        ({"video": "a.mp4", "query": "x", "timestamp": [1]}, r"must be \[start, end\]"),
        ({"video": "a.mp4", "query": "x"}, "says no times"),
        ({"video": "a.mp4", "query": " ", "start": 1, "end": 2}, "query must be text"),
        ({"query": "x", "start": 1, "end": 2}, "does not name the video"),
        ({"video": "b", "query": "x", "start": 1, "end": 2}, "no file .*b with the ending of a video"),
        ({"video": "two", "query": "x", "start": 1, "end": 2}, "could be any of two.mp4, two.mkv"),
        ({"video": "a.mp4", "timestamps": [[1, 2]], "sentences": []}, "lists of one length"),
        ({"video": "a.mp4", "query": "x", "start": 1, "end": 1.0001}, "shorter than a millisecond"),
    ],
)
def test_unusable_grounding(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    put(tmp_path, "a.mp4", "two.mp4", "two.mkv")
    source = put_lines(tmp_path / "x.jsonl", {"video": "a.mp4", "query": "x", "start": 0, "end": 1}, entry)
    with pytest.raises(ManifestError, match=f"1 unusable\n  line 2: .*{message}"):
        read_manifest(source)


def test_span_keeps_its_ends_apart() -> None:
    assert span(2, 5) == "from 2.0 to 5.0 seconds"
    assert span(2.01, 2.04) == "from 2.01 to 2.04 seconds"


# Timed captions

VTT = """\ufeffWEBVTT - a title
Kind: captions

STYLE
::cue { color: red }

NOTE a remark
that goes on

1
00:00.000 --> 00:01.500 line:0 align:start
<v.loud Ann>It&nbsp;<i>starts</i> &amp; <00:00:01.000><c.red>turns</c>
again

00:00:01.500 --> 01:00:02.000
1 < 2

00:03.000 --> 00:04.000

"""
SRT = """1\r
00:00:00,000 --> 00:00:01,500  X1:1 X2:2\r
{\\an8}<font color="red">It starts</font>\r
and turns\r
\r
2\r
0:00:01.500 --> 00:00:02,0\r
End.\r
"""
TTML = """<?xml version="1.0" encoding="UTF-8"?>
<tt xmlns="http://www.w3.org/ns/ttml" xmlns:ttp="http://www.w3.org/ns/ttml#parameter"
    ttp:frameRate="24" ttp:frameRateMultiplier="1000 1001" ttp:tickRate="10">
  <head><metadata><p>not a cue</p></metadata></head>
  <body><div begin="1s">
    <p begin="0.5s" dur="500ms">Half<br/>a <span>second</span></p>
    <p begin="00:00:01:12" end="20t">frames</p>
    <p begin="0.05m"><span end="1s">no</span> <span begin="1s" dur="1s">yes</span></p>
  </div><p begin="00:00:01.25" end="00:00:02">clock</p></body>
</tt>"""


def test_webvtt(tmp_path: Path) -> None:
    (tmp_path / "a.vtt").write_text(VTT, encoding="utf-8")
    assert read_timed_text(tmp_path / "a.vtt").segments == [
        {"start": 0.0, "end": 1.5, "text": "Ann: It starts & turns again"},
        {"start": 1.5, "end": 3602.0, "text": "1 < 2"},
    ]


def test_srt(tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_bytes(SRT.encode("utf-8-sig"))
    assert read_timed_text(tmp_path / "a.srt").segments == [
        {"start": 0.0, "end": 1.5, "text": "It starts and turns"},
        {"start": 1.5, "end": 2.0, "text": "End."},
    ]


def test_ttml(tmp_path: Path) -> None:
    (tmp_path / "a.ttml").write_text(TTML)
    assert read_timed_text(tmp_path / "a.ttml").segments == [
        {"start": 1.5, "end": 2.0, "text": "Half a second"},
        {"start": pytest.approx(2 + 12 * 1001 / 24000), "end": 3.0, "text": "frames"},
        {"start": 4.0, "end": 5.0, "text": "no"},
        {"start": 5.0, "end": 6.0, "text": "yes"},
        {"start": 1.25, "end": 2.0, "text": "clock"},
    ]


BOMB = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><tt><p end="1s">&b;</p></tt>'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.vtt", "1\n00:00.000 --> 00:01.000\nx", "does not begin with WEBVTT"),
        ("a.vtt", "WEBVTT\n\n00:00 -> 00:01\nx", r"line 3 \('00:00 -> 00:01.* is below no line of times"),
        ("a.vtt", "WEBVTT\n\n00:0x.0 --> 00:01.0\nx", "times of line 3 cannot be read"),
        ("a.vtt", "WEBVTT\n\n00:02.000 --> 00:01.000\nx", r"segments\[0\] runs from 2.0 to 1.0"),
        ("a.vtt", "WEBVTT\n", "has no cue with text"),
        ("a.srt", "and more\n\n1\n00:00:00,0 --> 00:00:01,0\nx", r"line 1 \('and more'\) is below no line of times"),
        ("a.srt", "1\n00:00:00,0 --> 00:00:01,0\nx\n\n2\nand more", r"line 5 \('2\\nand more'\) is below no"),
        ("a.srt", "1\n00:00:00,0 --> 00:00:01,0\nx\n\n00:00:01,0 -> 00:00:02,0\ny", "line 5 .*is below no"),
        ("a.ttml", BOMB, "has a DOCTYPE"),
        ("a.ttml", "<tt><p end='1s'>x</tt>", "not well-formed XML"),
        ("a.ttml", "<html/>", "is not TTML: its root is 'html'"),
        ("a.ttml", "<tt><p begin='1s'>x</p></tt>", "'x' has no end"),
        ("a.ttml", "<tt><p end='soon'>x</p></tt>", "the time 'soon' cannot be read"),
        ("a.ttml", "<tt><p>a <span end='1s'>b</span></p></tt>", "'a' stands between timed parts"),
        ("a.ttml", "<tt><body timeContainer='seq'><p dur='1s'>x</p></body></tt>", "only par is read"),
        ("a.ttml", "<tt frameRate='0'/>", "frameRate.*cannot be used"),
    ],
)
def test_unusable_timed_text(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SchemaError, match=f"{name}: .*{message}"):
        read_timed_text(tmp_path / name)


def test_timed_text_of_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_bytes("1\n00:00:00,0 --> 00:00:01,0\né".encode("latin-1"))
    with pytest.raises(SchemaError, match=r"a.srt is not UTF-8 .*iconv"):
        read_timed_text(tmp_path / "a.srt")


# Folders


def test_folder(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4", "b c.d/e é.mp4", "f.JPG", ".hidden.mp4", ".git/g.mp4")
    (tmp_path / "a.en.srt").write_text("1\n0:00:00,0 --> 0:00:01,0\nIt starts.\n\n2\n0:00:01,0 --> 0:00:02,0\nEnd.")
    (tmp_path / "b c.d" / "e é.txt").write_text("A\nring.\n")
    put_json(tmp_path / "f.json", {"question": "Which colour?", "answer": "grey", "type": "colour", "by": "me"})
    found = samples(tmp_path)
    assert list(found) == ["a", "b_c_d_e_é", "f"]
    kinds = [kind for kind, _ in talk(found["a"])]
    assert kinds == ["dense", "segment", "segment"]
    assert talk(found["a"])[0][1][1] == "from 0.0 to 1.0 seconds: It starts.\nfrom 1.0 to 2.0 seconds: End."
    assert "from 1.0 to 2.0 seconds" in talk(found["a"])[2][1][0]
    assert [s["text"] for s in found["a"]["segments"]] == ["It starts.", "End."]
    assert talk(found["f"]) == [("colour", ["Which colour?", "grey"])]
    assert found["f"]["by"] == "me"
    write_shards(read_manifest(tmp_path).samples, tmp_path / "out")
    assert check_shards(tmp_path / "out").problems == []


def test_a_caption_and_timed_captions_are_both_used(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    (tmp_path / "a.txt").write_text("All of it.")
    (tmp_path / "a.vtt").write_text("WEBVTT\n\n00:00.000 --> 00:01.000\nIt starts.")
    assert [kind for kind, _ in talk(samples(tmp_path)["a"])] == ["caption", "dense", "segment"]


def test_unusable_files_of_a_folder_are_all_named(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4", "b.mp4", "c.mp4", "d.mp4")
    (tmp_path / "b.txt").write_text(" ")
    for name in ("c.fr.vtt", "c.de.vtt"):
        (tmp_path / name).write_text("WEBVTT\n\n00:00.000 --> 00:01.000\nx")
    (tmp_path / "d.json").write_bytes(b"\xff")
    (tmp_path / "e.json").write_text("{}")
    with pytest.raises(ManifestError) as error:
        read_manifest(tmp_path)
    says = [
        "a.mp4: has none of a.json",
        "b.mp4: caption must be",
        "c.mp4: has c.de.vtt, c.fr.vtt",
        "d.mp4: d.json is not",
    ]
    for problem, words in zip(error.value.problems, [*says, "e.json: belongs to no video"], strict=True):
        assert problem.startswith(words)


# WebDataset tars


def test_tars(tmp_path: Path) -> None:
    ours = {"media": [{"type": "video", "member": "mp4", "duration": 2.0}], "conversations": talk_of("Who?", "A dog.")}
    put_tar(
        tmp_path / "in" / "00.tar",
        ("./a.mp4", video()),
        ("./a.txt", b"A dog."),
        ("data/b.json", json.dumps({"caption": "Grey.", "url": "http://x", "image": "/mnt/b.jpg"}).encode()),
        ("data/b.jpg", image()),
        ("data/b.cls", b"3"),
        ("c.json", json.dumps(ours).encode()),
        ("c.mp4", video()),
    )
    turned = {"conversations": turns("<image> and <image>?", "Alike.")}
    many = [(f"a.{i}.jpg", image()) for i in (10, 2)]
    text = {"media": [], "conversations": talk_of("1 + 1?", "2")}
    put_tar(
        tmp_path / "in" / "01.tar",
        *many,
        ("a.json", json.dumps(turned).encode()),
        ("t.json", json.dumps(text).encode()),
    )
    manifest = read_manifest(tmp_path / "in")
    assert manifest.form == "tars"
    found = samples(tmp_path / "in")
    assert list(found) == ["a", "data_b", "c", "a-2", "t"]
    assert talk(found["a"])[0][1][1] == "A dog."
    assert (found["data_b"]["url"], found["data_b"]["image_name"]) == ("http://x", "/mnt/b.jpg")
    assert found["c"]["media"] == ours["media"]
    assert [m["member"] for m in found["a-2"]["media"]] == ["2.jpg", "10.jpg"]
    write_shards(manifest.samples, tmp_path / "out")
    shard = load_index(tmp_path / "out")[0]
    records = {s.key: s for s in shard.samples}
    assert set(records["data_b"].members) == {"json", "jpg", "cls"}, "carried over"
    offset, size, _ = records["a"].members["mp4"]
    assert shard.path.read_bytes()[offset : offset + size] == video()


def talk_of(question: str, answer: str) -> list[dict[str, Any]]:
    return [{"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.tar", b"x"), ("a.json", b'{"question": "?", "answer": "!"}')], r"has a tar in it \(a.tar\)"),
        ([("../a.mp4", b"x")], "points out of the archive"),
        ([("/etc/a.mp4", b"x")], "points out of the archive"),
        ([("a.mp4", b"x")], "sample 'a': has mp4 but no json, txt or timed captions"),
        ([("a.mp4", b"x"), ("a.txt", b"\xff")], "its txt is not UTF-8"),
        ([("a.mp4", b"x"), ("a.json", b"[" * 100_000)], "not valid JSON"),
        ([("a.mp4", b"x"), ("a.txt", b"x"), ("a.mp4", b"x"), ("a.txt", b"x")], "a file is there twice"),
    ],
)
def test_unusable_tars(tmp_path: Path, members: list[tuple[str, bytes]], message: str) -> None:
    put_tar(tmp_path / "x.tar", *members)
    with pytest.raises(ManifestError, match=f"x.tar.*{message}"):
        read_manifest(tmp_path / "x.tar")


def test_tars_with_links_or_of_gzip_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        info = tarfile.TarInfo("a.mp4")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    (tmp_path / "y.tar.gz").write_bytes(b"")
    with pytest.raises(ManifestError, match=r"x.tar: member 'a.mp4' is no plain file(.|\n)*y.tar.gz: is compressed"):
        read_manifest(tmp_path)


# Which format


@pytest.mark.parametrize(
    ("name", "text", "form", "message"),
    [
        ("x.xlsx", "", "auto", "no known ending"),
        ("x.json", '{"a": 1}', "auto", "holds an object with a; needed is a list"),
        ("x.json", "3", "auto", "holds int"),
        ("x.json", '[{"a": Infinity}]', "auto", "Infinity is not a number of JSON"),
        ("x.json", "[", "auto", "not valid JSON"),
        ("x.jsonl", "", "auto", "holds no sample"),
        ("x.jsonl", "{}", "xml", "no format 'xml'; known are auto, json"),
        ("x.jsonl", "{}", "folder", "no known ending"),
        ("", "", "table", "is a folder"),
    ],
)
def test_formats_that_are_not_clear(tmp_path: Path, name: str, text: str, form: str, message: str) -> None:
    if name:
        (tmp_path / name).write_text(text)
    with pytest.raises(ManifestError, match=message):
        read_manifest(tmp_path / name, form)


def test_a_folder_of_tars_and_media_needs_a_word(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    (tmp_path / "a.txt").write_text("x")
    put_tar(tmp_path / "x.tar", ("b.txt", b"y"), ("b.mp4", video()))
    with pytest.raises(ManifestError, match="both tars and media"):
        read_manifest(tmp_path)
    assert list(samples(tmp_path, "folder")) == ["a"]
    assert list(samples(tmp_path, "tars")) == ["b"]
