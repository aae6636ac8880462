"""Needles: where they lie, what is asked about them, and that a model sees what answers say; of the procedural world
and of somebody's clips and pictures, which training and held-out videos never share."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from video_helpers import write_clip

from timeviper.cli.needle_options import NeedleOptions
from timeviper.cli.needles import make
from timeviper.config import FramesConfig
from timeviper.datamodules.build import load_index
from timeviper.datamodules.frames.video import read_video
from timeviper.datamodules.needles.build import held_out_jobs, numbers_of, write_all
from timeviper.datamodules.needles.footage import FootageNeedles, ask
from timeviper.datamodules.needles.haystack import Shown
from timeviper.datamodules.needles.material import check_apart, parted, read_material
from timeviper.datamodules.needles.pictures import Overlay, Picture, in_a_sentence, read_captions
from timeviper.datamodules.needles.place import Place, by_length, place_of
from timeviper.datamodules.needles.world import QUESTIONS, WorldNeedles, questions
from timeviper.datamodules.world.render import encode_image
from timeviper.datamodules.world.scene import in_order

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 230), "yellow": (230, 220, 40)}


def quiet(done: int, total: int) -> None:
    pass


def card(path: Path, colour: tuple[int, int, int], seed: int = 0) -> Path:
    """A picture of one colour with a few darker squares, so that two of one colour look different."""
    pixels = np.full((32, 32, 3), colour, np.uint8)
    for x, y in np.random.default_rng(seed).integers(0, 4, (3, 2)):
        pixels[8 * y : 8 * y + 8, 8 * x : 8 * x + 8] //= 2
    path.write_bytes(encode_image(pixels, "png"))
    return path


def table(path: Path, rows: list[tuple[str, str]], head: str = "image,caption") -> Path:
    path.write_text("\n".join([head, *(",".join(row) for row in rows)]) + "\n")
    return path


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of 12 s, of 5 frames a second and of 8, and two pictures of each of four captions."""
    folder = tmp_path_factory.mktemp("footage")
    (folder / "clips").mkdir()
    write_clip(folder / "clips" / "a.mp4", 60, fps=5, size=(64, 48))
    write_clip(folder / "clips" / "b.mp4", list(range(300, 396)), fps=8, size=(96, 64))
    rows = []
    for i, (name, colour) in enumerate(COLOURS.items()):
        for n in (0, 1):
            rows.append((card(folder / f"{name}{n}.png", colour, 10 * i + n).name, f"A {name} card."))
    table(folder / "captions.csv", rows)
    return folder


def needles(folder: Path, **changed) -> FootageNeedles:
    material = read_material(folder / "clips", folder / "captions.csv")
    fields = {
        "parts": 3,
        "fps": 1.0,
        "seed": 0,
        "clips": tuple(sorted(material.clips.items, key=lambda clip: clip.file)),
        "pictures": tuple(material.pictures.items),
        "shown": (2, 3),
        "layout": "full",
    }
    return FootageNeedles(**(fields | changed))


# ---- places ---------------------------------------------------------------------------------------------------


@given(st.integers(1, 10**6), st.integers(1, 50), st.integers(0, 49), st.integers(0, 10**4), st.integers(0, 9))
def test_a_key_tells_the_place(frames: int, parts: int, part: int, video: int, conversation: int) -> None:
    place = Place(frames, part % parts, parts, video)
    assert place_of(place.key) == place
    assert place_of(f"needles/f{frames}-{video:05d}.tar/{place.key}#{conversation}") == place


def test_what_is_no_needle_has_no_place() -> None:
    assert place_of("val-crowd-n08-000001#2") is None


@pytest.mark.parametrize(("text", "found"), [("128", [128]), ("128, 512", [128, 512])])
def test_lengths_are_read(text: str, found: list[int]) -> None:
    assert numbers_of(text, "--lengths") == found


@pytest.mark.parametrize("text", ["", "0", "1.5", "128;512", "2,048,", "-3", "all"])
def test_lengths_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--lengths"):
        numbers_of(text, "--lengths")


# ---- the procedural world -------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(0, 400), st.sampled_from([0.5, 1.0, 2.0]), st.integers(0, 5))
def test_every_part_has_its_needle(parts: int, more: int, fps: float, video: int) -> None:
    frames = 5 * parts + more
    made = WorldNeedles(parts, fps, 0)
    made.check(frames)
    rng = np.random.default_rng(video)
    scene, chosen = made.scene(rng, frames, held_out=False)
    assert scene.duration == frames / fps
    assert scene.frames == frames
    assert in_order(scene)
    for part, at in enumerate(chosen):
        event = scene.events[at]
        assert 3 <= round((event.end - event.start) * fps) <= 4
        middle = fps * (event.start + event.end) / 2
        assert frames * part // parts <= middle <= frames * (part + 1) // parts
    assert len({event.pair for event in scene.events}) == len(scene.events)
    lacking = {1: {"order", "between"}, 2: {"between"}}.get(len(scene.events), set())
    assert [c["type"] for c in questions(scene, rng, chosen[0])] == [kind for kind in QUESTIONS if kind not in lacking]


