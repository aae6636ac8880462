"""Needles asked of a run: each cell holds what was answered, more costs only what is new, and maps are drawn."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from export_helpers import random_run
from hypothesis import given
from hypothesis import strategies as st
from tree import Run

from timeviper.config.load import load_recipe
from timeviper.datamodules.needles.build import held_out_jobs, world_note, write_all
from timeviper.datamodules.needles.place import Place
from timeviper.datamodules.needles.world import WorldNeedles
from timeviper.errors import ConfigError
from timeviper.inference.evaluate import evaluate
from timeviper.inference.journal import Entry
from timeviper.inference.metrics import Answered
from timeviper.inference.needle_map import compare_maps, wilson
from timeviper.inference.needle_picture import picture
from timeviper.inference.needle_table import print_maps
from timeviper.inference.needles import AS_TRAINED, Asked, Haystacks, ask_needles, find_haystacks, settings

SHORT = ["eval.max_new_tokens=3", "data.workers=0"]


@pytest.fixture(scope="module")
def needles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of 10 frames and two of 16, in two parts each."""
    folder = tmp_path_factory.mktemp("needles")
    made = WorldNeedles(2, 1.0, 0)
    write_all(folder, held_out_jobs(folder, made, [10, 16], 2), world_note(made), 1, lambda done, total: None)
    return folder / "val"


