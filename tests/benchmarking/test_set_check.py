"""A test set is held against what was published of it, and what is bad about a download is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from set_makers import as_json, as_lines, as_parquet, load, video, video_of_two, videomme
from shard_helpers import clip
from tree import ROOT

from timeviper.benchmarking.check import Checked, check_set, compare_with
from timeviper.benchmarking.registry import SETS, load_set
from timeviper.datamodules.shards.pool import write_shards


def problems(name: str, folder: Path, videos: bool = False, part: bool = True) -> str:
    return "\n".join(check_set(load(name, folder, videos), part=part).problems)


def test_a_whole_part_has_no_problem_and_all_is_counted(tmp_path: Path) -> None:
    videomme(tmp_path)
    video_of_two(tmp_path)
    (tmp_path / "subtitle").mkdir()
    (tmp_path / "subtitle" / "kite_Video1.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nhello\n")
    loaded = load("videomme", tmp_path, videos=True)
    checked = check_set(loaded, part=True)
    assert checked.problems == []
    assert (checked.items, checked.videos) == (6, 2)
    assert {c.what: c.found for c in checked.counts}["letter B"] == 2
    assert list(checked.lengths.values()) == [2.0, 2.0]
    with_text = [item.subtitles is not None for item in loaded.items]
    assert with_text == [True] * 3 + [False] * 3
    assert "--part allows it" in problems("videomme", tmp_path, part=False)


def test_a_missing_video_stays_in_the_denominator(tmp_path: Path) -> None:
    videomme(tmp_path)
    video(tmp_path / "data" / "kite_Video1.MP4")
    loaded = load("videomme", tmp_path, videos=True)
    assert [item.video.missing for item in loaded.items] == [False] * 3 + [True] * 3
    assert loaded.missing == {"-boat_Vid02": "no file of this name"}
    (told,) = check_set(loaded, part=True).problems
    assert told.startswith("1 of 2 videos are missing: -boat_Vid02")
    assert "their 3 of 6 items stay in the denominator" in told


def test_another_split_is_named(tmp_path: Path) -> None:
    (tmp_path / "charades_sta_train.txt").write_text("AB 0.0 2.0##a person sits.\n" * 12408)
    told = check_set(load_set("charades", tmp_path / "charades_sta_train.txt")).problems
    assert told[0] == "these are 12,408 questions: that is the training split, not Charades-STA"
    video_of = {"subset": "training", "duration": 9.0, "annotations": [{"segment": [0, 2], "sentence": "x"}]}
    as_json(tmp_path / "yc" / "all.json", {"database": {"a": video_of}})
    with pytest.raises(ValueError, match="no video of subset validation, but training: it is another split"):
        load("youcook2", tmp_path / "yc")


def test_annotations_of_another_set_or_version_are_refused(tmp_path: Path) -> None:
    row = {"video_id": "001", "url": "u", "group_type": "logic", "group_structure": "[1,2,3,4]", "question_id": "001-1"}
    as_parquet(tmp_path / "test.parquet", [row | {"question": "?", "options": "A. a\nB. b", "answer": "A"}])
    with pytest.raises(ValueError, match=r"has no videoID .*looks like annotations of videomme_v2"):
        load("videomme", tmp_path)
    videomme(tmp_path / "new", duration="endless")
    assert "duration has values that the set has not: endless" in problems("videomme", tmp_path / "new")
    with pytest.raises(ValueError, match=r"no test set 'videome'\. Did you mean videomme"):
        load_set("videome", tmp_path)
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "test.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"has no videomme/test-\*.parquet .*it has test.csv"):
        load("videomme", tmp_path / "csv")


def test_more_than_was_published_is_another_version(tmp_path: Path) -> None:
    row = {"video": "a.mp4", "question": "?", "candidates": ["x", "y"], "answer": "x"}
    as_json(tmp_path / "moving_count.json", [row | {"question": f"{i}?"} for i in range(201)])
    assert "task moving_count 201 for 200" in problems("mvbench", tmp_path)


def test_answers_that_cannot_be_right_are_problems(tmp_path: Path) -> None:
    videomme(tmp_path, answer="F")
    assert "letter beyond the options: 1 items (001-2)" in problems("videomme", tmp_path)
    videomme(tmp_path, answer="Purple.")
    assert "answer is no option: 1 items (001-2)" in problems("videomme", tmp_path)
    videomme(tmp_path, options=["A. Red.", "B. red", "C. Blue.", "D. Grey."])
    checked = check_set(load("videomme", tmp_path), part=True)
    assert checked.problems == []  # known of the set: a note
    assert any("repeated option: 1 items (001-2)" in note and "10 were published" in note for note in checked.notes)


def test_times_as_minutes_are_read_and_told(tmp_path: Path) -> None:
    rows = [{"id": "1", "video": "a.mp4", "query": "x", "windows": [["01:05", "01:20"]], "duration": 90}]
    as_lines(tmp_path / "mine.jsonl", rows)
    loaded = load("grounding", tmp_path)
    assert loaded.items[0].windows == ((65.0, 80.0),)
    assert "time as MM:SS: 1 items" in check_set(loaded).problems[0]


def test_videos_of_other_names_want_a_list(tmp_path: Path) -> None:
    info = {"duration_minutes": 2 / 60, "fps": 10, "resolution": {"width": 64, "height": 48}}
    asked = {"uid": "1", "question": "?\n(A) x\n(B) y", "answer": "A", "question_type": ["ER"], "time_reference": ""}
    as_lines(
        tmp_path / "video_info.meta.jsonl", [{"key": "Boats_Hour1", "type": "x", "video_info": info, "qa": [asked]}]
    )
    video(tmp_path / "videos" / "00000000.mp4")
    (told,) = check_set(load("lvbench", tmp_path, videos=True), part=True).problems
    assert "There are 1 videos of other names, such as 00000000.mp4: say which is which with --names" in told
    names = as_json(tmp_path / "names.json", {"Boats_Hour1": "00000000.mp4"})
    loaded = load_set("lvbench", tmp_path / "video_info.meta.jsonl", tmp_path / "videos", names)
    assert check_set(loaded, part=True).problems == []
    table = tmp_path / "names.csv"
    table.write_text("Boats_Hour1,00000000.mp4\n")
    assert not load_set("lvbench", tmp_path / "video_info.meta.jsonl", tmp_path / "videos", table).missing
    table.write_text("Boats_Hour1\n")
    with pytest.raises(ValueError, match="must have two columns"):
        load_set("lvbench", tmp_path / "video_info.meta.jsonl", tmp_path / "videos", table)


def test_two_videos_of_one_name_are_not_guessed(tmp_path: Path) -> None:
    videomme(tmp_path)
    video_of_two(tmp_path)
    video(tmp_path / "older" / "kite_Video1.mp4")
    assert load("videomme", tmp_path, videos=True).missing["kite_Video1"].startswith("could be any of")


def test_a_download_that_was_refused_is_told(tmp_path: Path) -> None:
    path = tmp_path / "lvb_val.json"
    for content in ("<!DOCTYPE html><html>log in</html>", "Access to dataset x/y is restricted."):
        path.write_text(content)
        with pytest.raises(ValueError, match="accept the terms of the set on its page"):
            load("longvideobench", tmp_path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ValueError, match="pointer of Git LFS"):
        load("longvideobench", tmp_path)
    path.write_text("")
    with pytest.raises(ValueError, match="is empty"):
        load("longvideobench", tmp_path)


def test_a_gated_set_without_its_licence_file_is_noted(tmp_path: Path) -> None:
    row = {"video": "a.mp4", "duration": 9, "question": "?", "candidates": ["x", "y"], "answer": "x"}
    as_json(tmp_path / "mlvu" / "json" / "4_count.json", [row])

    def licence() -> str:
        return next(n for n in check_set(load("mlvu", tmp_path / "mlvu")).notes if n.startswith("licence"))

    assert "no licence file lies beside" in licence()
    (tmp_path / "mlvu" / "README.md").write_text("license: cc-by-nc-sa-4.0")
    assert "no licence file" not in licence()


def test_broken_and_other_videos_are_named(tmp_path: Path) -> None:
    videomme(tmp_path)
    video(tmp_path / "data" / "kite_Video1.mp4")
    (tmp_path / "data" / "-boat_Vid02.mp4").write_bytes(b"not a video")
    (told,) = check_set(load("videomme", tmp_path, videos=True), part=True).problems
    assert told.startswith("1 of 2 videos cannot be decoded: -boat_Vid02")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "charades_sta_test.txt").write_text("AB 0.5 1.5##sits.\nCD 0.5 9.0##sits.\n")
    (tmp_path / "c" / "Charades_v1_test.csv").write_text("id,length\nAB,30.5\n")
    video(tmp_path / "c" / "AB.mp4")
    video(tmp_path / "c" / "CD.mp4")
    told = problems("charades", tmp_path / "c", videos=True)
    assert "other length: AB (2.0 s, but the set says 30.5 s)" in told
    assert "window outside: CD (until 9.0 s of 2.0 s)" in told


def test_clips_that_were_cut_already_are_not_cut_again(tmp_path: Path) -> None:
    base = {"question": "What?", "candidates": ["x", "y"], "answer": "y"}
    rows = [
        {"video": "AB12C.mp4", "start": 3.5, "end": 5.5, **base},
        {"video": "long.mp4", "start": 1, "end": 9, **base},
    ]
    as_json(tmp_path / "json" / "action_sequence.json", rows)
    video(tmp_path / "star" / "Charades_v1_480" / "AB12C.mp4", 2.0)
    video(tmp_path / "star" / "Charades_v1_480" / "long.mp4", 2.0)
    told = problems("mvbench", tmp_path, videos=True)
    assert "AB12C.mp4 (as long as its clip, 2 s)" in told
    assert "long.mp4 (1 to 9 s of 2.0 s)" in told
    loaded = load_set("mvbench", tmp_path, tmp_path, precut=True)
    assert check_set(loaded, part=True).problems == []
    assert not any(item.video.part.cuts for item in loaded.items)


def test_videos_in_training_shards_are_found(tmp_path: Path) -> None:
    rows = [
        {"id": str(i), "video": f"v{i}.mp4", "question": "?", "options": ["x", "y"], "answer": "A"} for i in range(2)
    ]
    as_lines(tmp_path / "set" / "mine.jsonl", rows)
    for number in range(2):
        (tmp_path / "set" / f"v{number}.mp4").write_bytes(clip(number)["mp4"])
    write_shards([clip(1), clip(5)], tmp_path / "train")
    loaded = load("mcq", tmp_path / "set", videos=True)
    checked = check_set(loaded)
    assert checked.problems == []
    compare_with(checked, loaded.items, tmp_path / "train")
    (told,) = checked.problems
    assert told.startswith("1 of 2 videos, which 1 of 2 items are about, are in")
    assert checked.overlap
    assert [(pair.media, pair.key) for pair in checked.overlap.found] == [("v1.mp4", "clip001")]
    nothing = [replace(item, video=replace(item.video, path="")) for item in loaded.items]
    with pytest.raises(ValueError, match="give --videos"):
        compare_with(Checked("mcq", "", "", 0, 0), nothing, tmp_path / "train")


@pytest.mark.parametrize("name", SETS)
def test_every_set_says_what_it_is_and_renders_its_prompts(name: str) -> None:
    told = SETS[name]
    assert next(iter(told.forms)) == next(iter(told.policies)) == "official"
    assert told.download
    assert told.patterns
    for form in told.forms.values():
        assert json.dumps(form.text.format(question="q", options="o", subtitles="", duration="1", frames="2"))
    for policy in told.policies.values():
        assert (policy.average in ("macro", "label")) == bool(policy.by)


def test_the_page_tells_the_same_of_every_set() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    rows = {r.split("|")[1].strip(" `"): [c.strip() for c in r.split("|")] for r in page.splitlines() if r[:3] == "| `"}
    for name, told in SETS.items():
        assert name in rows, f"docs/benchmarks.md has no row for {name}"
        counts = told.counts
        assert rows[name][2] == told.title
        assert rows[name][3:5] == [f"{n:,}" if n else "" for n in (counts.videos, counts.questions)], name
