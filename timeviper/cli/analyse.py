"""`timeviper analyse <what> RUN`: look inside a finished stage; each writes a page, its numbers and its pictures."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from timeviper.cli.shards import HELP
from timeviper.errors import did_you_mean, one_of

analyse = typer.Typer(
    no_args_is_help=True,
    context_settings=HELP,
    help="Look inside a finished stage: what remembers, what attends. Writes RUN/analysis/.",
)
OVERRIDES = {**HELP, "ignore_unknown_options": True}
UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder or an export.")]
Out = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where to write; RUN/analysis if not said.")]
Json = Annotated[bool, typer.Option("--json", help="Print the numbers as JSON instead of a table.")]
Dtype = Annotated[str | None, typer.Option(help="Compute in float32 or bfloat16; as `eval` does if not said.")]


@analyse.command("memory", context_settings=OVERRIDES)
def memory(
    run: Run,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[at=600s] [samples=50] [KEY=VALUE]...",
            help="at: over which time to ask what is left (s, m, h). samples: held-out ones. Settings of the run.",
        ),
    ] = None,
    out: Out = None,
    json: Json = False,
    dtype: Dtype = None,
) -> None:
    """How long each Mamba head remembers: half-life in tokens and seconds, by kind of token, left after a time."""
    own, overrides = options(words or [], {"at": "600s", "samples": "50"})
    at, samples = seconds(own["at"]), whole(own["samples"], "samples")
    from timeviper.analysis import memory as measured
    from timeviper.analysis import memory_page as shown
    from timeviper.analysis.subject import load_subject
    from timeviper.analysis.written import as_json, write
    from timeviper.console import ProgressLine, console

    subject = load_subject(run, overrides, dtype)
    with ProgressLine(sys.stderr, stays=False) as line:
        found = measured.measure(subject, at, samples, lambda done: line.count(done, samples, "samples"))
    page = write(out or subject.folder, "memory", shown.page(subject, found), {"memory": found})
    if json:
        return print(as_json(found))
    console().print(shown.terminal(found))
    for warning in found.warnings:
        print(f"warning: {warning}")
    print(page)


@analyse.command("maps", context_settings=OVERRIDES)
def maps(
    run: Run,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that differ from the run's.")
    ] = None,
    sample: Annotated[
        str | None, typer.Option(metavar="KEY", help="A held-out sample, or how its key ends; the first if not said.")
    ] = None,
    blocks: Annotated[
        str | None, typer.Option(metavar="0,3,8", help="Blocks to draw; all, or a dozen of many, if not said.")
    ] = None,
    without_dt: Annotated[
        bool, typer.Option("--without-dt", help="Leave the step out of a scan's entries, as the paper's notebook does.")
    ] = False,
    out: Out = None,
    json: Json = False,
    dtype: Dtype = None,
) -> None:
    """Maps of who reads whom in one short sample, and shares by part beside content-free null lines."""
    wanted = None if blocks is None else [whole(part, "--blocks", least=0) for part in blocks.split(",")]
    _, settings = options(overrides or [], {})
    from timeviper.analysis import maps_page as shown
    from timeviper.analysis.maps import curve, fitting, mixers, see, some
    from timeviper.analysis.subject import load_subject
    from timeviper.analysis.written import as_json, write
    from timeviper.console import console

    subject = load_subject(run, settings, dtype)
    there = mixers(subject.layout, wanted)
    item = subject.item(sample) if sample else subject.items(1)[0]
    fitting(item)
    (pack,) = subject.packs([item])
    found = [*see(subject.model, pack, there, without_dt)]
    curves = [curve(one) for one in found]
    drawn = found if wanted else some(found)
    folder = out or subject.folder
    numbers = {"sample": pack.keys[0], "without_dt": without_dt, "curves": curves}
    page = write(folder, "maps", shown.page(subject, pack, drawn, curves, without_dt), numbers)
    shown.write_cells(folder / "maps.npz", drawn)
    if json:
        return print(as_json(numbers))
    console().print(shown.terminal(curves))
    print(page)


def options(words: list[str], own: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """A verb's own `name=value` words (defaults: `own`), and the others, which are settings of the run.

    Raises ValueError for a word without a dot that is neither.
    """
    found, rest = dict(own), []
    for word in words:
        name, sign, value = word.partition("=")
        if sign and name in own:
            found[name] = value
        elif sign and "." in name:
            rest.append(word)
        else:
            takes = f"{one_of([f'{n}=..' for n in own])}, and settings" if own else "settings"
            raise OptionError(
                f"{word}: takes {takes} of the run such as data.frames.max_frames=512.{did_you_mean(name, own)}"
            )
    return found, rest


class OptionError(ValueError):
    """A word that a verb does not know."""


def seconds(text: str) -> float:
    """`600`, `600s`, `10m` or `2h` in seconds, above 0."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if not found or found[2] not in UNITS or float(found[1]) <= 0:
        raise OptionError(f"at={text}: takes a time above 0, such as 600s, 10m or 2h")
    return float(found[1]) * UNITS[found[2]]


def whole(text: str, name: str, least: int = 1) -> int:
    if not text.strip().isdecimal() or int(text) < least:
        raise OptionError(f"{name}={text}: takes whole numbers from {least} on")
    return int(text)
