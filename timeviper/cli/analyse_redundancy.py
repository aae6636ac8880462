"""`timeviper analyse redundancy`: what losing vision tokens costs by depth, and the best schedule under a budget."""

from __future__ import annotations

from typing import Annotated

import typer

from timeviper.cli.analyse import OVERRIDES, Dtype, Json, Out, Run, analyse, continuing, tell


@analyse.command("redundancy", context_settings=OVERRIDES)
def redundancy(
    run: Run,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[select=RULES] [keep=.5,.25,.1] [budget.flops=.6] [KEY=VALUE]...",
            help="select: who chooses: uniform, random, last, question, mamba. keep: shares. budget.flops, "
            "budget.tokens, budget.kv: shares of what it takes without stages. at: blocks, all if not said. stages: 3 "
            "at most. samples: 100. Settings of the run.",
        ),
    ] = None,
    out: Out = None,
    json: Json = False,
    dtype: Dtype = None,
) -> None:
    """Drop vision tokens before each block, by several rules, and find the best schedule under a budget.

    The best five are measured as a whole; the winner is written as a recipe. Another budget takes seconds.
    """
    from timeviper.analysis import redundancy_page as shown
    from timeviper.analysis.options import Words
    from timeviper.analysis.redundancy_findings import findings, warnings
    from timeviper.analysis.redundancy_study import SETTINGS, read_options, study
    from timeviper.analysis.schedule_recipe import words_for_eval, write_recipe
    from timeviper.analysis.subject import load_subject
    from timeviper.analysis.written import as_json, write

    typed = Words("analyse redundancy", words or [], SETTINGS)
    typed.check()
    subject = load_subject(run, typed.overrides, dtype)
    options = read_options(typed, subject.model.decoder)
    folder = out or subject.folder
    kept = folder / "redundancy-drops.jsonl"  # stays: another budget needs no other table
    with continuing() as line:
        found = study(subject, options, kept, line.count)
    chosen = found.chosen[found.winner] if found.winner is not None else None
    eval_words = words_for_eval(subject, chosen) if chosen else []
    numbers = shown.numbers(found, eval_words)
    page = write(folder, "redundancy", shown.page(subject, found, eval_words), numbers)
    recipe = write_recipe(subject, chosen, folder / "schedule.yaml", findings(found)[-2:]) if chosen else None
    if json:
        return print(as_json(numbers))
    tell(shown.terminal(found), findings(found), warnings(found))
    if recipe:
        print(f"train it:  timeviper train {recipe}")
        print(f"as it is:  timeviper eval {run} {' '.join(eval_words)}")
    print(page)
