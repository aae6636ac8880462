"""Looking at five and a half hours of video takes the memory of a quarter of it, but for what the formulas say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tree import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from bench_look import LENGTHS, Case, in_own_process


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["look", "relevance"])
def test_memory_is_flat_from_20_to_80_thousand_tokens(verb: str, tmp_path: Path) -> None:
    short, long = (in_own_process(Case("early", verb, seconds), tmp_path) for seconds in (LENGTHS[0], LENGTHS[-1]))
    print(short, long, sep="\n")
    assert (short.tokens // 1000, long.tokens // 1000) == (20, 80)
    rest = [one.peak_mb - one.kept_mb - one.look_mb for one in (short, long)]
    assert rest[1] < 1.1 * rest[0]
