"""`timeviper bench <verb>`: public test sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from timeviper.cli.shards import HELP
from timeviper.console import ProgressLine

bench = typer.Typer(no_args_is_help=True, context_settings=HELP, help="Public test sets: check them, run them.")


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
