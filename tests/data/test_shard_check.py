"""The doctor of shards: what is wrong is found and named, and what is right is left in peace."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_lookalikes import copy
from shard_helpers import (
    QUESTION,
    clip,
    cut_between_members,
    cut_inside_member,
    flip_bit,
    leave,
    picture,
    raw_tar,
    spoil_header,
)
from video_helpers import write_clip

from timeviper.cli.check_shards import check as check_folder
from timeviper.cli.check_shards import config_of
from timeviper.config import FramesConfig
from timeviper.datamodules.build import load_index
from timeviper.datamodules.checks.defects import NOTES, PROBLEMS
from timeviper.datamodules.checks.shards import CheckConfig, Report, check_shards
from timeviper.datamodules.shards.index import index_path, index_shards, read_index, write_index
from timeviper.datamodules.shards.pool import write_shards
from timeviper.datamodules.shards.tar import ShardError, read_member
from timeviper.datamodules.world.render import draw, encode_image
from timeviper.datamodules.world.scene import draw_image

SMALL = CheckConfig(image_size=32)


def check(folder: Path, **change: Any) -> Report:
    return check_shards(folder, replace(SMALL, **change))


def kinds(folder: Path) -> list[str]:
    return [problem.kind for problem in check(folder).problems]


def of(key: str, path: Path, **record: Any) -> dict[str, Any]:
    """A sample of a file."""
    return {"__key__": key, path.suffix[1:]: path, "json": {"messages": QUESTION, **record}}


def notes(report: Report) -> list[tuple[str, str]]:
    return [(n.key, n.kind) for n in report.notes]


DAMAGE: list[tuple[Callable[[Path, int, int], None], str, str]] = [
    (cut_between_members, "json", "tar"),
    (cut_between_members, "mp4", "tar"),
    (cut_inside_member, "json", "tar"),
    (cut_inside_member, "mp4", "tar"),
    (spoil_header, "json", "tar"),
    (spoil_header, "mp4", "tar"),
    (flip_bit, "json", "checksum"),
    (flip_bit, "mp4", "checksum"),
]


@pytest.mark.parametrize(("damage", "field", "kind"), DAMAGE, ids=lambda v: getattr(v, "__name__", v))
def test_damage_is_found_and_nothing_of_it_is_read(tmp_path: Path, damage: Any, field: str, kind: str) -> None:
    """What webdataset 1.0.2 passes on in silence: cut shards, spoilt headers; and bits that flipped."""
    samples = [clip(i) for i in range(4)]
    write_shards(samples, tmp_path, samples_per_shard=2)
    assert kinds(tmp_path) == []
    shard = load_index(tmp_path)[0]
    record = shard.samples[1]
    damage(shard.path, *record.members[field][:2])
    assert kind in kinds(tmp_path)
    try:
        shards = load_index(tmp_path)
    except ValueError as error:
        assert "run `timeviper shards index" in str(error)  # noqa: PT017
        index_path(shard.path).unlink()
        with pytest.raises(ShardError, match=r"cut off|damaged"):
            index_shards(tmp_path)
        assert not index_path(shard.path).exists()
        return
    # The same size: the index still holds, and so does every byte that it vouches for.
    written = {sample["__key__"]: sample["mp4"] for sample in samples}
    emitted = 0
    for known in shards:
        for good in known.samples:
            try:
                read_member(known.path, *good.members["json"])
                assert read_member(known.path, *good.members["mp4"]) == written[good.key]
                emitted += 1
            except ValueError as error:
                assert good.key == record.key, error  # noqa: PT017
    assert emitted == (4 if damage is spoil_header else 3)


def test_bad_media(tmp_path: Path) -> None:
    short = clip(1)
    short["json"]["media"][0]["duration"] = 3.0
    fewer = clip(2)
    fewer["json"]["media"][0]["frames"] = 7
    broken = clip(3)
    broken["mp4"] = broken["mp4"][:800]
    text = clip(4) | {"mp4": b"<html>not found</html>"}
    twin = clip(0) | {"__key__": "twin"}
    black = picture(0) | {"png": b"\x89PNG\r\n\x1a\n" + bytes(100)}
    write_shards([clip(0), short, fewer, broken, text, twin, black], tmp_path)
    found = [(p.key, p.kind) for p in check_shards(tmp_path).problems]
    assert found == [
        ("clip001", "duration"),
        ("clip002", "duration"),
        ("clip003", "media"),
        ("clip004", "media"),
        ("twin", "duplicate"),
        ("picture000", "media"),
    ]


def test_a_clean_set_makes_no_alarm(tmp_path: Path) -> None:
    write_shards([*map(clip, range(60)), *map(picture, range(160))], tmp_path, samples_per_shard=50)
    report = check(tmp_path)
    assert (report.shards, report.samples, report.problems, report.notes) == (5, 220, [], [])
    forecast = report.forecast
    assert 0 < forecast["p50_s"] <= forecast["p95_s"] <= forecast["max_s"]
    assert forecast["mean_s"] * 220 == pytest.approx(3600 * forecast["total_hours"])
    assert forecast["frames"] == 60 * 2 + 160
    assert forecast["slowest"][0]["seconds"] == forecast["max_s"]
    assert list(json.loads(report.to_json())) == ["shards", "samples", "problems", "forecast", "notes", "waiting"]
    with pytest.raises(ValueError, match="no shards"):
        check(tmp_path / "none")


def test_the_report_is_the_same_with_any_number_of_workers(tmp_path: Path) -> None:
    samples = [clip(i) for i in range(6)]
    samples[4] |= {"mp4": samples[1]["mp4"]}
    samples[2]["mp4"] = samples[2]["mp4"][:900]
    write_shards(samples, tmp_path, samples_per_shard=2)
    index_path(tmp_path / "shard-00001.tar").unlink()
    one, two = (check_shards(tmp_path, SMALL, workers) for workers in (0, 2))
    assert [p.kind for p in one.problems] == ["index", "media", "duplicate"]
    assert (one.problems, one.notes, one.samples) == (two.problems, two.notes, two.samples)


def test_a_file_that_ends_the_decoder_is_named_and_the_rest_is_checked(tmp_path: Path) -> None:
    from timeviper.datamodules.ordered_pool import ordered

    jobs = [0, 1, 0, 1, 0]  # exit codes: a process that ends with 1 is as good as one that crashed
    found = list(ordered(leave, jobs, 1, lambda job: "crashed"))
    assert found == [(job, "crashed" if job else "fine") for job in jobs]


def test_a_file_that_is_cut_behind_the_last_sampled_frame(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 40, options={"g": "5"}, container={"movflags": "faststart"})
    data = path.read_bytes()
    write_shards([of("cut", path) | {"mp4": data[:-150]}], tmp_path)
    (found,) = check(tmp_path, frames=FramesConfig(fps=0.25)).problems
    assert (found.key, found.kind) == ("cut", "media")
    assert "the last frame, at 3.90 s, cannot be decoded" in found.detail


def test_what_is_odd_but_harmless_is_a_note(tmp_path: Path) -> None:
    samples = [
        of("vfr", write_clip(tmp_path / "vfr.mkv", [0, 1, 2, 10, 11, 30, 31, 32, 33, 60, 61])),
        of("counted", write_clip(tmp_path / "b.avi", options={"bf": "3", "g": "12"})),
        of("rare", write_clip(tmp_path / "rare.mp4", 600, options={"g": "600", "sc_threshold": "0"}, fps=25)),
        of("often", write_clip(tmp_path / "often.mp4", 600, options={"g": "50"}, fps=25, size=(64, 64))),
        of("turned", write_clip(tmp_path / "turned.mp4", turned=90)),
        clip(0) | {"txt": b"nobody reads this"},
    ]
    write_shards(samples, tmp_path, samples_per_shard=3)
    (tmp_path / "shard-00003.tar.0badcafe.tmp").write_bytes(b"half")
    report = check(tmp_path, frames=FramesConfig(fps=1, max_frames=2))
    assert report.problems == []
    assert notes(report) == [
        ("", "shards"),
        ("vfr", "variable"),
        ("counted", "stamps"),
        ("rare", "keyframes"),
        ("turned", "rotation"),
        ("clip000", "unused"),
    ]
    assert "24.0 s without a keyframe: 451 frames are decoded for 2, 9 times" in report.notes[3].detail


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"messages": [QUESTION[0], {"role": "assistant", "content": "a" * 3000}]}, "text", "3,012 bytes of text"),
        ({"messages": [QUESTION[0], {"role": "assistant", "content": "caf\ufffd"}]}, "characters", "replacement"),
        ({"segments": [{"start": 1, "end": 9, "text": "x"}]}, "segments", "ends at 9 s, but the media end at 2.00"),
        ({"segments": [{"start": 1, "end": 2, "text": " "}]}, "segments", "has no text"),
        ({"conversations": [{"type": "when", "messages": [QUESTION[0], {"role": "assistant", "content": "3 to 7"}]}]},
         "segments", "answers with 3.0 to 7.0 s"),
        ({"media": [{"type": "image", "member": "mp4"}]}, "media", "calls it an image, but it is a video"),
        ({"media": [{"type": "video", "member": "mp4", "fps": 25.0}]}, "fps", "has 4.00 frames a second"),
    ],
)  # fmt: skip
def test_texts_and_claims(tmp_path: Path, change: dict[str, Any], kind: str, message: str) -> None:
    record = {"messages": QUESTION, **change}
    if "conversations" in change:
        del record["messages"]
    write_shards([clip(0) | {"json": record}], tmp_path)
    report = check(tmp_path, max_text=2000)
    (found,) = report.problems + report.notes
    assert (found.key, found.kind) == ("clip000", kind)
    assert (kind in NOTES) == bool(report.notes)
    assert message in found.detail


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"messages": []}, "json"),
        ({"messages": [QUESTION[0], {"role": "assistant", "content": "half \ud83d"}]}, "text"),
        ({"messages": [QUESTION[0], {"role": "assistant", "content": ""}]}, "text"),
        ({"messages": [{"role": "user", "content": "<image>"}, QUESTION[1]]}, "placeholders"),
        ({"messages": QUESTION, "segments": [{"start": 5, "end": 4, "text": "x"}]}, "segments"),
        ({"messages": QUESTION, "media": [{"type": ["video"], "member": {}}]}, "json"),
        ({"messages": QUESTION, "media": [{"type": "video", "member": "mp4", "duration": 10**400}]}, "json"),
    ],
)
def test_json_that_cannot_be_used_is_named_by_kind(tmp_path: Path, change: dict[str, Any], kind: str) -> None:
    raw_tar(tmp_path / "x.tar", [("a.json", json.dumps(change).encode()), ("a.mp4", clip(0)["mp4"])])
    with pytest.raises(ShardError, match="sample 'a'"):
        index_shards(tmp_path)
    assert [(p.key, p.kind) for p in check(tmp_path).problems] == [("", "index"), ("a", kind)]


def test_duplicates_by_bytes_and_by_look_also_between_folders(tmp_path: Path) -> None:
    original = clip(0)
    media = original["mp4"]
    still = next(draw(draw_image(np.random.default_rng(0), 2, None)))[0]
    write_shards([original, clip(1)], tmp_path / "train")
    again = {"json": {"messages": QUESTION}}
    copies = [
        {"__key__": "same", "mp4": media, **again},
        {"__key__": "h264", "mp4": copy(media, crf="30"), **again},
        {"__key__": "vp9", "webm": copy(media, "libvpx-vp9", "webm", 1.5, crf="30", b="0"), **again},
        {"__key__": "mpeg4", "avi": copy(media, "mpeg4", "avi", 2.0, b="2M"), **again},
        clip(2),
        {"__key__": "png", "png": encode_image(still, "png"), **again},
        {"__key__": "jpg", "jpg": encode_image(still), **again},
    ]
    write_shards(copies, tmp_path / "val")
    found = check(tmp_path).problems
    assert [(p.key, p.kind) for p in found] == [
        ("same", "duplicate"),
        ("h264", "near-duplicate"),
        ("vp9", "near-duplicate"),
        ("mpeg4", "near-duplicate"),
        ("jpg", "near-duplicate"),
    ]
    assert all("'clip000' in train/shard-00000.tar, in another folder" in p.detail for p in found[:4])
    assert "'png' in val/shard-00000.tar (they differ by" in found[4].detail
    accepted = check(tmp_path, accept=frozenset({"near-duplicate"}))
    assert ([p.kind for p in accepted.problems], len(accepted.notes)) == (["duplicate"], 4)


def test_shards_and_indexes_that_do_not_fit(tmp_path: Path) -> None:
    write_shards([clip(i) for i in range(4)], tmp_path, samples_per_shard=1)
    tars = [tmp_path / f"shard-{i:05d}.tar" for i in range(4)]
    tars[1].unlink()  # its index stays
    for tar, change in ((tars[2], {"duration": 2.5}), (tars[3], {"key": "elsewhere"})):
        index = read_index(tar)
        write_index(replace(index, samples=(replace(index.samples[0], **change),)))
    report = check(tmp_path)
    assert [(p.shard, p.key, p.kind) for p in report.problems] == [
        ("shard-00001.tar", "", "index"),
        ("shard-00002.tar", "clip002", "index"),
        ("shard-00003.tar", "clip003", "index"),
        ("shard-00003.tar", "elsewhere", "missing"),
    ]
    assert "duration is 2.5 in the index, but 2.0" in report.problems[1].detail
    assert [(n.shard, n.kind) for n in report.notes] == [("shard-00002.tar", "shards")]  # number 1 is missing


def test_every_flipped_bit_of_a_sample_is_found(tmp_path: Path) -> None:
    """In the json, the video, and the index itself; wherever it is."""
    write_shards([clip(0), clip(1)], tmp_path)
    (shard,) = load_index(tmp_path)
    whole, index = shard.path.read_bytes(), index_path(shard.path).read_bytes()
    rng = np.random.default_rng(0)

    def flipped(data: bytes, first: int, size: int) -> bytes:
        at, bit = first + int(rng.integers(size)), int(rng.integers(8))
        return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]

    for field in ("json", "mp4"):
        for _ in range(12):
            shard.path.write_bytes(flipped(whole, *shard.samples[1].members[field][:2]))
            assert [(p.key, p.kind) for p in check(tmp_path).problems] == [("clip001", "checksum")]
    shard.path.write_bytes(whole)
    for _ in range(20):
        index_path(shard.path).write_bytes(flipped(index, 0, len(index)))
        assert [(p.key, p.kind) for p in check(tmp_path).problems] == [("", "index")]


def test_every_kind_is_described() -> None:
    assert not PROBLEMS.keys() & NOTES.keys()


def test_command_line(tmp_path: Path, cli: Any) -> None:
    write_shards([clip(0), clip(0) | {"__key__": "twin"}], tmp_path / "in")
    report = tmp_path / "new" / "report.json"
    args = ("shards", "check", str(tmp_path / "in"), "--workers", "1", "--json", str(report))
    done = cli(*args, "--recipe", "recipes/tiny/stage3_long.yaml", check=False)
    assert "twin  duplicate: mp4 has the same bytes as a file of 'clip000' in shard-00000.tar" in done.stdout
    assert (done.returncode, done.stderr) == (1, "")
    found = json.loads(report.read_text())
    assert found["problems"][0].keys() == {"shard", "key", "kind", "detail"}
    assert found["forecast"]["wanted"] == {"fps": 1.0, "max_frames": 512, "image_size": 32}
    with pytest.raises(ValueError, match="--accept dupes: no such kind of problem; there are tar"):
        config_of(None, None, None, None, ["dupes"])
    accepting = config_of(None, 2.0, 8, 100, ["duplicate"])
    assert (accepting.frames.fps, accepting.frames.max_frames, accepting.max_text) == (2.0, 8, 100)
    assert check_folder(tmp_path / "in", accepting, 0)