def test_too_short_a_video_is_refused_with_what_would_fit() -> None:
    with pytest.raises(ValueError, match=r"30 frames has no room .* take 50 frames or more, or --depths 6"):
        WorldNeedles(10, 1.0, 0).check(30)


def test_needles_of_the_world_are_written_once_and_can_be_added_to(tmp_path: Path) -> None:
    made, note = WorldNeedles(3, 1.0, 0), {"of": "world"}
    write_all(tmp_path, held_out_jobs(tmp_path, made, [15], 1), note, 1, quiet)
    first = (tmp_path / "val/f15-00000.tar").stat().st_mtime_ns
    write_all(tmp_path, held_out_jobs(tmp_path, made, [15, 20], 2), note, 1, quiet)
    assert (tmp_path / "val/f15-00000.tar").stat().st_mtime_ns == first
    found = by_length(load_index(tmp_path / "val"), tmp_path)
    assert {frames: [len(s.samples) for s in shards] for frames, shards in found.items()} == {15: [3, 3], 20: [3, 3]}
    assert [s.samples[0].duration for s in found[20]] == [20.0, 20.0]
    assert len({s.samples[i].members["mp4"].offset for s in found[15][:1] for i in range(3)}) == 1  # one file
    assert [len(s) for s in by_length(load_index(tmp_path / "val"), tmp_path, count=1).values()] == [1, 1]
    with pytest.raises(ValueError, match=r"holds other needles: of differ from what is asked for .there of world."):
        write_all(tmp_path, [], {"of": "footage"}, 1, quiet)


# ---- clips and pictures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "said"),
    [("An onion.", "an onion"), ("The  letter Q", "the letter Q"), ("NASA.", "NASA"), ("A", "a")],
)
def test_captions_stand_in_sentences(caption: str, said: str) -> None:
    assert in_a_sentence(caption) == said


def test_frames_show_what_answers_say(footage: Path, tmp_path: Path) -> None:
    """At the frames that a model takes: the picture from its start to its end, and the clip at all others."""
    made = needles(footage)
    (sample, *others) = made.samples(30, 0, tmp_path)
    record = sample["json"]
    assert [place_of(s["__key__"]) for s in (sample, *others)] == [Place(30, part, 3, 0) for part in range(3)]
    frames = read_video(sample["mp4"], 32, FramesConfig(fps=1, max_frames=30))
    assert len(frames.times) == 30
    assert record["media"][0]["frames"] == frames.count
    for time, pixels in zip(np.arange(30) + 0.5, frames.pixels):
        there = [s["text"] for s in record["segments"] if s["start"] <= time < s["end"]]
        colour = np.median(
            pixels[:, 4:-4, 8:-8].reshape(3, -1), axis=1
        )  # of bars without a picture: grey, black, white
        near = [name for name, rgb in COLOURS.items() if np.abs(colour - rgb).max() < 30]
        assert [f"a {name} card" for name in near] == there
    assert all(len(re.findall("f30-v00000.mp4", str(s["mp4"]))) == 1 for s in others)


def test_an_inset_changes_only_its_own_place(footage: Path) -> None:
    (frame,) = (f for f in [_plain(64, 48)])
    laid = Overlay(footage / "red0.png", 64, 48, "inset", (1.0, 0.0)).over(frame)
    before, after = frame.to_ndarray(format="rgb24"), laid.to_ndarray(format="rgb24")
    assert np.abs(after[:24, 40:].reshape(-1, 3).mean(0) - (200, 30, 30)).max() < 60  # 24 pixels: half of the height
    changed = (before != after).any(axis=2)
    changed[:26, 38:] = False  # one pixel of chroma around it
    assert not changed.any()


def _plain(width: int, height: int):
    from av.video.frame import VideoFrame

    grey = np.full((height, width, 3), 90, np.uint8)
    return VideoFrame.from_ndarray(grey, format="rgb24").reformat(format="yuv420p")