@pytest.fixture(scope="module")
def run(needles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_run(tmp_path_factory.mktemp("run"), val=needles)


def asked(run: Path, needles: Path, *also: str, lengths: list[int] | None = None, **more) -> list[Asked]:
    haystacks = find_haystacks(needles, lengths, ["at", "when"], more.pop("count", None))
    return list(ask_needles(run, haystacks, [*SHORT, *more.pop("words", [])], also, quiet=True, **more))


def written(one: Asked) -> dict[str, str]:
    return {e.answered.key.split("/")[-1]: e.answered.written for found in one.entries.values() for e in found}


# ---- asking ---------------------------------------------------------------------------------------------------


def test_answers_are_those_of_an_evaluation(run: Path, needles: Path) -> None:
    """Of the same questions, with as many frames: whole, and streamed in pieces."""
    (found,) = asked(run, needles, lengths=[16], words=["eval.tokens_per_piece=40"])
    words = ["data.frames.max_frames=16", "data.val.clips.types=at,when", f"data.val.clips.shards={needles}/f16-*.tar"]
    evaluate(run, [*SHORT, *words], quiet=True)
    (file,) = run.glob("evals/*/answers.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert written(found) == {row["key"].split("/")[-1]: row["written"] for row in rows}
    assert len(rows) == 2 * 2 * 2


def test_more_costs_only_what_is_new(run: Path, needles: Path) -> None:
    folder = run / "needles"
    small = asked(run, needles, lengths=[10], count=1, again=True)
    before = {file: file.read_bytes() for file in folder.rglob("*.jsonl")}
    whole = asked(run, needles, "blind")
    after = {file: file.read_bytes() for file in folder.rglob("*.jsonl")}
    assert all(after[file].startswith(lines) for file, lines in before.items())  # nothing was answered again
    assert written(small[0]).items() <= written(whole[0]).items()
    assert len(written(whole[0])) == 2 * 2 * 2 * 2
    asked(run, needles, "blind")
    assert {file: file.read_bytes() for file in folder.rglob("*.jsonl")} == after


def test_settings_are_of_one_model_and_differ(run: Path, needles: Path) -> None:
    found = asked(run, needles, "drop", "none", "model.transv.stages.late.keep=0.4", lengths=[16])
    names = ["as trained", "pure drop", "no compression", "model.transv.stages.late.keep=0.4"]
    assert [one.setting.name for one in found] == names
    texts = [tuple(written(one).values()) for one in found]
    assert len(set(texts)) == 4
    other = ["model.transv.stages.early.transfer=false", "model.transv.stages.late.transfer=false"]
    (same,) = asked(run, needles, lengths=[16], words=other)
    assert tuple(written(same).values()) == texts[1]  # weights of a transfer that is switched off are left


def test_a_context_grows_where_no_positions_bound_it(run: Path, needles: Path) -> None:
    (found,) = asked(run, needles, lengths=[10], words=["model.decoder.max_tokens=16384"])
    assert found.notes == []
    (refused,) = asked(run, needles, lengths=[10], words=["model.decoder.max_tokens=60"])
    assert all("tokens" in entry.reason for entry in refused.entries[10])
    haystacks = find_haystacks(needles, [10], ["at"], None)
    haystacks.shards[9000] = haystacks.shards[10]  # pyright: ignore[reportIndexIssue]
    from timeviper.inference.needles import _room

    notes: list[str] = []
    assert _room(load_recipe(run / "export/config.yaml", to_train=False), [], haystacks, notes) != []
    assert "instead of 16,384" in notes[0]


@pytest.mark.parametrize(
    ("words", "says"),
    [("drob", "must be drop, none or blind"), ("", "must be drop"), ("drop x=1", "must be drop")],
)
def test_settings_that_there_are_not_are_refused(run: Path, words: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        settings(load_recipe(run / "export/config.yaml", to_train=False), [words], run)


def test_settings_without_effect_are_refused(run: Path) -> None:
    words = ["model.transv.stages.early=null", "model.transv.stages.late=null"]
    recipe = load_recipe(run / "export/config.yaml", words, to_train=False)
    for name, says in (("drop", "transfers nothing"), ("none", "compresses nothing")):
        with pytest.raises(ConfigError, match=f"{says} anyway"):
            settings(recipe, [name], run)
    assert settings(recipe, ["blind"], run)[1].name == "blind"


def test_what_is_not_there_is_said(run: Path, needles: Path, world: Path) -> None:
    with pytest.raises(ValueError, match=r"no needles in videos of 32, 2,048 frames, only of 10, 16"):
        find_haystacks(needles, [2048, 32, 10], ["at"], None)
    with pytest.raises(ValueError, match="which is no needle of a map"):
        find_haystacks(world / "val/videos", None, ["at"], None)
    with pytest.raises(ValueError, match="no conversation of the types"):
        asked(run, needles)[0] if find_haystacks(needles, None, ["what"], None).source(10) else None
    with pytest.raises(ConfigError, match="the needles say which frames are taken"):
        asked(run, needles, words=["data.frames.fps=2"])


# ---- maps -----------------------------------------------------------------------------------------------------


@given(st.integers(1, 500), st.floats(0, 1))
def test_wilson_holds_the_share_and_stays_within(n: int, share: float) -> None:
    found = wilson(share, n)
    assert 0 <= found.low <= share <= found.high <= 1
    assert found.low < found.high


def made(right: dict[tuple[int, int], float], videos: int = 10, name: str = "", run: str = "runs/a") -> Asked:
    """Answers of which a share is right in each (frames, part); "when" answers overlap by half."""
    entries: dict[int, list[Entry]] = {}
    for (frames, part), share in right.items():
        for video in range(videos):
            key = f"needles/f{frames}-00000.tar/{Place(frames, part, 3, video).key}"
            good = video < share * videos
            at = Answered(f"{key}#0", "at", "a ring" if good else "a cross", "a ring")
            when = Answered(f"{key}#1", "when", "from 1.0 to 2.0" if good else "never", "from 0.0 to 2.0 seconds")
            entries.setdefault(frames, []).extend([Entry("", at), Entry("", when)])
    setting = AS_TRAINED if not name else settings_named(name)
    return Asked(run, setting, (), "export@7", "abc", "float32", [], entries)


def settings_named(name: str):
    from timeviper.inference.needles import Setting

    return Setting(name)


FIELD = {(128, 0): 1.0, (128, 1): 0.5, (128, 2): 0.0, (10240, 0): 0.8, (10240, 1): 0.4, (10240, 2): 0.2}
PLACE = Haystacks("data/needles", {}, 3, ("at", "when"))


def test_a_cell_holds_the_needles_of_its_place() -> None:
    comparison = compare_maps(PLACE, [made(FIELD), made({k: 1.0 for k in FIELD}, name="none")])
    first = comparison.maps[0]
    assert [row.frames for row in first.rows] == [128, 10240]
    assert [[c.accuracy.value for c in row.cells if c.accuracy] for row in first.rows] == [[1, 0.5, 0], [0.8, 0.4, 0.2]]
    assert [c.miou for c in first.rows[0].cells] == [0.5, 0.25, 0]
    assert first.rows[0].cells[1].depth == (1 / 3, 2 / 3)
    assert (first.rows[0].cells[0].needles, first.rows[0].cells[0].questions, first.rows[0].videos) == (10, 20, 10)
    found = first.rows[1].accuracy
    assert found
    assert found.value == pytest.approx(1.4 / 3)
    assert found.low < found.value < found.high
    changes = {(c.frames, c.score): c.difference for c in comparison.changes}
    assert changes[128, "accuracy"].value == pytest.approx(0.5)
    assert changes[128, "accuracy"].low > 0
    assert changes[10240, "miou"].value == pytest.approx(0.5 * (1 - 1.4 / 3))
    assert any("10 videos a length" in note for note in comparison.notes)
    assert json.loads(json.dumps(comparison.as_dict()))["maps"][0]["rows"][0]["cells"][0]["accuracy"]["value"] == 1.0


def test_videos_that_are_all_alike_are_no_certainty() -> None:
    (one,) = compare_maps(PLACE, [made({(128, part): 1.0 for part in range(3)})]).maps
    found = one.rows[0].accuracy
    assert found
    assert found.value == found.high == 1
    assert 0.6 < found.low < 0.8  # ten videos


def test_what_was_not_asked_is_no_zero(capsys: pytest.CaptureFixture[str]) -> None:
    one = made(FIELD)
    one.entries[10240] = [Entry("", e.answered, "too long") for e in one.entries[10240]]
    comparison = compare_maps(PLACE, [one])
    row = comparison.maps[0].rows[1]
    assert (row.accuracy, row.cells[0].accuracy, row.skipped) == (None, None, {"too long": 60})
    assert "60 questions at 10,240 frames were not asked: too long" in comparison.notes[0]
    print_maps(comparison)
    assert re.search(r"10,240 +- +- +- +-", capsys.readouterr().out)
    assert picture(comparison).count("not asked") > 4


@pytest.mark.parametrize("parts", [1, 3, 10, 24])
def test_tables_fit_80_columns(parts: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    right = {(frames, part): 1.0 for frames in (128, 10240) for part in range(parts)}
    fields = [made(right), made(right, name="no compression")]
    for one in fields:
        for found in one.entries.values():
            found[:] = [
                Entry(
                    "", Answered(re.sub("of03", f"of{parts:02d}", e.answered.key), *list(vars(e.answered).values())[1:])
                )
                for e in found
            ]
    print_maps(compare_maps(PLACE, fields))
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.lstrip().startswith(("128", "10,240"))]
    assert max(map(len, rows)) <= 80
    assert len(rows[0].split()) == 1 + min(parts, 10) + 3


def test_the_picture_is_whole_and_holds_every_figure() -> None:
    one = made(FIELD, run="runs/<a> & b")
    root = ElementTree.fromstring(picture(compare_maps(PLACE, [one, made(FIELD, name="pure drop")])))
    texts = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "runs/<a> & b, as trained" in texts
    assert texts.count("0.80") == 2  # right answers of one cell in both maps
    assert texts.count("10,240") == 4  # two fields a map
    width, height = (float(n) for n in root.attrib["viewBox"].split()[2:])
    for box in root.iter("{http://www.w3.org/2000/svg}rect"):
        at = {name: float(box.attrib.get(name, 0)) for name in ("x", "y", "width", "height")}
        assert 0 <= at["x"] <= at["x"] + at["width"] <= width
        assert 0 <= at["y"] <= at["y"] + at["height"] <= height


# ---- the command ----------------------------------------------------------------------------------------------


def test_one_command_draws_a_map(cli: Run, run: Path, needles: Path, tmp_path: Path) -> None:
    words = [str(run), *SHORT, "--needles", str(needles.parent), "--also", "drop", "--lengths", "10"]
    done = cli("needles", *words, "--out", str(tmp_path / "maps/a.svg"))
    assert "as trained: % right by depth" in " ".join(done.stdout.split())
    assert "points more than" in done.stdout
    figures = json.loads((tmp_path / "maps/a.json").read_text())
    assert [one["setting"] for one in figures["maps"]] == ["as trained", "pure drop"]
    ElementTree.parse(tmp_path / "maps/a.svg")
    again = cli("needles", *words, "--json")
    assert json.loads(again.stdout)["maps"] == figures["maps"]
    assert (run / "needles/map.svg").is_file()
    assert "name a run folder" in cli("needles", "eval.batch=2", check=False).stderr
