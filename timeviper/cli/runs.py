"""`timeviper train`, `eval`, `compare`, `needles` and `replay`: a stage, and what it is worth."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from timeviper.cli.needle_options import COUNT, DEPTHS, LENGTHS, TYPES, NeedleOptions
from timeviper.cli.options import Dtype, MaxNewTokens, Overrides, Quantise, RecipeFile, quantised
from timeviper.cli.shards import STOPPED

DOUBTFUL = 4  # a stage that has finished with weights that can hardly be what was wanted


def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Only check settings, files and the ranks of this launch; say what was checked."),
    ] = False,
    fits: Annotated[
        bool, typer.Option("--fits", hidden=True, help="Only check the ranks: stages before this one may be missing.")
    ] = False,
) -> None:
    """Run a stage, or continue it where it stopped.

    Ends with 0: finished; 4: finished with weights that can hardly be right; 130: stopped and saved; 2: the recipe; 1.
    """
    from timeviper.config.load import load_recipe
    from timeviper.training.inputs import checked, ready_recipe
    from timeviper.training.launch import check_ranks, ranks

    if check or fits:
        loaded = load_recipe(recipe, overrides or [])
        check_ranks(loaded, math.prod(ranks()))
        if check:
            print("\n".join(checked(loaded, math.prod(ranks()))))
        return
    ready = ready_recipe(recipe, overrides or [])  # what a person can mend is said before the slow imports
    from timeviper.trainer import Outcome, run_stage

    outcome = run_stage(ready, command=_again())
    if outcome is not Outcome.FINISHED:
        raise typer.Exit(STOPPED if outcome is Outcome.STOPPED else DOUBTFUL)


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or the recipe that made it.")],
    overrides: Overrides = None,
    again: Annotated[bool, typer.Option("--again", help="Answer again, though answers are there.")] = False,
    max_new_tokens: MaxNewTokens = None,
    dtype: Dtype = None,
    quantise: Quantise = None,
) -> None:
    """Answer the held-out questions, beside three baselines; prints a table and writes RUN/eval.json.

    With overrides that change it, the report goes to RUN/evals/. After a recipe, they also say which run is meant.
    Under torchrun the ranks share the questions. The same command continues what was stopped.
    """
    from timeviper.config.shipped import means_recipe

    changes, by_recipe = overrides or [], False
    if means_recipe(run):
        from timeviper.config.load import load_recipe

        run, by_recipe = Path(load_recipe(run, changes).run_dir), True
    from timeviper.inference.eval_report import print_table
    from timeviper.inference.evaluate import changes_of, finished
    from timeviper.inference.evaluate import evaluate as answer

    if by_recipe:
        changes = changes_of(run, changes)

    if max_new_tokens is not None:
        changes = [*changes, f"eval.max_new_tokens={max_new_tokens}"]
    changes = [*changes, *quantised(quantise)]
    report, first = None if again else finished(run, changes, dtype), os.environ.get("RANK", "0") == "0"
    try:
        report = report or answer(run, changes, dtype=dtype, again=again)
    except KeyboardInterrupt:
        if first:
            print("stopped: the answers so far are kept, and the same command continues", file=sys.stderr)
        raise typer.Exit(STOPPED) from None
    if first:
        print_table(report)


def compare(
    a: Annotated[Path, typer.Argument(metavar="RUN_A", help="A run folder or an export; or a capsule of `bench run`.")],
    b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another one.")],
    overrides: Overrides = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Compare two runs on the same held-out questions, with intervals; answers what they have not answered yet.

    Overrides change both evaluations, such as data.val.videos.shards=FOLDER for other questions.
    """
    from json import dumps

    from timeviper.benchmarking.capsule import is_capsule

    if is_capsule(a) or is_capsule(b):
        from timeviper.benchmarking.compare_capsules import compare_capsules
        from timeviper.benchmarking.compare_capsules_table import print_capsules

        if overrides:
            raise ValueError(f"a capsule's answers are given: {overrides[0]} can change nothing; leave it out")
        both = compare_capsules(a, b)
        print(dumps(both.as_dict(), indent=2)) if json else print_capsules(both)
        return
    from timeviper.inference.compare import compare as compare_runs
    from timeviper.inference.compare_table import print_comparison

    comparison = compare_runs(a, b, overrides or [])
    if json:
        print(dumps(comparison.as_dict(), indent=2))
    else:
        print_comparison(comparison)


def needles(
    words: Annotated[
        list[str], typer.Argument(metavar="RUN... [KEY=VALUE]...", help="Run folders or exports; settings, for all.")
    ],
    lengths: Annotated[
        str | None, typer.Option(help=f"Frames of the videos; {LENGTHS}, or all that --needles has, if not said.")
    ] = None,
    depths: Annotated[
        int, typer.Option(min=1, max=50, help="Equal parts of a video, each with a needle; of the procedural world.")
    ] = DEPTHS,
    count: Annotated[int, typer.Option(min=1, help="Videos of each length at most.")] = COUNT,
    folder: Annotated[
        str | None,
        typer.Option("--needles", metavar="FOLDER", help="Made by `shards needles`; else of the procedural world."),
    ] = None,
    types: Annotated[str, typer.Option(help="Questions: at, when, order, between.")] = TYPES,
    also: Annotated[
        list[str] | None,
        typer.Option(metavar="SETTING", help='drop, none, blind or "KEY=VALUE ...": one more map; may be repeated.'),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Picture; RUN/needles/map.svg if not said, with a .json.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the figures instead of tables.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Answer again, though answers are there.")] = False,
    dtype: Dtype = None,
) -> None:
    """Ask for needles in videos of many lengths and depths, streamed; draws a map of what is found.

    The first answers are kept: the same command continues, and more lengths cost only what is new.
    """
    from timeviper.cli.needles import draw

    try:
        draw(
            words,
            needles=folder,
            lengths=lengths,
            options=NeedleOptions(depths=depths, count=count),
            types=types,
            also=also or [],
            out=out,
            as_json=json,
            dtype=dtype,
            again=again,
        )
    except KeyboardInterrupt:
        print("stopped: the answers so far are kept, and the same command continues", file=sys.stderr)
        raise typer.Exit(STOPPED) from None


def replay(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder in RUN/incidents.")],
    overrides: Overrides = None,
    layers: Annotated[bool, typer.Option("--layers", help="Print sizes of activations and gradients.")] = False,
) -> None:
    """Repeat a step that went wrong, in one process; ends with 0 if it goes wrong in the same way.

    Start it where the run was started. Overrides say where its data lie now, such as data.sources.x.shards=FOLDER.
    """
    from timeviper.inspection.replay import replay as repeat

    if not repeat(bundle, overrides or [], layers=layers):
        raise typer.Exit(1)


def _again() -> str:
    """What continues this run: its command line, unless a launcher wrote it."""
    if "LOCAL_WORLD_SIZE" in os.environ:
        return "the same command"
    program = "timeviper" if shutil.which("timeviper") == sys.argv[0] else os.path.relpath(sys.argv[0])
    return shlex.join([program, *sys.argv[1:]])