def test_what_is_transparent_shows_the_clip(tmp_path: Path) -> None:
    import av
    from av.video.frame import VideoFrame

    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[:, :8] = (250, 0, 0, 255)
    with av.open(str(tmp_path / "half.png"), "w", format="image2") as out:
        stream = out.add_stream("png", rate=1)
        stream.width = stream.height = 16
        stream.pix_fmt = "rgba"
        out.mux(stream.encode(VideoFrame.from_ndarray(rgba, format="rgba")))
        out.mux(stream.encode())
    laid = Overlay(tmp_path / "half.png", 32, 32, "inset", (0.0, 0.0)).over(_plain(32, 32)).to_ndarray(format="rgb24")
    assert laid[8, 2, 0] > 200 > 60 > laid[8, 2, 1]
    assert np.abs(laid[8, 13].astype(int) - 90).max() < 6


def test_short_clips_follow_each_other_and_a_long_one_begins_anywhere(footage: Path) -> None:
    made, rng = needles(footage), np.random.default_rng(0)
    cuts = list(made.background(rng, 30.0))
    assert sum(cut.seconds for cut in cuts) == pytest.approx(30.0)
    assert {cut.clip.file.name for cut in cuts} == {"a.mp4", "b.mp4"}
    assert "longest clip 12 s: several are shown one after the other" in made.notes(30)[0]
    assert needles(footage, clips=made.clips[:1]).notes(30)[0].endswith("it is repeated")
    (cut,) = made.background(rng, 5.0)
    assert made.notes(5) == []
    assert 0 <= cut.start <= 7


def test_training_videos_have_other_numbers_of_needles(footage: Path) -> None:
    made = needles(footage, training=True)
    rng = np.random.default_rng(0)
    numbers = Counter(sum(one is not None for one in made.needles(rng, 30)) for _ in range(60))
    assert numbers.keys() == {2, 3}
    for one in filter(None, made.needles(rng, 30)):
        assert 2 <= one.end - one.start <= 3


def test_answers_follow_from_what_is_shown() -> None:
    names = ["an ant", "a bee", "a cat", "a dog", "an elk"]
    shown = [Shown(Picture(Path(n), n), 10.0 * i + 2, 10.0 * i + 5, (0, 0)) for i, n in enumerate(names)]
    rng, counts = np.random.default_rng(0), Counter()
    for _ in range(200):
        at = int(rng.integers(5))
        for kind in ("at", "when", "order", "between"):
            question, answer = (m["content"].split("\n")[-1] for m in ask(rng, kind, shown, at)["messages"])
            named = [names.index(name) for name in re.findall("|".join(names), question)]
            if kind == "at":
                time = float(re.findall(r"\d+\.\d", question)[0])
                assert shown[at].start < time < shown[at].end
                assert answer == names[at]
            elif kind == "when":
                assert named == [at]
                assert answer == f"{names[at]} {shown[at].start} to {shown[at].end} seconds"
            elif kind == "order":
                assert names.index(answer) == at == named[0] + (1 if "after" in question else -1)
            else:
                assert at in named
                number = named[1] - named[0] - 1
                counts[number] += 1
                assert answer == ("no picture", "one picture", "two pictures", "three pictures")[number]
    assert max(counts.values()) < 0.5 * counts.total()


# ---- held out -------------------------------------------------------------------------------------------------


def test_training_and_held_out_share_nothing(footage: Path) -> None:
    train, held_out = parted(read_material(footage / "clips", footage / "captions.csv"), 0.25)
    assert [len(train.clips.items), len(held_out.clips.items)] == [1, 1]
    assert [len(train.pictures.items), len(held_out.pictures.items)] == [6, 2]
    check_apart(train, held_out)


