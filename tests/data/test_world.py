"""The procedural world: the same every time, true to its pixels, and not to be answered blind."""

from __future__ import annotations

import io
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from timeviper.datamodules.build import load_index
from timeviper.datamodules.checks.shards import check_shards
from timeviper.datamodules.shards.index import index_path
from timeviper.datamodules.when import parse_interval
from timeviper.datamodules.world.questions import NUMBERS, QUESTIONS
from timeviper.datamodules.world.render import draw, encode_image, encode_video
from timeviper.datamodules.world.scene import COLOURS, SHAPES, SIZES, Event, Scene, draw_video, held_out_looks, in_order
from timeviper.datamodules.world.world import LONG, SOURCES, WorldSource, build_world, describe, sample, world_text

TRAIN = [source for source in SOURCES if source.train]
VAL = [source for source in SOURCES if not source.train]
NAMED = {source.name: source for source in (*SOURCES, *LONG)}
VIDEOS = NAMED["train/videos/shard"]


def decode(data: bytes) -> tuple[NDArray[np.uint8], list[float]]:
    with av.open(io.BytesIO(data), "r") as container:
        frames = list(container.decode(video=0))
    pixels = np.stack([f.to_ndarray(format="rgb24") for f in frames]).astype(np.uint8)
    return pixels, [f.time or 0.0 for f in frames]


