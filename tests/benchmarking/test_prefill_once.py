"""Fifteen questions about a long video: one prefill for all of them, the same answers, a fraction of the time."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from export_helpers import random_run
from video_helpers import write_clip

from timeviper.benchmarking.bench_run import Wanted, bench_run
from timeviper.model.viper import TimeViper

FRAMES, QUESTIONS, ALONE = 1024, 15, 2


@pytest.mark.slow
def test_a_question_costs_at_most_a_fifth_at_1024_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what it costs with a prefill of its own, which is timed on the first two questions."""
    write_clip(tmp_path / "long.mp4", FRAMES, options={"crf": "45", "preset": "ultrafast"})
    asked = [
        {"id": str(q), "video": "long.mp4", "question": f"Number {q}?", "options": ["red", "blue"], "answer": "A"}
        for q in range(QUESTIONS)
    ]
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    run = random_run(tmp_path / "run")
    frames: list[int] = []
    plain = TimeViper.encode
    monkeypatch.setattr(TimeViper, "encode", lambda self, *a: (frames.append(len(a[0])), plain(self, *a))[1])
    seconds, replies = {}, {}
    for prefill, limit in (("video", 0), ("question", ALONE)):
        frames.clear()
        wanted = Wanted(
            *("mcq", run, tmp_path / "set.jsonl", [tmp_path]),
            out=tmp_path / prefill, frames=f"uniform:{FRAMES}", prefill=prefill, limit=limit, max_new_tokens=8,
        )  # fmt: skip
        begun = time.process_time()
        made = bench_run(wanted, quiet=True)
        count = limit or QUESTIONS
        seconds[prefill] = (time.process_time() - begun) / count
        replies[prefill] = {key: reply.reply for key, reply in made.of("").items()}
        assert sum(frames) == FRAMES * (1 if prefill == "video" else count)
    assert replies["question"] == {key: replies["video"][key] for key in replies["question"]}
    told = ", ".join(f"{value:.2f} s with a prefill a {name}" for name, value in seconds.items())
    print(f"a question about {FRAMES} frames: {told}")
    assert seconds["video"] <= seconds["question"] / 5
