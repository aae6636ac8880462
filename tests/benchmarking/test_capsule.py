"""Capsules: rescored by every rule, continued, compared, and what is noticed or refused."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path

import numpy as np
import pytest
from capsules import DEPENDS, choice, moment, reply, write

from timeviper.benchmarking import capsule_write
from timeviper.benchmarking.capsule import ANSWERS, HEADER, CapsuleError, Shown, read_capsule
from timeviper.benchmarking.export_capsule import export_capsule
from timeviper.benchmarking.item import Item, VideoRef
from timeviper.benchmarking.rescore import rescore
from timeviper.benchmarking.score_table import headlines, print_scores
from timeviper.benchmarking.scores import Rescored

DROPPED = {"official": {"unparsed": "dropped"}, "lmms": {}, "vlmeval": {"unparsed": "random"}}


def scored(folder: Path) -> Rescored:
    return rescore(read_capsule(folder))


def value(made: Rescored, rule: str, measure: str = "accuracy", of: str = "scores") -> float:
    (found,) = [s for s in getattr(made, of) if (s.rule, s.measure) == (rule, measure)]
    return found.value


# ---- policies ---------------------------------------------------------------------------------------------


def test_unread_replies_are_wrong_dropped_or_a_guess(tmp_path: Path) -> None:
    """10 questions, 6 right, 2 that cannot be read: 60, 75 and 65."""
    items = [choice(f"q{i}", 1, f"v{i}") for i in range(10)]
    texts: dict[str, str | None] = {f"q{i}": "B" if i < 6 else "D" if i < 8 else "no idea" for i in range(10)}
    made = scored(write(tmp_path / "c", items, texts, set={"policies": DROPPED, "name": "videomme"}))
    assert [round(value(made, rule), 1) for rule in ("official", "lmms", "vlmeval")] == [75.0, 60.0, 65.0]
    (official,) = made.official
    assert (official.rule, official.n, official.value) == ("official", 8, 75.0)
    assert made.unparsed == [("q8", "no idea"), ("q9", "no idea")]
    assert made.letters == {"": (2, 0), "B": (6, 10), "D": (2, 0)}
    assert [round(value(made, rule), 1) for rule in ("strict", "dropped", "random")] == [60.0, 75.0, 65.0]


def test_without_options_words_are_the_headline(tmp_path: Path) -> None:
    """What was never shown letters says none: the set's own rule finds nothing, and is not what is printed first."""
    items = [choice("q0", 1), choice("q1", 2)]
    told = {"set": {"policies": DROPPED, "name": "videomme"}, "template": {"text": "{question}"}}
    made = scored(write(tmp_path / "c", items, {"q0": "thing 1", "q1": "thing 3"}, **told))
    assert [(s.rule, s.value) for s in made.official] == [("words", 50.0)]
    assert value(made, "official") == 0.0
    assert made.notes[0].startswith("no options were shown")


@pytest.mark.parametrize(
    ("counts", "best", "score"),
    [((677, 735, 684, 604), "always B", 27.2), ((291, 304, 270, 290, 182), "always B", 22.7)],
    ids=["videomme", "longvideobench"],
)
def test_a_constant_letter_is_a_baseline(tmp_path: Path, counts: tuple[int, ...], best: str, score: float) -> None:
    items = [choice(f"{r}-{i}", r, options=len(counts)) for r, n in enumerate(counts) for i in range(n)]
    made = scored(write(tmp_path / "c", items, {items[0].key: "A"}))
    assert round(value(made, best, of="baselines"), 1) == score
    assert value(made, "random", of="baselines") == pytest.approx(100 / len(counts))


def test_labels_count_once_each_or_once_a_question(tmp_path: Path) -> None:
    """LVBench: 66.7 by question, 83.3 as TimeViper counts."""
    kinds = [("ER", "KIR"), ("EU",), ("TG", "Rea", "ER")]
    items = [choice(f"q{i}", 0, f"v{i}", labels={"task": kind}) for i, kind in enumerate(kinds)]
    policy = {"official": {}, "timeviper": {"average": "label", "by": "task"}}
    told = {"set": {"name": "lvbench", "policies": policy}}
    made = scored(write(tmp_path / "c", items, {"q0": "(A)", "q1": "(B)", "q2": "(A)"}, **told))
    assert value(made, "official") == pytest.approx(66.7, abs=0.05)
    assert value(made, "label") == pytest.approx(83.3, abs=0.05)
    assert made.by_label["task"]["ER"] == (100.0, 2)


