"""Miniature copies of the sets with windows and captions are read to the right items."""

from __future__ import annotations

from pathlib import Path

from set_makers import as_json, as_lines, as_parquet, load

from timeviper.benchmarking.defects import BEYOND_END, CLOCK, HIDDEN, TURNED
from timeviper.benchmarking.item import Item, VideoRef
from timeviper.datamodules.frames.part import Part


def test_charades_from_text_and_from_the_hub(tmp_path: Path) -> None:
    lines = ["3MSZA 24.3 30.4##person turn a light on.", "3MSZA 0.0 33.9##person sits.", "BAD LINE", "AO8RW 9 2##x."]
    lines += ["AO8RW 00:01 00:05##a person sits."]
    (tmp_path / "charades_sta_test.txt").write_text("\n".join(lines))
    (tmp_path / "Charades_v1_test.csv").write_text("id,subject,length\n3MSZA,X,30.96\n")
    loaded = load("charades", tmp_path)
    first, beyond, turned, clock = loaded.items
    assert (first.windows, first.duration, first.question) == (((24.3, 30.4),), 30.96, "person turn a light on.")
    assert (first.key, first.video) == ("3MSZA#1", VideoRef("3MSZA"))
    assert (beyond.notes, turned.notes) == ((BEYOND_END,), (TURNED,))
    assert (clock.windows, clock.notes) == (((1.0, 5.0),), (CLOCK,))
    assert [one.where for one in loaded.unread] == ["charades_sta_test.txt, line 3"]
    assert len(loaded.files) == 2
    row = {"video": "3MSZA.mp4", "caption": "a person sits", "timestamp": [1.5, 4.0]}
    as_parquet(tmp_path / "hub" / "test-00000-of-00001.parquet", [row])
    (item,) = load("charades", tmp_path / "hub").items
    assert (item.video.name, item.windows) == ("3MSZA", ((1.5, 4.0),))


def test_activitynet(tmp_path: Path) -> None:
    good = {"duration": 82.7, "timestamps": [[0.8, 19.9], [17.4, 60.8]], "sentences": [" A man paints.", "He stops."]}
    as_json(tmp_path / "val_2.json", {"v_abc": good, "v_bad": {**good, "sentences": ["alone"]}})
    as_json(tmp_path / "val_1.json", {"v_other": good})
    loaded = load("activitynet", tmp_path)
    assert [path.name for path in loaded.files] == ["val_2.json"]
    assert [(i.key, i.question, i.windows) for i in loaded.items] == [
        ("v_abc#1", "A man paints.", ((0.8, 19.9),)),
        ("v_abc#2", "He stops.", ((17.4, 60.8),)),
    ]
    assert loaded.unread[0].reason == "has 2 timestamps for 1 sentences"


def test_qvhighlights_has_several_windows(tmp_path: Path) -> None:
    row = {"qid": 9, "query": "a man laughs", "duration": 150, "vid": "NUsG9BgSes0_210.0_360.0"}
    seen = {"relevant_windows": [[0, 10], [40, 60]], "saliency_scores": [[4, 4, 2]], "relevant_clip_ids": [0]}
    as_lines(tmp_path / "highlight_val_release.jsonl", [row | seen, row | {"qid": 10, "query": "x"}])
    several, hidden = load("qvhighlights", tmp_path).items
    assert several.windows == ((0.0, 10.0), (40.0, 60.0))
    assert (several.label("windows"), several.video.name) == (("several",), "NUsG9BgSes0_210.0_360.0")
    assert several.extra["saliency_scores"] == [[4, 4, 2]]
    assert (hidden.windows, hidden.notes) == ((), (HIDDEN,))


