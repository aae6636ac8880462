"""The crowded world: many objects, questions that each need one of them, and words that tell nothing."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from timeviper.datamodules.shards.index import read_index
from timeviper.datamodules.world.crowd import CROWD_QUESTIONS, MOST, NUMBERS, draw_crowd
from timeviper.datamodules.world.scene import in_order, is_held_out
from timeviper.datamodules.world.world import CROWDED, CrowdSource, build_world, describe

IDS = [f"{s.folder}/{s.prefix}" for s in CROWDED]


def said(source: CrowdSource, count: int) -> list[tuple]:
    """(scene, type, question, answer)"""
    rows = []
    for number in range(count):
        scene, conversations = describe(source, 0, number)
        for c in conversations:
            question, answer = (m["content"].split("\n")[-1] for m in c["messages"])
            rows.append((scene, c["type"], question, answer))
    return rows


@pytest.mark.parametrize("source", CROWDED, ids=IDS)
def test_scenes_are_as_promised(source: CrowdSource) -> None:
    for number in range(20):
        scene, conversations = describe(source, 0, number)
        assert source.objects[0] <= len(scene.events) <= source.objects[1]
        assert source.seconds[0] <= scene.duration <= source.seconds[1]
        assert in_order(scene)
        assert scene.events[-1].end <= scene.duration
        assert len({event.pair for event in scene.events}) == len(scene.events)
        held_out = any(is_held_out((e.size, e.colour, e.shape)) for e in scene.events)
        assert held_out == (not source.train and number % 2 == 0)
        assert [c["type"] for c in conversations] == list(CROWD_QUESTIONS)


def test_the_same_seed_draws_the_same_sample() -> None:
    assert describe(CROWDED[1], 3, 5) == describe(CROWDED[1], 3, 5)
    assert describe(CROWDED[1], 3, 5) != describe(CROWDED[1], 4, 5)


def test_answers_follow_from_the_events() -> None:
    for scene, kind, question, answer in said(CROWDED[2], 60):
        events = scene.events
        pairs = [e.pair for e in events]
        named = re.findall(r"[a-z]+ (?:circle|square|triangle|cross|ring)", question)
        times = [float(t) for t in re.findall(r"\d+\.\d", question)]
        if kind == "at":
            (there,) = [e for e in events if e.start + 0.5 <= times[0] <= e.end - 0.5]
            assert answer == f"a {there.pair}"
        elif kind == "order":
            step = 1 if "after" in question else -1
            assert answer == f"a {pairs[pairs.index(named[0]) + step]}"
        elif kind == "between":
            number = pairs.index(named[1]) - pairs.index(named[0]) - 1
            assert answer == ("one object" if number == 1 else f"{NUMBERS[number - 1]} objects")
        elif kind == "seen":
            assert answer == ("yes" if named[0] in pairs else "no")
        elif kind == "when":
            event = events[pairs.index(named[0])]
            assert answer == f"the {event.pair} {event.start:.1f} to {event.end:.1f} seconds"
        elif kind == "moments":
            assert answer.count(" at ") + 1 == len(events)
            for time, pair in re.findall(r"at (\d+\.\d) seconds a (\w+ \w+)", answer):
                (there,) = [e for e in events if e.start < float(time) < e.end]
                assert there.pair == pair


@pytest.mark.parametrize("source", [s for s in CROWDED if not s.train], ids=[i for i in IDS if "val" in i])
def test_no_answer_is_a_good_guess(source: CrowdSource) -> None:
    """The most frequent answer of each type, over all held-out videos."""
    rows = said(source, source.samples)
    for kind, most in (
        ("at", 0.1),
        ("order", 0.1),
        ("between", 0.36),
        ("seen", 0.6),
        ("when", 0.05),
        ("direction", 0.1),
    ):
        answers = Counter(answer for _, k, _, answer in rows if k == kind)
        assert answers.most_common(1)[0][1] <= most * answers.total(), (kind, answers.most_common(3))


def test_more_objects_than_there_are_are_refused() -> None:
    with pytest.raises(ValueError, match="35 pairs"):
        draw_crowd(np.random.default_rng(0), 900.0, 2.0, MOST + 1, False, (3, 4))
    crowd = draw_crowd(np.random.default_rng(0), 900.0, 2.0, MOST, True, (3, 4))
    assert len({e.pair for e in crowd.events}) == MOST


def test_a_crowded_world_is_built_beside_the_default_one(tmp_path: Path) -> None:
    build_world(tmp_path, scale=0.001, workers=1, kind="crowded")
    folders = {p.parent.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.tar")}
    assert folders == {"train/crowd", "val/crowd"}
    index = read_index(tmp_path / "val/crowd/n32-00000.tar")
    assert len(index.samples) == 4
    with pytest.raises(ValueError, match="another world: its sources"):
        build_world(tmp_path, scale=0.001, workers=1)
    with pytest.raises(ValueError, match="no 'croud' world: default, crowded, glimpses or long"):
        build_world(tmp_path / "b", scale=0.001, workers=1, kind="croud")