def test_copies_are_on_the_same_side_and_named_where_a_person_parts_them(footage: Path, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/copy.mp4").write_bytes((footage / "clips/a.mp4").read_bytes())
    write_clip(tmp_path / "clips/anew.mkv", 60, fps=5, size=(64, 48), options={"crf": "28"})
    card(tmp_path / "other.png", (200, 200, 200), 99)
    table(tmp_path / "captions.csv", [("other.png", "A grey card."), ("../x/other.png", "A grey card.")][:1])
    mine, theirs = (read_material(f / "clips", f / "captions.csv") for f in (footage, tmp_path))
    with pytest.raises(ValueError, match=r"other videos than .*clips/a\.mp4 and .*copy\.mp4 have the same bytes"):
        check_apart(mine, theirs)
    (tmp_path / "clips/copy.mp4").unlink()
    with pytest.raises(ValueError, match=r"clips/a\.mp4 and .*anew\.mkv look the same"):
        check_apart(mine, read_material(tmp_path / "clips", tmp_path / "captions.csv"))
    (tmp_path / "clips/b.mp4").write_bytes((footage / "clips/a.mp4").read_bytes())
    with pytest.raises(ValueError, match=r"two different videos are needed .*are the same"):
        parted(read_material(tmp_path / "clips", footage / "captions.csv"), 0.5)


# ---- bad input ------------------------------------------------------------------------------------------------


def test_needles_that_do_not_fit_are_refused_with_what_would(footage: Path) -> None:
    with pytest.raises(ValueError, match=r"9 frames in 3 parts has 3 frames .* --depths 2 or a shorter"):
        needles(footage).check(9)
    with pytest.raises(ValueError, match="but the held-out pictures have 4 different ones: bring more, or --depths 4"):
        needles(footage, parts=5).check(300)


@pytest.mark.parametrize(
    ("rows", "head", "says"),
    [
        ([("red0.png", "")], "image,caption", "line 2: its caption is empty"),
        ([("red0.png", "x")], "image,words", "no column for the caption"),
        ([("red0.png", "Which?", "red")], "image,question,answer", "line 2: has no caption"),
        ([("nobody.png", "A card.")], "image,caption", "line 2: there is no file .*nobody.png"),
        ([("RED0.png", "A card.")], "image,caption", "did you mean red0.png"),
        ([], "image,caption", "has no rows"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(
    footage: Path, tmp_path: Path, rows: list[tuple[str, ...]], head: str, says: str
) -> None:
    (tmp_path / "red0.png").write_bytes((footage / "red0.png").read_bytes())
    with pytest.raises(ValueError, match=says):
        read_captions(table(tmp_path / "captions.csv", rows, head))  # pyright: ignore[reportArgumentType]


def test_files_that_cannot_be_read_are_all_named(footage: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    (tmp_path / "b.png").write_bytes(b"")
    broken = table(tmp_path / "captions.csv", [("a.png", "A card."), ("b.png", "Another.")])
    with pytest.raises(ValueError, match=r"of 2 pictures 2 cannot be read(.|\n)*a\.png(.|\n)*b\.png: is empty"):
        read_material(footage / "clips", broken)
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"of 1 videos 1 cannot be read(.|\n)*clip\.mp4"):
        read_material(tmp_path / "clip.mp4", footage / "captions.csv")
    with pytest.raises(ValueError, match="there is no folder"):
        read_material(tmp_path / "nothing", footage / "captions.csv")
    with pytest.raises(ValueError, match="holds no video"):
        read_material(tmp_path / "a.png", footage / "captions.csv")


# ---- the command ----------------------------------------------------------------------------------------------


def test_one_command_makes_both_sides(footage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = NeedleOptions(
        videos=footage / "clips",
        images=footage / "captions.csv",
        lengths="15",
        depths=2,
        count=1,
        train=2,
        train_lengths="12",
        shown="2,3",
        layout="inset",
        held_out=0.5,
        workers=1,
    )
    make(tmp_path, given)
    told = capsys.readouterr().out
    assert "train: 1 videos, 4 pictures" in told
    assert "captions that training never shows" in told
    assert "note: val: 15 frames last 15 s, but the longest clip 12 s: it is repeated" in told
    (train,), (val,) = (load_index(tmp_path / side) for side in ("train", "val"))
    assert [[c.type for c in s.conversations] for s in train.samples] == [
        ["timeline", "at", "when", "order", "between"]
    ] * 2
    assert [place_of(s.key) for s in val.samples] == [Place(15, part, 2, 0) for part in range(2)]
    with pytest.raises(ValueError, match="holds other needles: layout differ"):
        make(tmp_path, replace(given, layout="full"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"videos": Path("x")}, "--videos needs --images"),
        ({"images": Path("x")}, "--images needs --videos"),
        ({"train": 5}, "--train is for needles in your own videos"),
        ({"shown": "1,3"}, "--shown 1,3: write the fewest and the most frames, 2 or more"),
        ({"shown": "5,3"}, "--shown"),
        ({"layout": "half"}, "--layout half: it is inset or full"),
        ({"held_out_videos": Path("x"), "train": 1}, "give both"),
        ({"lengths": "4"}, "4 frames in 10 parts"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    footage: Path, tmp_path: Path, given: dict[str, Any], says: str
) -> None:
    alone = given.keys() <= {"videos", "images"} or given == {"train": 5}
    common: dict[str, Any] = {} if alone else {"videos": footage / "clips", "images": footage / "captions.csv"}
    with pytest.raises(ValueError, match=says):
        make(tmp_path / "out", NeedleOptions(**(common | given)))
    assert not (tmp_path / "out").exists()