def test_m_avg_is_the_mean_of_tasks(tmp_path: Path) -> None:
    """MLVU dev: macro 66.47, pooled 68.05."""
    of, right = (539, 355, 352, 206, 259, 200, 264), (377, 284, 229, 72, 130, 150, 238)
    items = [choice(f"{t}-{i}", 0, f"{t}", labels={"task": (str(t),)}) for t, n in enumerate(of) for i in range(n)]
    texts: dict[str, str | None] = {
        f"{t}-{i}": "A)" if i < right[t] else "B)" for t, n in enumerate(of) for i in range(n)
    }
    policy = {"official": {"average": "macro", "by": "task"}, "vlmeval": {}}
    made = scored(write(tmp_path / "c", items, texts, set={"name": "mlvu", "policies": policy}))
    assert value(made, "official") == pytest.approx(66.47, abs=0.005)
    assert value(made, "pooled") == pytest.approx(68.05, abs=0.005)


def test_groups_score_as_published_and_as_meant(tmp_path: Path) -> None:
    def group(name: str, rule: str) -> list[Item]:
        return [
            choice(f"{name}-{i}", 0, name, 8, task="group", group=name, group_rule=rule, place=i) for i in (1, 2, 3, 4)
        ]

    items = [*group("a", "relevance"), *group("b", "[1,[2,3],4]"), *group("c", "[1,2,3,4]")]
    right = {"a": "1101", "b": "1011", "c": "----"}
    texts: dict[str, str | None] = {
        f"{name}-{i}": {"1": "A", "0": "B", "-": ""}[one] for name, all in right.items() for i, one in enumerate(all, 1)
    }
    policy = {"official": {"average": "group"}}
    made = scored(write(tmp_path / "c", items, texts, set={"name": "videomme_v2", "policies": policy}))
    assert value(made, "official", "group score") == pytest.approx((56.25 + 33.33 + 100) / 3, abs=0.01)
    assert value(made, "strict", "group score") == pytest.approx((56.25 + 33.33) / 3, abs=0.01)


def test_a_missing_video_stays_in_the_denominator_and_gives_a_second_score(tmp_path: Path) -> None:
    items = [choice(f"q{i}", 0, f"v{i}") for i in range(4)]
    made = scored(write(tmp_path / "c", items, {"q0": "A", "q1": "A", "q2": "B", "q3": None}))
    assert value(made, "official") == 50.0
    assert value(made, "official", of="answered") == pytest.approx(200 / 3)
    assert made.errors == {"missing": 1}
    assert "1 of them without a reply (they count as wrong)" in headlines(made)[0]


def test_windows_with_and_without_the_threshold_itself(tmp_path: Path) -> None:
    items = [moment(f"q{i}", (10.0, 20.0), f"v{i}") for i in range(5)]
    said = ["10 - 20 seconds", "12 to 22", "15 and 20", "20 - 30", "never"]
    texts: dict[str, str | None] = {f"q{i}": text for i, text in enumerate(said)}
    policy = {"official": {"unparsed": "wrong"}, "timeviper": {"strict": True}}
    made = scored(write(tmp_path / "c", items, texts, set={"name": "charades", "policies": policy}))
    assert value(made, "official", "mIoU") == pytest.approx(43.3, abs=0.05)
    assert [value(made, "official", f"R1@{t}") for t in ("0.3", "0.5", "0.7")] == [60.0, 60.0, 20.0]
    assert [value(made, ">", f"R1@{t}") for t in ("0.3", "0.5", "0.7")] == [60.0, 40.0, 20.0]
    assert value(made, "timeviper", "mIoU") < 43.3  # it reads only "to" and "and"


