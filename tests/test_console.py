"""A line of progress: what a terminal shows, and what a log holds."""

from __future__ import annotations

import io

from timeviper.console import WIPE, ProgressLine


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
