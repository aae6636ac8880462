"""Two capsules: their difference on the same questions, and what is not comparable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from capsules import DEPENDS, choice, reply, write

from timeviper.benchmarking import capsule_write
from timeviper.benchmarking.capsule import Shown
from timeviper.benchmarking.compare_capsules import NotComparable, compare_capsules


def pair(tmp_path: Path, other: dict[str, Any] | None = None, prompt: str = "") -> list[Path]:
    items = [choice(f"q{i}", 0, f"v{i // 2}") for i in range(40)]
    a: dict[str, str | None] = {f"q{i}": "A" if i < 18 else "B" for i in range(40)}
    b: dict[str, str | None] = {f"q{i}": "A" if 8 <= i < 38 else "B" for i in range(40)}
    return [write(tmp_path / "a", items, a), write(tmp_path / "b", items, b, model={"weights": "22"}, **(other or {}))]


def test_flips_and_the_interval_of_the_difference(tmp_path: Path) -> None:
    made = compare_capsules(*pair(tmp_path))
    (row,) = made.rows
    assert (row.a, row.b, row.only_a, row.only_b, row.n) == (45.0, 75.0, 8, 20, 40)
    assert row.p == pytest.approx(0.0357, abs=5e-4)
    assert row.difference == pytest.approx(30.0)
    assert row.low < 30 < row.high
    assert made.notes == ["only 20 videos: with fewer than 40 the intervals are too narrow"]


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"frames": {"protocol": "uniform:64"}}, "frames.protocol is fps:1:256 there, not uniform:64"),
        ({"template": {"form": "lmms"}}, "template.form is official there, not lmms"),
        ({"subtitles": {"rule": "all"}}, "subtitles.rule is none there, not all"),
    ],
)
def test_other_frames_or_prompts_are_refused(tmp_path: Path, other: dict[str, Any], says: str) -> None:
    with pytest.raises(NotComparable, match=says):
        compare_capsules(*pair(tmp_path, other))


def test_frames_and_prompts_are_compared_one_by_one(tmp_path: Path) -> None:
    items = [choice("q0")]
    a, b = (capsule_write.begin(tmp_path / name, DEPENDS, items, [""]) for name in "ab")
    capsule_write.Part(a.folder, a.header["id"], 0).add([reply("q0", "A")], [Shown("v", (0.5, 1.5), 2.0)])
    capsule_write.Part(b.folder, b.header["id"], 0).add([reply("q0", "A", prompt="x")], [Shown("v", (0.5,), 2.0)])
    with pytest.raises(NotComparable, match=r"frames of 1 videos \(v: 2 and 1\); prompts of 1 questions \(first: q0\)"):
        compare_capsules(a.folder, b.folder)