def test_blind_answers_and_everything_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = [choice("q0", 0, "v0"), choice("q1", 1, "v1"), moment("w", (1, 2)), choice("hidden", None)]
    items.append(Item("words", VideoRef("v"), "open", "Which?", answers=("Red.",)))
    items.append(Item("cap", VideoRef("v"), "caption", "Tell.", answers=("a red ring turns", "the ring turns")))
    items.append(Item("dense", VideoRef("v"), "dense", "Steps.", answers=("add oil",), windows=((0, 5),)))
    items.append(Item("yes", VideoRef("v"), "open", "Is it?", answers=("yes",), extra={"match": "prefix"}))
    texts: dict[str, str | None] = {
        "yes": "Yes, it is.",
        "q0": "A",
        "q1": "?",
        "w": "1 - 2",
        "words": "red",
        "cap": "a ring",
        "hidden": "A",
    }
    texts["dense"] = "0 - 5 seconds, add oil"
    blind = {"q0": "B", "q1": "B", "w": "0 - 9", "words": "blue"}
    made = scored(write(tmp_path / "c", items, texts, blind))
    assert {(s.kind, s.measure): round(s.value, 1) for s in made.baselines if s.rule == "blind"} == {
        ("choice", "accuracy"): 50.0,
        ("windows", "mIoU"): 11.1,
        ("words", "accuracy"): 0.0,
    }
    assert value(made, "exact words") == 100.0
    assert value(made, "official", "F1") == 100.0
    print_scores(made)
    said = capsys.readouterr().out
    for part in (
        "* official",
        "baselines",
        "unread  q1: '?'",
        "letters, said/right",
        "1 questions have a hidden answer",
    ):
        assert part in said
    assert json.loads(json.dumps(made.as_dict()))["scores"]


def test_a_capsule_of_another_scorer_is_scored_anew_and_says_so(tmp_path: Path) -> None:
    folder = write(tmp_path / "c", [choice("q")], {"q": "A"})
    header = json.loads((folder / HEADER).read_text())
    capsule_write.write_header(folder, header | {"scorer": 0})
    assert "first scored by scorer 0; these are the numbers of 1" in scored(folder).notes[0]
    capsule_write.write_header(folder, header | {"version": 9})
    with pytest.raises(CapsuleError, match="capsule version 9"):
        read_capsule(folder)
    with pytest.raises(CapsuleError, match=r"is no capsule: it has no capsule.json"):
        read_capsule(tmp_path)


# ---- files ------------------------------------------------------------------------------------------------


def test_an_edited_answer_is_noticed(tmp_path: Path) -> None:
    folder = write(tmp_path / "c", [choice("q0"), choice("q1")], {"q0": "B", "q1": "A"})
    assert read_capsule(folder).edited == []
    file = folder / ANSWERS
    plain = file.read_text()
    file.write_text(plain.replace('"reply": "B"', '"reply": "A"'))
    assert read_capsule(folder).edited == ["answers.jsonl, line 1 (q0): was changed after it was written"]
    with pytest.raises(CapsuleError, match="cannot be continued"):
        capsule_write.begin(folder, DEPENDS, [choice("q0"), choice("q1")], ["", ""])
    file.write_text("".join(plain.splitlines(keepends=True)[:1]))
    assert "lines were removed" in read_capsule(folder).edited[0]
    items = folder / "items.jsonl"
    items.write_text(items.read_text().replace("What?", "Who?"))
    with pytest.raises(CapsuleError, match=r"items.jsonl is not as it was written"):
        read_capsule(folder)


def test_a_torn_line_is_asked_again(tmp_path: Path) -> None:
    items = [choice(f"q{i}") for i in range(3)]
    folder = tmp_path / "c"
    capsule = capsule_write.begin(folder, DEPENDS, items, ["", "", ""])
    part = capsule_write.Part(folder, capsule.header["id"], 1)
    part.add([reply("q0", "A")], [Shown("v", (0.5,), 1.0)])
    with (part.folder / ANSWERS).open("a") as file:
        file.write('{"key": "q1", "rep')  # killed
    again = capsule_write.begin(folder, DEPENDS, items, ["", "", ""])
    assert (set(again.of("")), again.torn) == ({"q0"}, 1)
    assert not part.folder.exists()
    capsule_write.Part(folder, capsule.header["id"], 0).add([reply("q1", "A"), reply("q2", None)])
    assert capsule_write.end(folder).finished
    made = read_capsule(folder)
    assert (made.torn, sorted(made.of("")), list(made.frames)) == (0, ["q0", "q1", "q2"], ["v"])
    with (folder / ANSWERS).open("a") as file:
        file.write('{"key"')
    assert read_capsule(folder).torn == 1
    (folder / ANSWERS).write_text((folder / ANSWERS).read_text()[:-20])
    capsule_write.begin(folder, DEPENDS, items, ["", "", ""])
    capsule_write.Part(folder, capsule.header["id"], 0).add([reply("q2", "A")])
    assert capsule_write.end(folder).of("")["q2"].reply == "A"