def answers(source: WorldSource, count: int) -> dict[str, Counter[str]]:
    """How often each answer is given, by type."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for number in range(count):
        for conversation in describe(source, 0, number)[1]:
            kind, answer = conversation["type"], conversation["messages"][-1]["content"]
            told = answer.split()[-1] if kind in ("colour", "shape", "direction") else answer  # not what is repeated
            found[kind][told] += 1
    return found


def majority(counts: Counter[str]) -> float:
    return counts.most_common(1)[0][1] / counts.total()


@pytest.mark.parametrize("source", [NAMED["train/images/shard"], VIDEOS], ids=lambda s: s.name)
def test_the_same_seed_draws_the_same_sample(source: WorldSource) -> None:
    assert sample(source, 0, 3) == sample(source, 0, 3)
    assert sample(source, 0, 3)["json"] != sample(source, 1, 3)["json"]
    assert sample(source, 0, 3)["json"] != sample(source, 0, 4)["json"]


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.name)
def test_held_out_looks(source: WorldSource) -> None:
    """Never in training, in half of the samples elsewhere; no word and no pair of words is new to a trained model."""
    numbers = range(min(source.samples, 400))
    looks = [{(e.size, e.colour, e.shape) for e in describe(source, 0, i)[0].events} for i in numbers]
    shown = [bool(look & held_out_looks()) for look in looks]
    assert sum(shown) == (0 if source.train else len(shown) // 2)
    if source is VIDEOS:
        every = {(size, colour, shape) for size in SIZES for colour in COLOURS for shape in SHAPES}
        assert set().union(*looks) == every - held_out_looks()
        assert {(colour, shape) for _, colour, shape in set().union(*looks)} == {(c, s) for _, c, s in every}


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.name)
def test_scenes_are_as_promised(source: WorldSource) -> None:
    for number in range(50):
        scene, conversations = describe(source, 0, number)
        events = scene.events
        assert len({e.colour for e in events}) == len({e.shape for e in events}) == len(events)
        mark = "<image>\n" if source.kind == "image" else "<video>\n"
        assert all(c["messages"][0]["content"].startswith(mark) for c in conversations)
        for event in events:
            for x, y in (event.begin, event.finish):
                reach = SIZES[event.size]
                assert reach - 0.01 < min(x, y)
                assert max(x, y) < 1.01 - reach
        if source.kind != "image":
            assert source.seconds[0] <= scene.duration <= source.seconds[1]
            assert in_order(scene)
            assert events[-1].end <= scene.duration
            assert all(source.lasting[0] <= e.end - e.start <= source.lasting[1] for e in events)


def solve(kind: str, question: str, events: tuple[Event, ...]) -> str:
    """The answer once more, read off the events by another road than the questions were made."""
    words = question.rstrip("?.").split()
    named = [e for e in events if {e.colour, e.shape} <= set(words)]
    named = named or [e for e in events if e.colour in words or e.shape in words]
    if kind == "count":
        return NUMBERS[len(events) - 1] + (" object" if len(events) == 1 else " objects")
    if kind == "order":
        ranks = {"first": 0, "last": -1}
        for word, rank in ranks.items():
            if word in words:
                return "a " + sorted(events, key=lambda e: e.start)[rank].pair
        (about,) = named
        if "after" in words:
            return "a " + min((e for e in events if e.start >= about.end), key=lambda e: e.start).pair
        return "a " + max((e for e in events if e.end <= about.start), key=lambda e: e.end).pair
    (about,) = named
    (x0, y0), (x1, y1) = about.begin, about.finish
    ways = {"left": x1 < x0, "right": x1 > x0, "up": y1 < y0, "down": y1 > y0}
    return {
        "colour": f"the {about.shape} is {about.colour}",
        "shape": f"the {about.colour} object is a {about.shape}",
        "direction": f"the {about.pair} " + next((f"moves {way}" for way, goes in ways.items() if goes), "stays"),
        "when": f"the {about.pair} {about.start:.1f} to {about.end:.1f} seconds",
    }[kind]


@pytest.mark.parametrize("name", ["train/videos/shard", "val/videos/shard", "train/cuts/d016"])
def test_answers_follow_from_the_events(name: str) -> None:
    seen = Counter()
    for number in range(100):
        scene, conversations = describe(NAMED[name], 0, number)
        for conversation in conversations:
            kind, (question, answer) = conversation["type"], (m["content"] for m in conversation["messages"])
            seen[kind] += 1
            if kind == "caption":
                told = [e.pair in part for e, part in zip(scene.events, answer.split(", then "), strict=True)]
                assert all(told), answer
            elif kind == "timeline":
                spans = [parse_interval(part) for part in answer.split(", then ")]
                assert spans == [(e.start, e.end) for e in scene.events]
                assert all(event.pair in answer for event in scene.events)
            elif kind == "times":
                told = {part: e for part in answer.split(", ") for e in scene.events if e.pair in part}
                assert len(told) == len(scene.events)
                assert set(told.values()) == set(scene.events)
                assert all(parse_interval(part) == (e.start, e.end) for part, e in told.items())
            elif kind == "describe":
                (event,) = [e for e in scene.events if {e.colour, e.shape} <= set(answer.split())]
                named = {event.colour, event.shape} & set(question.rstrip(".").split())
                if "after" in question or "before" in question:
                    assert f"a {event.pair}" == solve("order", question, scene.events)
                else:
                    assert named or event is scene.events[0 if "first" in question else -1]
            else:
                assert answer == solve(kind, question, scene.events), (question, scene.events)
    assert set(seen) == set(QUESTIONS)


def test_a_cut_tells_the_clock_of_the_video_it_was_cut_from() -> None:
    source, offsets = NAMED["train/cuts/d016"], set()
    for number in range(50):
        scene = describe(source, 0, number)[0]
        assert all(scene.offset <= e.start < e.end <= scene.offset + 16 for e in scene.events)
        offsets.add(scene.offset)
    assert len(offsets) > 40
    assert min(offsets) < 100 < 900 < max(offsets) <= source.latest
    (video,) = sample(source, 0, 3)["json"]["media"]
    assert (video["time_offset"], video["duration"]) == (describe(source, 0, 3)[0].offset, 16)


def test_needle_questions() -> None:
    for number in range(60):
        scene, conversations = describe(NAMED["val/long/d512"], 0, number)
        assert [c["type"] for c in conversations] == ["needle", "needle", "when"]
        named = [c["messages"][1]["content"] for c in conversations]
        assert named[0] in {f"a {e.pair}" for e in (scene.events[0], scene.events[-1])}
        assert any(named[1].split()[-1] in (e.colour, e.shape) for e in scene.events)
        assert parse_interval(named[2]) in {(e.start, e.end) for e in scene.events}
        # Sampled once a second, at the middle of each second, a needle is seen at least three times.
        seconds = np.arange(512) + 0.5
        assert all(((seconds >= e.start) & (seconds < e.end)).sum() >= 3 for e in scene.events)


def test_answers_are_balanced() -> None:
    """Whoever always gives the most frequent answer stays far from 0.45."""
    train, held_out = answers(VIDEOS, 1500), answers(NAMED["val/videos/shard"], 160)
    for counts, slack in ((train, 1.15), (held_out, 1.35)):
        assert majority(counts["colour"]) < slack / 6
        assert majority(counts["shape"]) < slack / 5
        assert majority(counts["direction"]) < slack / 5
        assert majority(counts["count"]) < slack / 3
        assert majority(counts["order"]) < 0.15
    assert {kind: counts.total() for kind, counts in held_out.items()} == dict.fromkeys(QUESTIONS, 80)
    assert majority(answers(NAMED["val/long/d512"], 60)["needle"]) < 0.15


def test_the_length_of_a_video_does_not_tell_the_count() -> None:
    scenes = [describe(VIDEOS, 0, number)[0] for number in range(1500)]
    mean = [np.mean([s.duration for s in scenes if len(s.events) == n]) for n in range(1, 4)]
    assert max(mean) - min(mean) < 0.3


def test_no_constant_span_is_a_good_answer() -> None:
    spans = [parse_interval(a) for a, n in answers(VIDEOS, 500)["when"].items() for _ in range(n)]
    events = np.array([s for s in spans if s])
    grid = [(a, b) for a in np.arange(0, 12, 0.5) for b in np.arange(a + 0.5, 12.5, 0.5)]
    iou = [np.mean(np.clip(np.minimum(b, events[:, 1]) - np.maximum(a, events[:, 0]), 0, None)
                   / (np.maximum(b, events[:, 1]) - np.minimum(a, events[:, 0]))) for a, b in grid]  # fmt: skip
    assert max(iou) < 0.35


def nearest(pixel: NDArray[np.uint8]) -> str:
    """The colour's name, or "background" for a dark pixel."""
    if pixel.max() < 110:
        return "background"
    return min(COLOURS, key=lambda name: float(np.abs(np.array(COLOURS[name]) - pixel).sum()))


