"""Miniature copies of the sets with options are read to the right items, with each known defect noted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from set_makers import as_csv, as_json, as_lines, as_parquet, load, videomme

from timeviper.benchmarking.defects import (
    BEYOND_OPTIONS,
    HIDDEN,
    NO_OPTION,
    ONE_OPTION,
    REPEATS,
    SAME_KEY,
    SHORT_GROUP,
    TWICE,
)
from timeviper.benchmarking.item import Item, SubtitleRef, VideoRef


def only(items: list[Item], key: str) -> Item:
    (found,) = [item for item in items if item.key == key]
    return found


def test_videomme(tmp_path: Path) -> None:
    videomme(tmp_path, options=["A. Red.", "B. red", "C. Blue.", "D. Grey."])
    items = load("videomme", tmp_path).items
    assert [item.key for item in items] == ["001-1", "001-2", "001-3", "002-1", "002-2", "002-3"]
    third = items[2]
    assert (third.options, third.letter, third.right) == (("Red.", "Green.", "Blue.", "None of them."), "C", 2)
    assert (third.video, third.answers) == (VideoRef("kite_Video1"), ("C",))
    assert third.label("duration") == ("short",)
    assert third.label("task") == ("Counting Problem",)
    assert third.subtitles == SubtitleRef("subtitle/kite_Video1.srt")
    assert [item.notes for item in items[:3]] == [(), (REPEATS,), ()]


def v2(video: str, kind: str, structure: str, level: str) -> list[dict[str, Any]]:
    options = "\n".join(f"{letter}. text {letter}" for letter in "ABCDEFGH")
    return [
        {
            "video_id": video,
            "url": "https://example.org",
            "group_type": kind,
            "group_structure": structure,
            "question_id": f"{video}-{n}",
            "question": f"Question {n}?",
            "options": options,
            "answer": "H",
            "level": level if n == 4 else "1",
            "second_head": "Memory" if n == 4 else "Sight",
            "third_head": None,
        }
        for n in (1, 2, 3, 4)
    ]


def test_videomme_v2_groups_by_video_even_where_rows_are_missing(tmp_path: Path) -> None:
    rows = v2("001", "relevance", "[1,2,3,4]", "3") + v2("002", "logic", "[1, [2,3], 4]", "2")
    as_parquet(tmp_path / "test.parquet", [*rows[1:], {**rows[0], "group_structure": "[1,2,3,4]"}])
    items = load("videomme_v2", tmp_path).items
    last = only(items, "001-1")
    assert (last.task, last.group, last.group_rule, last.place) == ("group", "001", "relevance", 1)
    assert (last.options[7], last.letter) == ("text H", "H")
    assert only(items, "002-2").group_rule == "[1,[2,3],4]"
    assert last.label("group_level") == ("1",)  # of the last row, as the set counts
    assert only(items, "002-1").label("group_level") == ("2",)
    as_parquet(tmp_path / "test.parquet", rows[1:])
    assert SHORT_GROUP in load("videomme_v2", tmp_path).items[0].notes


def test_lvbench(tmp_path: Path) -> None:
    asked = {
        "uid": "123",
        "question": "How many boats leave?\n(A) 3\n(B) 4\n(C) 5\nor more\n(D) none",
        "answer": "C",
        "question_type": ["ER", "KIR"],
        "time_reference": "01:05-01:20",
    }
    info = {"duration_minutes": 62, "fps": 30, "resolution": {"width": 1280, "height": 720}}
    bad = {**asked, "uid": "124", "question": "No options at all?"}
    row = {"key": "boats_Hour1", "type": "sport", "video_info": info, "qa": [asked, bad]}
    as_lines(tmp_path / "video_info.meta.jsonl", [row])
    loaded = load("lvbench", tmp_path)
    (item,) = loaded.items
    assert (item.question, item.options) == ("How many boats leave?", ("3", "4", "5\nor more", "none"))
    assert (item.letter, item.duration, item.video.name) == ("C", 3720.0, "boats_Hour1")
    assert item.label("question_type") == ("ER", "KIR")
    assert item.extra == {"time_reference": [65.0, 80.0]}
    assert [one.where for one in loaded.unread] == ["video_info.meta.jsonl, line 1, question 124"]


def mlvu(answer: str, candidates: list[str]) -> dict[str, Any]:
    told = {"question": "What is found?", "question_type": "findNeedle", "duration": 480.5}
    return {"video": "needle_12.mp4", "candidates": candidates, "answer": answer, **told}


def test_mlvu_has_answers_as_texts_and_folders_by_task(tmp_path: Path) -> None:
    four = ["A key", "A ring", "A coin", "A shoe"]
    rows = [mlvu("A ring", four), mlvu("A hat", four), mlvu("A key", ["A key", "a key.", "B", "C"])]
    as_json(tmp_path / "json" / "2_needle.json", rows)
    points = [{"video": "sub_1.mp4", "question": "What?", "answer": "This.", "scoring_points": "a, b", "duration": 9}]
    as_json(tmp_path / "json" / "8_sub_scene.json", points)
    items = load("mlvu", tmp_path).items
    assert [item.right for item in items] == [1, None, 0]
    assert [item.notes for item in items] == [(), (NO_OPTION, TWICE), (REPEATS, TWICE)]
    assert items[0].video.name == "2_needle/needle_12.mp4"
    assert items[0].label("task") == ("needle",)
    (words,) = load("mlvu_open", tmp_path).items
    assert (words.task, words.answers, words.extra) == ("open", ("This.",), {"scoring_points": "a, b"})


def longvideo(number: int, **change: Any) -> dict[str, Any]:
    row = {
        "video_id": "abc",
        "question": f"What is on the table at {number}?",
        "question_wo_referring_query": "What is on it?",
        "candidates": ["a cup", "a plate", "a fork", "a spoon", "a knife"],
        "correct_choice": 1,
        "position": [100],
        "topic_category": "KH",
        "question_category": "S2E",
        "level": "L1-Perception",
        "id": f"abc_{number}",
        "video_path": "abc.mp4",
        "subtitle_path": "abc_en.json",
        "duration_group": 15,
        "starting_timestamp_for_subtitles": 12.5,
        "duration": 11.0,
    }
    return row | change


def test_longvideobench_from_json_and_parquet(tmp_path: Path) -> None:
    as_json(tmp_path / "lvb_val.json", [longvideo(0), longvideo(1, candidates=["yes", "no", "both"])])
    items = load("longvideobench", tmp_path).items
    assert (items[0].letter, items[0].label("duration_group"), items[0].label("options")) == ("B", ("15",), ("5",))
    assert items[0].subtitles == SubtitleRef("abc_en.json", offset=12.5)
    assert items[1].options == ("yes", "no", "both")
    columns = {f"option{i}": text for i, text in enumerate(["yes", "no", "both", "N/A", "N/A"])}
    row = {k: v for k, v in longvideo(2).items() if k != "candidates"} | columns
    as_parquet(tmp_path / "hub" / "validation-00000-of-00001.parquet", [row])
    (item,) = load("longvideobench", tmp_path / "hub").items
    assert (item.options, item.letter) == (("yes", "no", "both"), "B")
    as_json(tmp_path / "test" / "lvb_test_wo_gt.json", [longvideo(3, correct_choice=-1)])
    (item,) = load("longvideobench", tmp_path / "test").items
    assert (item.right, item.answers, item.notes) == (None, (), (HIDDEN,))


def test_mvbench_cuts_clips_and_reads_folders_of_frames(tmp_path: Path) -> None:
    base = {"question": "What happened?", "candidates": ["It fell.", "It rose."], "answer": "It rose."}
    as_json(tmp_path / "json/action_sequence.json", [{"video": "AB12C.mp4", "start": 3.5, "end": 9.0, **base}])
    as_json(tmp_path / "json/action_antonym.json", [{"video": "166583.webm", **base, "start": 1, "end": 2}])
    episode = {"video": "house_s01_clip_01", "start": 0.0, "end": 5.0, "fps": 3, "subtitles": []}
    as_json(tmp_path / "json/episodic_reasoning.json", [{**episode, **base}])
    one = {"video": "video_10000.mp4", "question": "Which is it?", "candidates": ["no"], "answer": "no"}
    as_json(tmp_path / "json/counterfactual_inference.json", [one])
    items = {item.key.partition("#")[0]: item for item in load("mvbench", tmp_path).items}
    assert items["action_sequence"].video == VideoRef("star/Charades_v1_480/AB12C.mp4", start=3.5, end=9.0)
    assert items["action_antonym"].video == VideoRef("ssv2_video/166583.webm")  # the whole clip
    frames = VideoRef("tvqa/frames_fps3_hq/house_s01_clip_01", start=0.0, end=5.0, fps=3.0)
    assert items["episodic_reasoning"].video == frames
    assert items["counterfactual_inference"].notes == (ONE_OPTION,)
    assert items["action_sequence"].letter == "B"


def test_tempcompass_in_its_four_ways(tmp_path: Path) -> None:
    choice = {"question": "What does he do?\nA. walk\nB. run", "answer": "B. run"}
    as_json(tmp_path / "multi-choice.json", {"101": {"action": [choice]}})
    as_json(tmp_path / "yes_no.json", {"101": {"speed": [{"question": "Does he run?", "answer": "yes"}]}})
    pair = {"question": "Which fits?\nCaption A: He walks.\nCaption B: He runs.", "answer": "Caption B: He runs."}
    as_json(tmp_path / "caption_matching.json", {"101": {"order": [pair]}})
    told = {"question": "Describe it.", "answer": "B. run", "mc_question": "A or B?", "mc_answer": "B. run"}
    as_json(tmp_path / "captioning.json", {"101": {"action": [told]}})
    (item,) = load("tempcompass", tmp_path).items
    assert (item.question, item.options, item.letter, item.key) == (
        "What does he do?",
        ("walk", "run"),
        "B",
        "101#action#1",
    )
    (item,) = load("tempcompass_yesno", tmp_path).items
    assert (item.task, item.answers, item.label("aspect")) == ("open", ("yes",), ("speed",))
    (item,) = load("tempcompass_matching", tmp_path).items
    assert (item.question, item.options, item.right) == ("Which fits?", ("He walks.", "He runs."), 1)
    (item,) = load("tempcompass_caption", tmp_path).items
    assert (item.task, item.extra["mc_answer"]) == ("caption", "B. run")


def test_egoschema_asks_the_subset_and_hides_the_rest(tmp_path: Path) -> None:
    def row(uid: str) -> dict[str, str]:
        return {"q_uid": uid, "question": "What for?", **{f"option {i}": f"reason {i}" for i in range(5)}}

    as_json(tmp_path / "questions.json", [row("aa"), row("bb"), row("cc")])
    as_json(tmp_path / "subset_answers.json", {"bb": 4})
    loaded = load("egoschema", tmp_path)
    assert [(item.key, item.letter, item.video.name) for item in loaded.items] == [("bb", "E", "bb")]
    assert [path.name for path in loaded.files] == ["questions.json", "subset_answers.json"]
    everything = load("egoschema_full", tmp_path).items
    assert [item.right for item in everything] == [None, 4, None]
    assert [item.notes for item in everything] == [(HIDDEN,), (), (HIDDEN,)]
    as_json(tmp_path / "subset_answers.json", {"bb": 3})
    assert load("egoschema", tmp_path).digest != loaded.digest  # the answers belong to the annotations


def test_nextqa(tmp_path: Path) -> None:
    row = {
        "video": "4010069381",
        "frame_count": 369,
        "question": "why does he run",
        "answer": 3,
        "qid": 6,
        "type": "CW",
    }
    as_csv(tmp_path / "val.csv", [row | {f"a{i}": f"because {i}" for i in range(5)}])
    (item,) = load("nextqa", tmp_path).items
    assert (item.key, item.letter, item.label("kind")) == ("4010069381#6", "D", ("causal",))


def test_vnbench_groups_four_rotations(tmp_path: Path) -> None:
    texts = ["one", "two", "three", "four"]
    rows = [
        {
            "video": "./VNBench_new/cnt_edit1_5.mp4",
            "question": "How many?",
            "options": texts[turn:] + texts[:turn],
            "gt": "two",
            "gt_option": "BADC"[turn],
            "needle_time": [[3, 4], [9, 10]],
            "length": 30.0,
            "type": "cnt_edit1",
            "try": turn,
        }
        for turn in range(4)
    ]
    as_json(tmp_path / "VNBench-main-4try.json", rows)
    items = load("vnbench", tmp_path).items
    assert [item.letter for item in items] == ["B", "A", "D", "C"]
    assert {item.group_rule for item in items} == {"all"}
    assert len({item.group for item in items}) == 1
    assert [item.place for item in items] == [1, 2, 3, 4]
    assert items[0].label("task") == ("counting",)
    assert items[0].extra == {"needles": [3.0, 4.0, 9.0, 10.0]}
    as_json(tmp_path / "VNBench-main-4try.json", rows[:3])
    assert SHORT_GROUP in load("vnbench", tmp_path).items[0].notes


def test_vniah_asks_each_needle_at_all_lengths_and_depths(tmp_path: Path) -> None:
    needle = {"question": "What is on the sign?", "answer": "a bear", "image": {"bytes": b"\x89PNG", "path": "a.png"}}
    as_parquet(tmp_path / "test-00000-of-00001.parquet", [needle] * 5)
    items = load("vniah", tmp_path).items
    assert len(items) == 5 * 15 * 6
    deep = only(items, "needle2#1000#0.6")
    assert (deep.extra["at"], deep.extra["frames"], deep.answers) == (600, 1000, ("a bear",))


def test_letters_beyond_the_options_numbers_and_keys_that_come_twice(tmp_path: Path) -> None:
    base = {"video": "a.mp4", "question": "Which?", "options": ["(A) red", "(B) blue"]}
    answers = ["B", "blue", "(B) blue", 1, "C", "green", 7]
    as_lines(tmp_path / "mine.jsonl", [{"id": "1", **base, "answer": answer} for answer in answers])
    items = load("mcq", tmp_path).items
    assert [item.right for item in items] == [1, 1, 1, 1, None, None, None]
    assert [item.notes[0] if item.notes else "" for item in items[4:]] == [BEYOND_OPTIONS, NO_OPTION, BEYOND_OPTIONS]
    assert [item.key for item in items[:3]] == ["1", "1~2", "1~3"]
    assert SAME_KEY in items[1].notes
    assert TWICE in items[1].notes
