"""`timeviper shards <verb>`: make, inspect and mend shards of data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

HELP = {"help_option_names": ["-h", "--help"]}

shards = typer.Typer(no_args_is_help=True, context_settings=HELP, help="Make and inspect shards of data.")


@shards.command("world")
def shards_world(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the shards.")] = Path("data/world"),
    scale: Annotated[str, typer.Option(help="How much: small (a smoke test), default, or a factor.")] = "default",
    workers: Annotated[int, typer.Option(help="Processes that draw and encode; 0: one a core.")] = 0,
    seed: Annotated[int, typer.Option(help="Another seed is another world.")] = 0,
) -> None:
    """Draw the default data: a procedural video world with captions and questions."""
    from timeviper.datamodules.world import build_world

    build_world(out, scale, workers or os.cpu_count() or 1, seed, lambda n, total: _progress(f"{n}/{total} samples"))
    print(f"\n{out}")


@shards.command("write")
def shards_write(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="A JSONL file, or a folder of media each with .json or .txt beside it."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the shards.")],
    samples_per_shard: Annotated[int, typer.Option(help="Samples in one tar.")] = 256,
) -> None:
    """Turn your own videos and their conversations into shards (format: docs/your-data.md)."""
    from timeviper.datamodules.manifest import read_manifest
    from timeviper.datamodules.shards import write_shards

    samples = read_manifest(source)
    written = write_shards(samples, out, samples_per_shard, progress=lambda n: _progress(f"{n}/{len(samples)} samples"))
    print(f"\n{len(samples)} samples in {len(written)} shards: {out}")
    print(f"train on them:  timeviper train RECIPE data.sources.mine.shards={out}")


@shards.command("index")
def shards_index(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of .tar shards.")],
) -> None:
    """Index shards that were made elsewhere (any WebDataset tars)."""
    from timeviper.datamodules.shards import index_shards

    written = index_shards(folder, progress=lambda name: _progress(str(name)))
    print(f"\n{len(written)} indexes in {folder}")


@shards.command("check")
def shards_check(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of .tar shards.")],
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Report to write.")] = None,
) -> None:
    """Read every sample and name the bad ones; exit code 1 if there are any."""
    from timeviper.datamodules.shards import check_shards

    report = check_shards(folder)
    if json_file:
        json_file.write_text(report.to_json() + "\n")
    for problem in report.problems:
        print(f"{problem.shard}  {problem.key or '-'}  {problem.kind}: {problem.detail}")
    print(f"{report.shards} shards, {report.samples} samples, {len(report.problems)} problems")
    if report.problems:
        raise typer.Exit(1)


def _progress(text: str) -> None:
    print(f"\r{text}", end="", flush=True)