def spot(event: Event, time: float, pixels: int) -> tuple[int, int]:
    """(row, column) of a pixel that the object covers: its centre, for a ring the middle of its right side."""
    along = (time - event.start) / (event.end - event.start)
    x, y = (a + along * (b - a) for a, b in zip(event.begin, event.finish))
    x += 0.76 * SIZES[event.size] * (event.shape == "ring")
    return int(y * pixels), int(x * pixels)


@pytest.mark.parametrize("name", ["val/videos/shard", "val/clips/shard", "train/long/d032", "val/cuts/d064"])
def test_pixels_show_what_the_events_say(name: str) -> None:
    for number in range(12):
        scene = describe(NAMED[name], 0, number)[0]
        frames, times = decode(encode_video(scene))
        assert len(frames) == scene.frames
        assert times == pytest.approx(np.arange(scene.frames) / scene.fps)
        for frame, time in zip(frames, np.array(times) + scene.offset):
            there = [e for e in scene.events if e.start <= time < e.end]
            for event in there:
                assert nearest(frame[spot(event, time, scene.pixels)]) == event.colour
            if not there:
                assert frame.max() < 110


def test_shapes_differ_where_it_counts() -> None:
    """Each shape covers another part of its square: a model has something to tell them apart by."""
    side = 64
    scenes = {
        s: Scene(0, 1, (Event(0, 1, "small", "white", s, "stay", 1, 1, (0.5, 0.5), (0.5, 0.5)),), 0) for s in SHAPES
    }
    masks = {s: next(draw(scene))[0].mean(-1) > 128 for s, scene in scenes.items()}
    area = np.pi * (SIZES["small"] * side) ** 2
    for a in SHAPES:
        assert 0.25 * area < masks[a].sum() < 1.1 * area
        assert all((masks[a] != masks[b]).sum() > 0.15 * area for b in SHAPES if a != b)