def test_a_capsule_of_something_else_is_not_continued(tmp_path: Path) -> None:
    items = [choice("q0")]
    folder = write(tmp_path / "c", items, {"q0": "A"})
    other = DEPENDS | {"frames": {"protocol": "uniform:8"}}
    with pytest.raises(CapsuleError, match=r"frames\.protocol is fps:1:256 there, not uniform:8"):
        capsule_write.begin(folder, other, items, [""])
    with pytest.raises(CapsuleError, match="its 1 items are others"):
        capsule_write.begin(folder, DEPENDS, [choice("q0", 1)], [""])


def test_ten_thousand_answers_take_seconds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    right = rng.integers(0, 4, 10_000)
    items = [choice(f"q{i}", int(r), f"v{i // 4}", labels={"task": (str(i % 12),)}) for i, r in enumerate(right)]
    said = np.where(rng.random(10_000) < 0.6, right, rng.integers(0, 4, 10_000))
    texts: dict[str, str | None] = {f"q{i}": f"The answer is {'ABCD'[s]}." for i, s in enumerate(said)}
    told = {"set": {"name": "videomme", "policies": DROPPED}}
    folder = write(tmp_path / "c", items, texts, **told)
    before = time.process_time()
    made = scored(folder)
    assert time.process_time() - before < 5
    assert 60 < made.official[0].value < 75
    assert made.official[0].low < made.official[0].value < made.official[0].high


# ---- other harnesses --------------------------------------------------------------------------------------


def test_result_files_of_other_harnesses(tmp_path: Path) -> None:
    items = [choice(f"q{i}", i % 4, f"v{i}", labels={"duration": ("short",)}) for i in range(4)]
    texts: dict[str, str | None] = {"q0": "A", "q1": "B", "q2": "D", "q3": None}
    folder = write(tmp_path / "c", items, texts, set={"name": "videomme", "policies": DROPPED})
    results, samples = export_capsule(read_capsule(folder), tmp_path / "lmms", "lmms-eval")
    found = json.loads(results.read_text())
    assert found["results"]["videomme"]["videomme_accuracy,none"] == pytest.approx(50.0)
    assert found["n-samples"]["videomme"] == {"original": 4, "effective": 4}
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [(r["doc_id"], r["target"], r["filtered_resps"]) for r in rows][1] == (1, "B", "B")
    assert [r["score"] for r in rows] == [1.0, 1.0, 0.0, 0.0]
    (table,) = export_capsule(read_capsule(folder), tmp_path / "vk", "vlmeval")
    with table.open(newline="") as file:
        lines = list(csv.DictReader(file, delimiter="\t"))
    assert [line["prediction"] for line in lines] == ["A", "B", "D", ""]
    assert (lines[2]["answer"], lines[2]["C"], lines[2]["duration"]) == ("C", "thing 2", "short")
    assert "Video-MME_fps-1-256" in table.name
    group = [choice(f"g{i}", i % 4, task="group", group="v", group_rule="[1,[2,3],4]", place=i) for i in range(1, 5)]
    told = {"mlvu": items, "mvbench": items, "videomme_v2": group, "longvideobench": items, "tempcompass": items}
    wanted = {"mlvu": ("answer", "thing 1"), "mvbench": ("candidates", "['thing 0', 'thing 1', 'thing 2', 'thing 3']")}
    wanted |= {"videomme_v2": ("group_structure", "[1,[2,3],4]"), "longvideobench": ("correct_choice", "1")}
    wanted |= {"tempcompass": ("answer", "B. thing 1")}
    for name, (column, content) in wanted.items():
        texts = {item.key: "B" for item in told[name]}
        folder = write(tmp_path / name, told[name], texts, set={"name": name, "policies": {}})
        (table,) = export_capsule(read_capsule(folder), tmp_path / "vk", "vlmeval")
        with table.open(newline="") as file:
            assert list(csv.DictReader(file, delimiter="\t"))[name != "videomme_v2"][column] == content
    with pytest.raises(ValueError, match="capsules go to lmms-eval or vlmeval"):
        export_capsule(read_capsule(folder), tmp_path, "helm")
