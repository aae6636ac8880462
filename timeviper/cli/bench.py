"""`timeviper bench <verb>`: public test sets."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from timeviper.cli.shards import HELP
from timeviper.console import ProgressLine

bench = typer.Typer(no_args_is_help=True, context_settings=HELP, help="Public test sets: check them, run them.")


@dataclass(frozen=True)
class CheckPlace:
    """Where a set lies."""

    annotations: Path
    videos: list[Path] | None = None
    names: Path | None = None
    precut: bool = False


SetName = Annotated[str, typer.Argument(metavar="SET", help="One of docs/benchmarks.md, such as videomme.")]
Annotations = Annotated[
    Path, typer.Option(metavar="PATH", help="Its annotation file, or a folder that has it, as it is downloaded.")
]
Videos = Annotated[
    list[Path] | None, typer.Option(metavar="DIR", help="Folder of videos or archives, read in place; may be repeated.")
]
Names = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="JSON, or CSV of two columns: what the set calls a video, and its file."),
]
Precut = Annotated[bool, typer.Option("--precut", help="The videos are the clips that are asked about, cut already.")]


@bench.command("check")
def bench_check(
    name: SetName,
    annotations: Annotations,
    videos: Videos = None,
    names: Names = None,
    precut: Precut = False,
    part: Annotated[bool, typer.Option("--part", help="That questions are missing is no problem.")] = False,
    against: Annotated[
        Path | None, typer.Option(metavar="SHARDS", help="Training shards in which its videos are looked for.")
    ] = None,
    state: Annotated[
        Path | None, typer.Option(metavar="DIR", help="That of `shards check`: such shards are not read again.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode; 0: one a core.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Report to write.")] = None,
) -> None:
    """Hold a test set against what was published of it, and look at its videos; no model. Exit code 1: problems."""
    from timeviper.cli.check_bench import check_bench

    place = CheckPlace(annotations, videos, names, precut)
    if not check_bench(name, place, part, against, state, workers or os.cpu_count() or 1, json_file):
        raise typer.Exit(1)


@bench.command("sets")
def bench_sets(
    name: Annotated[str, typer.Argument(metavar="[SET]", help="One of them: what to download, prompts, defects.")] = "",
) -> None:
    """List the test sets, or tell all of one: what was published, what to download, prompts, rules, known defects."""
    from timeviper.cli.check_bench import show_set, show_sets

    if name:
        show_set(name)
    else:
        show_sets()


@bench.command("world")
def bench_world(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the sets.")],
    videos: Annotated[int, typer.Option(min=1, help="Held-out videos of the world, from the first on.")] = 12,
    seed: Annotated[int, typer.Option(help="That of `shards world`.")] = 0,
) -> None:
    """Draw small sets in the files of Video-MME, Charades-STA and YouCook2 from the procedural world."""
    from timeviper.benchmarking.world_sets import write_world_sets

    with ProgressLine() as line:

        def told(n: int, total: int) -> None:
            line.count(n, total, "videos")

        counts = write_world_sets(out, videos, seed, told)
    for name, count in counts.items():
        print(f"{out / name}: {count} items")
