"""`timeviper analyse flow`: where vision flows into text, by edge, depth and kind of mixer."""

from __future__ import annotations

from typing import Annotated

import typer

from timeviper.cli.analyse import OVERRIDES, Dtype, Json, Out, Run, analyse, continuing, tell


@analyse.command("flow", context_settings=OVERRIDES)
def flow(
    run: Run,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[edges=V-I,V-A,V-IA] [layers=from] [mixers=*,M,*M,*MT] [at=BLOCKS] [samples=100] [KEY=VALUE]...",
            help="edges: vision to instruction, to answer, to both. layers: from, until, only, window:3 of each block. "
            "mixers: * attention, M Mamba-2, T TransV, and several at once. at: blocks, all if not said. Settings of "
            "the run.",
        ),
    ] = None,
    out: Out = None,
    json: Json = False,
    dtype: Dtype = None,
) -> None:
    """Cut what vision tells the text, by depth and by kind of mixer, and see what answers lose.

    Says what a cut of attention alone misses. What was stopped continues with the same command.
    """
    from timeviper.analysis import flow_page as shown
    from timeviper.analysis.flow_findings import findings, warnings
    from timeviper.analysis.flow_options import SETTINGS, read_options
    from timeviper.analysis.flow_study import study
    from timeviper.analysis.options import Words
    from timeviper.analysis.subject import load_subject
    from timeviper.analysis.written import as_json, write

    typed = Words("analyse flow", words or [], SETTINGS)
    typed.check()
    subject = load_subject(run, typed.overrides, dtype)
    options = read_options(typed, subject.model.decoder)
    folder = out or subject.folder
    kept = folder / "flow.partial.jsonl"
    with continuing() as line:
        found = study(subject, options, kept, line.count)
    numbers = shown.numbers(found)
    page = write(folder, "flow", shown.page(subject, found), numbers)
    kept.unlink(missing_ok=True)
    if json:
        return print(as_json(numbers))
    tell(shown.terminal(found), findings(found), warnings(found))
    print(page)
