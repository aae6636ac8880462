"""Fifteen questions about a long video: one prefill for all of them, the same answers, a fraction of the time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import pytest
from export_helpers import random_run
from video_helpers import write_clip

from timeviper.benchmarking.asking import Asker, Way
from timeviper.benchmarking.forms import LETTER_FORM
from timeviper.benchmarking.item import Item, VideoRef
from timeviper.benchmarking.protocol import protocol_of
from timeviper.inference.ask import load
from timeviper.model.viper import TimeViper

FRAMES, QUESTIONS, ALONE = 1024, 15, 2


@pytest.mark.slow
def test_a_question_costs_at_most_a_fifth_at_1024_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame a second of 17 minutes at 320 x 240; of what a question costs with a prefill of its own, which is timed
    on the first two. A smaller video costs the tiny model less than what questions add."""
    video = str(write_clip(tmp_path / "long.mp4", 4 * FRAMES, fps=4, size=(320, 240), options={"preset": "ultrafast"}))
    model = load(random_run(tmp_path / "run"), device="cpu")
    protocol = protocol_of(f"fps:1:{FRAMES}", model.recipe.data.frames)
    texts = ("red", "blue")
    items = [Item(str(q), VideoRef(video, video), "mcq", f"Number {q}?", texts, 0, ("A",)) for q in range(QUESTIONS)]
    frames: list[int] = []
    plain = TimeViper.encode
    monkeypatch.setattr(TimeViper, "encode", lambda self, *a: (frames.append(len(a[0])), plain(self, *a))[1])
    seconds, replies = {}, {}
    ways: tuple[tuple[Literal["video", "question"], list[Item]], ...] = (("video", items), ("question", items[:ALONE]))
    for prefill, asked in ways:
        frames.clear()
        asker = Asker(model, Way(LETTER_FORM, protocol, max_new_tokens=4, prefill=prefill))
        begun = time.process_time()
        found, _ = asker.ask(asked)
        seconds[prefill] = (time.process_time() - begun) / len(asked)
        replies[prefill] = [reply.reply for reply in found]
        assert sum(frames) == FRAMES * (1 if prefill == "video" else ALONE)
        assert not any(reply.error for reply in found)
    assert replies["question"] == replies["video"][:ALONE]
    told = ", ".join(f"{value:.2f} s with a prefill a {name}" for name, value in seconds.items())
    print(f"a question about {FRAMES} frames: {told}")
    assert seconds["video"] <= seconds["question"] / 5
