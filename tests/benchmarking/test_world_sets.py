"""Small sets of the procedural world: in the files of others, with the questions that `timeviper eval` asks."""

from __future__ import annotations

import json
from pathlib import Path

from tree import Run

from timeviper.benchmarking.registry import Loaded, load_set
from timeviper.benchmarking.world_files import STRUCTURES
from timeviper.benchmarking.world_sets import SOURCE
from timeviper.datamodules.world.world import describe, sample


def loaded(sets: Path, name: str) -> Loaded:
    return load_set(name, sets / name, sets / name)


def asked(number: int, place: int) -> tuple[str, str]:
    user, assistant = describe(SOURCE, 0, number)[1][place]["messages"]
    return user["content"].removeprefix("<video>\n"), assistant["content"]


def test_questions_answers_and_videos_are_those_of_the_shards(world_sets: Path) -> None:
    which = json.loads((world_sets / "world.json").read_text())["questions"]
    for item in loaded(world_sets, "videomme").items:
        key, place = which["videomme"][item.key]
        question, answer = asked(int(key[-6:]), place)
        assert item.right is not None
        assert (item.question, item.options[item.right]) == (question, answer)
        assert len(set(item.options)) == len(item.options) >= 3
        assert item.notes == ()
    for item in loaded(world_sets, "charades").items:
        key, place = which["charades"][item.key]
        question, answer = asked(int(key[-6:]), place)
        start, end = item.windows[0]
        assert item.question == question
        assert answer.endswith(f" {start:.1f} to {end:.1f} seconds")
        assert Path(item.video.path).read_bytes() == sample(SOURCE, 0, int(key[-6:]))["mp4"]


def test_all_three_are_whole(world_sets: Path) -> None:
    first, second, third = (loaded(world_sets, name) for name in ("videomme", "charades", "youcook2"))
    assert not first.missing | second.missing | third.missing
    assert (len(first.items), len(third.items)) == (16, 6)
    assert all(item.duration and item.windows and len(item.answers) == len(item.windows) for item in third.items)
    assert all(item.duration for item in second.items)
    assert {item.key[:3] for item in first.items if item.subtitles is None} == {"003", "006"}


def test_sets_of_tasks_ask_the_same_and_groups_have_four(world_sets: Path) -> None:
    said = {(i.question, i.options[i.right or 0]) for i in loaded(world_sets, "videomme").items}
    for name in ("mlvu", "mvbench"):
        items = loaded(world_sets, name).items
        assert {(i.question, i.answers[0]) for i in items} == said
        assert all(i.options[i.right or 0] == i.answers[0] and not i.video.missing and not i.notes for i in items)
    groups = loaded(world_sets, "videomme_v2")
    assert groups.items
    assert not groups.missing
    assert all(item.notes == () for item in groups.items)  # none that is not whole
    assert {item.group_rule for item in groups.items} <= {"relevance", *(rule for _, rule in STRUCTURES)}


def test_the_command_draws_and_checks(cli: Run, tmp_path: Path) -> None:
    done = cli("bench", "world", str(tmp_path / "w"), "--videos", "3")
    assert "charades: 1 items" in done.stdout
    place = str(tmp_path / "w" / "videomme")
    report = tmp_path / "report.json"
    options = ["--annotations", place, "--videos", place, "--workers", "0", "--json", str(report)]
    done = cli("bench", "check", "videomme", *options, "--part")
    assert done.stdout.rstrip().endswith("0 problems")
    assert json.loads(report.read_text())["missing"] == {}
    (tmp_path / "w" / "videomme" / "data" / "w000v000001.mp4").unlink()
    done = cli("bench", "check", "videomme", *options, "--part", check=False)
    assert done.returncode == 1
    assert "PROBLEM: 1 of 3 videos are missing" in done.stdout
    done = cli("bench", "check", "videomme", *options, "--against", place, check=False)
    assert "has no .tar in it" in done.stderr
    assert "videos decoded" not in done.stdout
    assert "TempCompass" in cli("bench", "sets").stdout
    told = cli("bench", "sets", "videomme_v2").stdout
    assert "groups: 800" in told
    assert "rule official: unread replies are wrong, mean of each group" in told
    done = cli("bench", "check", "videome", "--annotations", place, check=False)
    assert (done.returncode, "Did you mean videomme" in done.stderr, "Traceback" in done.stderr) == (1, True, False)