def test_images_show_all_their_objects() -> None:
    for number in range(30):
        drawn = sample(NAMED["val/images/shard"], 0, number)
        scene = describe(NAMED["val/images/shard"], 0, number)[0]
        (frame,), _ = decode(drawn["jpg"])
        for event in scene.events:
            assert nearest(frame[spot(event, 0.0, scene.pixels)]) == event.colour
        caption = drawn["json"]["conversations"][0]["messages"][1]["content"]
        assert [caption.count(f"{e.pair} at the {e.place}") for e in scene.events] == [1] * len(scene.events)


def test_any_length() -> None:
    one = draw_video(np.random.default_rng(0), 2.0, 0.5, 1, False)
    assert decode(encode_video(one))[0].shape == (1, 64, 64, 3)
    hour = draw_video(np.random.default_rng(0), 3600.0, 30.0, 3, False, (3, 6))
    assert hour.frames == 108_000
    assert next(draw(hour)).shape == (64, 64, 64, 3)  # drawn piece by piece: memory does not grow with length
    large = draw_video(np.random.default_rng(0), 2.0, 4.0, 1, False, pixels=128)
    assert decode(encode_video(large))[0].shape == (8, 128, 128, 3)


def test_png_is_exact() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    assert (decode(encode_image(pixels, "png"))[0][0] == pixels).all()


def test_world_text_is_a_small_language() -> None:
    lines = [line for line, _ in zip(world_text(0), range(4000))]
    words = {w.strip(".,?") for line in lines for w in line.split()}
    words = {w for w in words if not w.replace(".", "").isdigit()}
    assert len(words) < 120
    assert words >= {*COLOURS, *SHAPES, *SIZES, "left", "seconds"}
    assert not any("<" in line for line in lines)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    build_world(folder, scale=0.001, workers=1)
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_build_world_is_clean_and_continues(small: Path) -> None:
    report = check_shards(small)
    assert report.problems == []
    assert report.shards == len(SOURCES)
    before = snapshot(small)
    index_path(small / "val/videos/shard-00000.tar").unlink()
    for name in ("train/clips/shard-00000.tar", "train/clips/shard-00000.idx.json"):
        (small / name).unlink()
    steps: list[tuple[int, int]] = []
    build_world(small, scale=0.001, workers=1, progress=lambda *step: steps.append(step))
    assert steps[-1] == (report.samples, report.samples)
    assert snapshot(small) == before
    assert len(load_index(f"{small}/train/clips/shard-*.tar")) == 1


def test_parts_of_a_folder_are_told_by_prefix(tmp_path: Path) -> None:
    build_world(tmp_path, scale=0.001, workers=1, kind="long")
    assert len(load_index(f"{tmp_path}/train/long/d032-*.tar")) == 1
    assert len(load_index(tmp_path / "train/long")) == 3


def test_build_world_refuses_to_mix_worlds(small: Path) -> None:
    with pytest.raises(ValueError, match="holds another world: its seed differ"):
        build_world(small, scale=0.001, workers=1, seed=1)
    with pytest.raises(ValueError, match="scale 'huge' must be a number above 0 or one of small, default"):
        build_world(small, scale="huge")


def test_segments_and_media_in_the_json(small: Path) -> None:
    shard = load_index(small / "val/videos")[0]
    record: dict[str, Any] = sample(NAMED["val/videos/shard"], 0, 0)["json"]
    scene = describe(NAMED["val/videos/shard"], 0, 0)[0]
    assert [(s["start"], s["end"]) for s in record["segments"]] == [(e.start, e.end) for e in scene.events]
    assert shard.samples[0].duration == record["media"][0]["duration"] == scene.duration
    assert json.loads(json.dumps(record)) == record
