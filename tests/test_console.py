"""A line of progress: what a terminal shows, and what a log holds."""

from __future__ import annotations

import io
import sys

import pytest
from rich.cells import cell_len

from timeviper.console import WIPE, ProgressLine, fitted

STATE = (
    "[=========           ] stage2_instruct  36/800  loss 0.0948  tokens right 0.957  lr 1.6e-03  4,686 tok/s  "
    "607 frames/s  data wait 1.4%  0.9 GB  left 0:03:44"
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_line_now_and_then_and_the_last() -> None:
    out = io.StringIO()
    with ProgressLine(out) as line:
        for n in range(5):
            line(f"{n} done")
    assert out.getvalue() == "4 done\n"
    with ProgressLine(out, every=0) as line:
        line("one")
        line("two")
    assert out.getvalue() == "4 done\none\ntwo\n", "what was shown is not repeated"
    with ProgressLine(out):
        pass
    with ProgressLine(out, stays=False) as line:
        line("three")
    assert out.getvalue() == "4 done\none\ntwo\n"


def test_a_terminal_has_one_line_that_ends_with_the_work() -> None:
    out = Terminal()
    with ProgressLine(out, every=0) as line:
        line("one")
        line.end()
        out.write("said in between\n")
        line("two")
        line.every = 60
        line("three")
    assert out.getvalue() == f"{WIPE}one\nsaid in between\n{WIPE}two{WIPE}three\n"
    out = Terminal()
    with ProgressLine(out, every=0, stays=False) as line:
        line("one")
    assert out.getvalue() == f"{WIPE}one{WIPE}"


def test_the_time_left_is_told_by_what_took_time() -> None:
    out = io.StringIO()
    line = ProgressLine(out, every=0)
    line.begun -= 600
    line.count(1200, 4000, "samples", "3/10 shards", kept=1000)
    line.count(1000, 4000, "samples", kept=1000)
    line.count(4000, 4000, "samples", kept=1000)
    assert out.getvalue().splitlines() == [
        "1,200/4,000 samples  3/10 shards  left 2:20:00",
        "1,000/4,000 samples",
        "4,000/4,000 samples",
    ]


@pytest.mark.parametrize("width", [200, 120, 80, 60, 40, 20, 1])
def test_a_state_fits_the_terminal(width: int) -> None:
    shown = fitted(STATE, width)
    assert len(shown) < width
    assert shown == STATE or width < 160
    assert shown.startswith("stage2_instruct  36/800") or width in (200, 20, 1)
    assert shown.endswith("left 0:03:44") or width < 40
    assert "loss 0.0948" in shown or width < 60
    wide = fitted(f"12 samples checked, now {'映' * 60}.tar", width)
    assert cell_len(wide) < width


def test_messages_begin_on_a_line_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever writes: to both streams, and to none that is a file."""
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with ProgressLine(every=0) as line:
        line("one")
        print("said")
        line("two")
        print("warned", file=sys.stderr)
        print("again")
        line("three")
    assert (sys.stdout, sys.stderr) == (out, err)
    assert out.getvalue() == f"{WIPE}one{WIPE}said\n{WIPE}two{WIPE}again\n{WIPE}three\n"
    assert err.getvalue() == "warned\n"
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    with ProgressLine(every=0) as line:
        line("four")
        assert sys.stderr is file
