"""`timeviper explain`, `preview`, `plan` and `doctor`: what will be, before a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from timeviper.cli.options import Overrides, RecipeFile
from timeviper.errors import one_of
from timeviper.planning.hardware import GPUS

DOES_NOT_FIT = 3  # of `plan`: a recipe that is wrong ends with 2, anything else with 1


def explain(
    recipe: RecipeFile,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PART | KEY=VALUE]...", help="Parts to show, such as data.frames; settings that differ."
        ),
    ] = None,
) -> None:
    """Print every setting with its value, where it was written, and what it means; into a pipe, a line each."""
    from timeviper.cli.explain import explain as show_settings

    show_settings(recipe, words or [])


def doctor() -> None:
    """Print what this machine has, and which implementation each operation will use and why."""
    from timeviper.cli.doctor import doctor as examine

    examine()


def preview(
    recipe: RecipeFile,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(help="Steps to show.")] = 3,
    ranks: Annotated[int, typer.Option(help="Ranks to deal the packs to.")] = 1,
    start: Annotated[int, typer.Option(help="First step to show.")] = 0,
    keys: Annotated[bool, typer.Option("--keys", help="Name every sample, not only the first of a pack.")] = False,
) -> None:
    """Print what each rank will read, and how the sources are mixed, from the shard indexes alone."""
    from timeviper.config.load import load_recipe
    from timeviper.planning.preview import preview as show_plan

    show_plan(load_recipe(recipe, overrides or []), steps, ranks, start=start, keys=keys)


def plan(
    recipe: RecipeFile,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE2] [KEY=VALUE]...", help="A recipe to compare with; settings, for both."),
    ] = None,
    gpus: Annotated[int, typer.Option(help="GPUs in all, on nodes of 8.")] = 1,
    gpu: Annotated[str, typer.Option(help=f"{one_of(GPUS)}.")] = "h200",
    efficiency: Annotated[float, typer.Option(help="Share of the GPU's peak arithmetic that is reached.")] = 0.4,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object with every figure.")] = False,
) -> None:
    """Print what a stage needs, before it runs: tokens, FLOPs, memory of a GPU, hours, and what would make it fit.

    The exit code is 3 where it does not fit.
    """
    from timeviper.config.shipped import means_recipe
    from timeviper.planning.hardware import Assumptions
    from timeviper.planning.show import plan as show_costs

    others = [Path(word) for word in overrides or [] if "=" not in word and means_recipe(word)]
    changes = [word for word in overrides or [] if Path(word) not in others]
    if not show_costs([recipe, *others], changes, gpus, gpu, Assumptions(efficiency=efficiency), as_text=not json):
        raise typer.Exit(DOES_NOT_FIT)
