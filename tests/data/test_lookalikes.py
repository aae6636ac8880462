"""The search for lookalikes finds what comparing each with each finds: the same first ones, whatever the media are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from timeviper.datamodules.checks import lookalikes as module
from timeviper.datamodules.checks.lookalikes import lookalikes

Looks = NDArray[np.uint8]


def each_with_each(seen: Looks, rms: float, cell: float, known: int = 0) -> list[int]:
    rows, first = [look.reshape(-1).astype(np.int64) for look in seen], []
    for i in range(len(rows)):
        away = [np.abs(rows[i] - rows[j]) for j in range(i)]
        alike = [
            j
            for j in range(i)
            if first[j] < 0 and (away[j] ** 2).sum() <= rms**2 * rows[i].size and away[j].max() <= cell
        ]
        first.append(alike[0] if alike and i >= known else -1)
    return first


@st.composite
def some_looks(draw: st.DrawFn) -> tuple[Looks, float, float]:
    """Groups of signatures around centres, as near and as many as chance has it; and limits for them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, centres = draw(st.integers(0, 150)), draw(st.integers(1, 40))
    shape = draw(st.sampled_from([(1, 3, 2, 2), (8, 3, 2, 2), (3,), (2, 3, 4, 4)]))
    spread, noise = draw(st.sampled_from([0.0, 2.0, 10.0, 60.0])), draw(st.sampled_from([0.0, 0.7, 1.5, 4.0]))
    middle = 128 + spread * rng.standard_normal((centres, *shape))
    seen = middle[rng.integers(0, centres, count)] + noise * rng.standard_normal((count, *shape))
    rms, cell = draw(st.floats(0, 12)), draw(st.sampled_from([0.0, 2.0, 6.0, 16.0, 255.0]))
    return seen.round().clip(0, 255).astype(np.uint8), rms, cell


@given(some_looks(), st.data())
@settings(max_examples=150, deadline=None)
def test_it_finds_what_comparing_each_with_each_finds(found: tuple[Looks, float, float], data: st.DataObject) -> None:
    seen, rms, cell = found
    known = data.draw(st.sampled_from([0, len(seen) // 2]))
    with pytest.MonkeyPatch.context() as patch:  # every way through it, at sizes that can be compared each with each
        for name in ("FEW", "QUERIES", "PAIRS", "EXACT"):
            patch.setattr(module, name, data.draw(st.sampled_from([4, 7, 64])))
        first, differ = lookalikes(seen, rms, cell, known)
    assert first.tolist() == each_with_each(seen, rms, cell, known)
    for i, j in enumerate(first):
        away = seen[i].astype(float) - seen[j]
        assert differ[i] == pytest.approx(np.sqrt((away**2).mean()) if j >= 0 else 0.0, rel=1e-5)


def test_the_limits_themselves_are_alike() -> None:
    seen = np.full((4, 1, 3, 16, 16), 100, np.uint8)
    seen[1] += 2
    seen[2].reshape(-1)[:48] += 8  # 4 x (1 / 16) of 8 squared: RMS 2
    seen[3].reshape(-1)[0] += 9
    assert lookalikes(seen, 2.0, 8.0)[0].tolist() == [-1, 0, 0, -1]
    assert lookalikes(seen, 1.99, 9.0)[0].tolist() == [-1, -1, -1, 0]


def test_copies_are_compared_with_one() -> None:
    """A folder of black videos: the work does not grow with the square of their number."""
    seen = np.zeros((3000, 8, 3, 8, 8), np.uint8)
    seen[1::2] = 200
    compared = 0
    exact = module._Search._differ

    def counted(self: module._Search, a: NDArray[np.int64], b: NDArray[np.int64]):
        nonlocal compared
        compared += len(a)
        return exact(self, a, b)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._Search, "_differ", counted)
        first, _ = lookalikes(seen, 2.5, 16.0)
    assert first.tolist() == [-1, -1] + [0, 1] * 1499
    assert compared < 3 * len(seen)  # one search, one difference for the report, and the few that began
