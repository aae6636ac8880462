"""V-NIAH through `bench run`: the picture is where the item says, and each haystack is a video of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from export_helpers import random_run
from set_makers import as_parquet
from shard_helpers import picture
from video_helpers import write_clip

from timeviper.benchmarking.bench_run import Wanted, bench_run
from timeviper.benchmarking.needle_frame import WithNeedle
from timeviper.config import FramesConfig
from timeviper.datamodules.frames.stream import FrameStream

SIZE = 32


@pytest.mark.parametrize("at", [0, 4, 7, 10, 99])
@pytest.mark.parametrize("count", [1, 3, 7, 50])
def test_a_picture_stands_between_two_frames(tmp_path: Path, at: int, count: int) -> None:
    video = write_clip(tmp_path / "v.mp4", 10)  # each frame carries its number
    haystack = FrameStream(video, SIZE, FramesConfig(1e6, 1, 10))
    plain = np.concatenate([*haystack.pieces(4)])
    needle = np.full((3, SIZE, SIZE), 77, np.uint8)
    made = WithNeedle(haystack, at, needle)
    pieces = [*made.pieces(count)]
    assert {len(piece) for piece in pieces[:-1]} <= {count}
    place = min(at, 10)
    assert np.array_equal(np.concatenate(pieces), np.insert(plain, place, needle, 0))
    assert len(made.times) == 11
    assert np.all(np.diff(made.times) >= 0)
    made.recount()
    assert np.delete(made.times, place) == pytest.approx(haystack.times)


def test_needles_are_asked_each_in_its_haystack(tmp_path: Path) -> None:
    needle = {
        "question": "What is on the sign?",
        "answer": "a bear",
        "image": {"bytes": picture(3)["png"], "path": "a"},
    }
    as_parquet(tmp_path / "test-00000-of-00001.parquet", [needle] * 5)
    write_clip(tmp_path / "long_video.mp4", 230, options={"crf": "40"})
    run = random_run(tmp_path / "run")
    wanted = Wanted("vniah", run, tmp_path, [tmp_path], frames="first:10:200", limit=2, max_new_tokens=2)
    made = bench_run(wanted, quiet=True)
    assert [len(made.frames[f"long_video with needle0#200#{d}"].times) for d in ("0", "0.2")] == [201, 201]
    assert not any(reply.error for reply in made.replies.values())
    short = bench_run(replace(wanted, frames="first:10:100"), quiet=True)
    assert (
        "put into the first 200 frames: give --frames first:1:200 or more" in next(iter(short.replies.values())).error
    )
