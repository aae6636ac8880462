"""Parts for `bench_gpu.py` whose cases do what it must outlive; which ran stands in the file that GPU_PARTS names."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bench_gpu_page import Case, Part, Row, Setting


def _done(name: str) -> int:
    """Note that a case runs; how often it has run before."""
    log = Path(os.environ["GPU_PARTS"])
    before = log.read_text().split() if log.exists() else []
    log.write_text(" ".join([*before, name]))
    return before.count(name)


def _fine(name: str) -> Iterator[Row]:
    yield {"case": name, "figure": 1.5 + _done(name)}


def _killed(name: str) -> Iterator[Row]:
    """As by the kernel when memory is short; the second time it works."""
    again = _done(name)
    yield {"case": f"{name}, first half", "figure": 2.5}
    if not again:
        os.kill(os.getpid(), signal.SIGKILL)
    yield {"case": f"{name}, second half", "figure": 3.5}


def _raises(name: str) -> Iterator[Row]:
    if not _done(name):
        raise ValueError("the first line\nand a second")
    yield from _fine(name)


def _hangs(name: str) -> Iterator[Row]:
    if not _done(name):
        time.sleep(60)
    yield from _fine(name)


def _part(letter: str, cases: dict[str, Callable[[str], Iterator[Row]]]) -> Part:
    found = [Case(name, partial(rows, name)) for name, rows in cases.items()]

    def listed(setting: Setting) -> list[Case]:
        return found

    return Part(letter, f"Part {letter.upper()}", "About it.", 60, {"case": "", "figure": ".2f"}, listed)


PARTS = [
    _part("f", {"last": _fine}),
    _part("a", {"one": _fine, "two": _killed, "three": _raises, "four": _fine}),
    _part("d", {"five": _fine, "six": _hangs, "seven": _fine}),
]
