"""A run's own held-out questions as a test set: the answers and shares of `timeviper eval`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from export_helpers import random_run
from shard_helpers import clip

from timeviper.benchmarking.bench_run import Wanted, bench_run
from timeviper.benchmarking.rescore import rescore
from timeviper.datamodules.shards.pool import write_shards
from timeviper.inference.evaluate import evaluate


def test_held_out_answers_are_those_of_eval(tmp_path: Path) -> None:
    """The same questions through `timeviper eval` and through a capsule: the same words, the same shares."""
    shards = tmp_path / "shards"
    talk = [{"role": "user", "content": "When?"}, {"role": "assistant", "content": "from 0.5 to 1.5 seconds"}]
    samples = [clip(n) for n in range(5)]
    for sample in samples:
        sample["json"]["conversations"].append({"type": "when", "messages": talk})
    write_shards(samples, shards)
    run = random_run(tmp_path / "run", val=shards)
    settings = ["data.workers=0", "eval.max_new_tokens=6", "eval.tokens_per_piece=130"]
    report = evaluate(run, settings, quiet=True)
    made = bench_run(Wanted("held-out", run, max_new_tokens=6, overrides=tuple(settings)), quiet=True)
    assert made.folder.parent == run / "bench"
    rows = [json.loads(line) for line in next(run.glob("evals/*/answers.jsonl")).read_text().splitlines()]
    assert {row["key"]: row["written"] for row in rows} == {key: r.reply for key, r in made.of("").items()}
    scores = {(s.kind, s.measure): s.value / 100 for s in rescore(made).official}
    assert scores["words", "accuracy"] == pytest.approx(report.scores.accuracy["shape"])
    assert scores["windows", "R1@0.5"] == pytest.approx(report.scores.accuracy["when"])
    assert scores["windows", "mIoU"] == pytest.approx(report.scores.miou)