def test_tvgbench_knows_clips(tmp_path: Path) -> None:
    row = {"path": "anet/v_1.mp4", "question": "the man waves", "answer": "13.4-28.1", "duration": 90.0}
    clip = {"start": 10.0, "end": 70.0, "question_type": "grounding", "source": "anet", "qsemtype": "Action"}
    whole = clip | {"start": None, "end": None}
    as_json(tmp_path / "tvgbench.json", [row | clip, row | whole, row | clip | {"answer": "13.4"}])
    loaded = load("tvgbench", tmp_path)
    cut, plain = loaded.items
    assert (cut.video.part, cut.windows) == (Part(10.0, 70.0), ((13.4, 28.1),))
    assert (plain.video.part, plain.label("qsemtype")) == (Part(), ("Action",))
    assert "start-end" in loaded.unread[0].reason


def test_timelens_reads_its_three_files(tmp_path: Path) -> None:
    entry = {"duration": 30.0, "spans": [[3.4, 10.2]], "queries": ["a  man sits ."]}
    for name in ("charades", "activitynet", "qvhighlights"):
        as_json(tmp_path / f"{name}-timelens.json", {"vid1": entry})
    items = load("timelens", tmp_path).items
    assert {item.label("source")[0] for item in items} == {"charades", "activitynet", "qvhighlights"}
    assert items[0].question == "a man sits "[:-1]
    assert items[0].windows == ((3.4, 10.2),)
    assert len({item.key for item in items}) == 3


def test_youcook2_asks_the_validation_split(tmp_path: Path) -> None:
    steps = [{"segment": [10, 15], "id": 0, "sentence": "add oil"}, {"segment": [20, 41], "id": 1, "sentence": "stir"}]
    video = {"subset": "validation", "recipe_type": "113", "duration": 60.5, "annotations": steps, "video_url": "u"}
    database = {"xHr8X2Wpmno": video, "train1": {**video, "subset": "training"}}
    as_json(tmp_path / "youcookii_annotations_trainval.json", {"database": database})
    (item,) = load("youcook2", tmp_path).items
    assert (item.task, item.answers, item.windows) == ("dense", ("add oil", "stir"), ((10.0, 15.0), (20.0, 41.0)))
    assert (item.key, item.duration, item.label("recipe_type")) == ("xHr8X2Wpmno", 60.5, ("113",))


def test_vdc_asks_five_captions_and_keeps_what_a_judge_asks(tmp_path: Path) -> None:
    kinds = ("short", "detailed", "background", "main_object", "camera")
    as_lines(tmp_path / "VDC_1k_captions.jsonl", [{"video_id": "v1"} | {f"{k}_caption": f"{k} text" for k in kinds}])
    as_lines(tmp_path / "short.jsonl", [{"v1": [{"question": "Who?", "answer": "a man", "category": "c"}]}])
    items = load("vdc", tmp_path).items
    assert [item.label("kind")[0] for item in items] == list(kinds)
    assert items[1].answers == ("detailed text",)
    assert items[0].extra["judge"][0]["answer"] == "a man"
    assert items[1].extra == {}


def test_own_files(tmp_path: Path) -> None:
    base = {"video": "a.mp4", "start": 2.0, "end": 9.0, "labels": {"kind": "x"}}
    as_lines(tmp_path / "g.jsonl", [{"id": "1", "query": "a dog", "windows": [[1, 2], [3, 4]], **base}])
    (item,) = load("grounding", tmp_path).items
    assert (item.windows, item.video.part, item.label("kind")) == (((1.0, 2.0), (3.0, 4.0)), Part(2.0, 9.0), ("x",))
    as_lines(tmp_path / "g.jsonl", [{"id": "1", "answers": ["a dog runs"], **base}])
    (item,) = load("caption", tmp_path).items
    assert (item.question, item.answers) == ("Describe the video.", ("a dog runs",))
    as_lines(tmp_path / "g.jsonl", [{"id": "1", "answers": ["a", "b"], "windows": [[0, 1], [1, 2]], **base}])
    (item,) = load("dense", tmp_path).items
    assert len(item.windows) == 2
    assert Item.from_json(item.to_json()) == item
