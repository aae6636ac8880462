"""`timeviper analyse <what> RUN`: look inside a finished stage; each writes a page, its numbers and its pictures."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated

import typer

from timeviper.cli.shards import HELP, STOPPED
from timeviper.console import ProgressLine, console

if TYPE_CHECKING:
    from rich.table import Table

analyse = typer.Typer(
    no_args_is_help=True,
    context_settings=HELP,
    help="Look inside a finished stage: what remembers, who reads whom, where vision flows, what can go. Each writes a "
    "page into RUN/analysis/.",
)
OVERRIDES = {**HELP, "ignore_unknown_options": True}

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder or an export.")]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Where to write; RUN/analysis if not said.")
]
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
    from timeviper.analysis import memory as measured
    from timeviper.analysis import memory_page as shown
    from timeviper.analysis.options import Words, whole
    from timeviper.analysis.subject import load_subject
    from timeviper.analysis.written import as_json, write

    typed = Words("analyse memory", words or [], ("at", "samples"))
    at = typed.seconds("at", 600.0)
    samples = int(typed.number("samples", whole(1), "a whole number, 1 or more", 50))
    typed.check()
    subject = load_subject(run, typed.overrides, dtype)
    with ProgressLine(sys.stderr, stays=False) as line:
        found = measured.measure(subject, at, samples, lambda done: line.count(done, samples, "samples"))
    page = write(out or subject.folder, "memory", shown.page(subject, found), {"memory": found})
    if json:
        return print(as_json(found))
    tell([shown.terminal(found)], warnings=found.warnings)
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
    from timeviper.analysis import maps_page as shown
    from timeviper.analysis.cut import mixers
    from timeviper.analysis.maps import curve, fitting, see, some
    from timeviper.analysis.options import Words
    from timeviper.analysis.subject import load_subject
    from timeviper.analysis.written import as_json, write

    typed = Words("analyse maps", overrides or [])
    typed.own |= {} if blocks is None else {"--blocks": blocks}
    typed.check()
    subject = load_subject(run, typed.overrides, dtype)
    wanted = typed.blocks("--blocks", subject.layout)
    typed.check()
    there = wanted or mixers(subject.layout)
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
    tell([shown.terminal(curves)])
    print(page)


def tell(tables: Iterable[Table], sentences: Iterable[str] = (), warnings: Iterable[str] = ()) -> None:
    """What was found; sentences one by one, on a terminal in its width."""
    out = console()
    wrapped = partial(fill, width=out.width, subsequent_indent="  ", break_on_hyphens=False)  # V-I stays whole
    for table in tables:
        out.print(table)
    for words in (*(f"- {words}" for words in sentences), *(f"warning: {words}" for words in warnings)):
        print(wrapped(words) if out.is_terminal else words)


@contextmanager
def continuing() -> Iterator[ProgressLine]:
    """A line of progress of figures that are kept as they come: who stops them is told so."""
    try:
        with ProgressLine(sys.stderr, stays=False) as line:
            yield line
    except KeyboardInterrupt:
        print("stopped: the figures so far are kept, and the same command continues", file=sys.stderr)
        raise typer.Exit(STOPPED) from None
